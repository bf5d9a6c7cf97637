"""Every format and rate to 16 kHz mono; every kind of damage is an AudioError that names the file."""

import pickle
import struct

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH

from utils.audio import (
    SAMPLE_RATE,
    AudioError,
    from_samples,
    load_audio,
    mix_down,
    probe_seconds,
    read_windows,
    resample,
)
from utils.files.sound import TRUNCATED

FORMATS = {  # extension: format, subtype, least correlation with the original
    "flac": ("FLAC", "PCM_16", 0.9999),
    "wav": ("WAV", "PCM_16", 0.9999),
    "float.wav": ("WAV", "FLOAT", 0.9999),
    "ulaw.wav": ("WAV", "ULAW", 0.99),
    "gsm.wav": ("WAV", "GSM610", 0.9),  # has no random access
    "ogg": ("OGG", "VORBIS", 0.98),
    "opus": ("OGG", "OPUS", 0.95),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.98),
}


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """Six seconds of a real voice at 16 kHz, at half of full scale."""
    speech = torch.cat([load_audio(path) for path in SPEECH[:4]])
    return 0.5 * speech / speech.abs().max()


def write(path, speech: torch.Tensor, rate: int = SAMPLE_RATE, *, channels: int = 1, kind: str | None = None):
    """`speech` at another rate, in the format of the path's name."""
    form, subtype, _ = FORMATS[kind or path.name.split(".", 1)[1]]
    samples = resample(speech, SAMPLE_RATE, rate).numpy()
    if channels == 2:  # the second channel differs, and the mean of the two is the original
        samples = np.stack([1.5 * samples, 0.5 * samples], axis=1)
    soundfile.write(path, samples, rate, format=form, subtype=subtype)
    return path


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two recordings, at the best of a few shifts: MP3 may delay by some samples."""
    a, b = a[: min(len(a), len(b))], b[: min(len(a), len(b))]
    product = torch.fft.irfft(torch.fft.rfft(a, 2 * len(a)) * torch.fft.rfft(b, 2 * len(b)).conj())
    near = torch.cat([product[:40], product[-40:]]).max()
    return (near / (a.norm() * b.norm())).item()


def assert_one_line(error: pytest.ExceptionInfo, path) -> None:
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) > len(f"{path}: ")


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(tmp_path, speech, kind):
    path = write(tmp_path / f"a.{kind}", speech)
    waveform = load_audio(path)
    assert waveform.dtype == torch.float32 and waveform.dim() == 1
    assert abs(len(waveform) - len(speech)) <= (640 if kind == "gsm.wav" else 1)  # whole blocks
    assert correlation(waveform, speech) > FORMATS[kind][2]
    assert probe_seconds(path) == pytest.approx(len(waveform) / SAMPLE_RATE, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate", "kind"), [(8_000, "wav"), (8_000, "mp3"), (22_050, "flac"), (44_100, "mp3"),
                                            (44_100, "float.wav"), (48_000, "opus"), (48_000, "flac")])
def test_rates_and_channels(tmp_path, speech, rate, kind, channels):
    path = write(tmp_path / f"a.{kind}", speech, rate, channels=channels)
    waveform = load_audio(path)
    assert waveform.dtype == torch.float32 and waveform.shape == (len(waveform),)
    assert abs(len(waveform) - len(speech)) <= 2
    assert probe_seconds(path) == pytest.approx(len(speech) / SAMPLE_RATE, abs=2e-4)
    if rate == 8_000:  # half of the spectrum is gone: compare what is left
        speech = resample(resample(speech, SAMPLE_RATE, rate), rate, SAMPLE_RATE)
    assert correlation(waveform, speech) > 0.95
    assert waveform.norm().item() == pytest.approx(speech.norm().item(), rel=0.05), "channels are averaged, not summed"


def test_another_rate_is_given_on_demand(speech):
    assert len(load_audio(SPEECH[0], sample_rate=8_000)) == -(-len(load_audio(SPEECH[0])) // 2)


@pytest.mark.parametrize("shape", [(1,), (1, 2)])
def test_one_sample_is_audio(shape):
    assert from_samples(np.full(shape, 0.25, np.float64), 44_100).shape == (1,)


def missing(path, sound):
    pass


def zero_bytes(path, sound):
    path.touch()


def text(path, sound):
    path.write_text("this is no sound at all\n" * 100)


def folder(path, sound):
    path.mkdir()


def no_samples(path, sound):
    soundfile.write(path, np.zeros(0), SAMPLE_RATE)


def not_finite(value):
    def damage(path, sound):
        sound = sound.numpy().copy()
        sound[len(sound) // 2] = value
        soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")

    return damage


def no_length(path, sound):
    """A FLAC as an encoder leaves it that writes to a pipe: the header's 36 bits of length are 0."""
    write(path, sound, kind="flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)


@pytest.mark.parametrize("read", [load_audio, probe_seconds])
@pytest.mark.parametrize(("damage", "reason"), [
    (missing, "no such file"), (zero_bytes, "0 bytes"), (text, "not audio"), (folder, "not a file"),
    (no_samples, "no samples"), (not_finite(float("nan")), "not finite"), (not_finite(float("inf")), "not finite"),
    (no_length, "length")], ids=lambda value: getattr(value, "__name__", None))
def test_bad_files(tmp_path, speech, damage, reason, read):
    path = tmp_path / "bad.wav"
    damage(path, speech)
    with pytest.raises(AudioError, match=reason) as error:
        read(path)
    assert_one_line(error, path)


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a\0b.wav"])
@pytest.mark.parametrize("read", [load_audio, probe_seconds])
def test_names_that_no_file_can_have(tmp_path, name, read):
    with pytest.raises(AudioError, match="no such file"):
        read(tmp_path / name)


@pytest.mark.parametrize("kept", ["all but two bytes", "0.99", "0.5", "0.1"])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(tmp_path, speech, kind, kept):
    path = write(tmp_path / f"a.{kind}", torch.cat([speech, speech]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 2 if kept == "all but two bytes" else int(float(kept) * len(whole))])
    for read in (probe_seconds, load_audio):
        with pytest.raises(AudioError) as error:
            read(path)
        assert_one_line(error, path)


@pytest.mark.parametrize("stated", [0xFFFF_FFFF, 0x8000_0000, 0x7FFF_F000])
def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path, speech, stated):
    """Recorders and converters state such sizes where they cannot go back to the header."""
    path = write(tmp_path / "a.wav", speech)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"data") + 4, stated)
    path.write_bytes(data)
    assert len(load_audio(path)) == len(speech)
    assert probe_seconds(path) == len(speech) / SAMPLE_RATE


def test_what_follows_the_samples_does_no_harm(tmp_path, speech):
    path = write(tmp_path / "a.wav", speech)
    path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0INFO")
    assert len(load_audio(path)) == len(speech) and probe_seconds(path)


# -- files that state less than they hold ----------------------------------------------------------


def stating(path, size: int) -> None:
    """Changes the size that a WAV states of its samples."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"data") + 4, size)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["wav", "float.wav", "ulaw.wav"])
def test_a_wav_whose_recorder_was_killed_is_read(tmp_path, speech, kind):
    """It states no samples, or those that it had when its header was written last, and that is said."""
    path = write(tmp_path / f"a.{kind}", speech)
    whole = load_audio(path)
    stating(path, 0)
    assert torch.equal(load_audio(path), whole) and probe_seconds(path) == len(whole) / SAMPLE_RATE
    assert torch.equal(torch.cat(list(read_windows(path, step=1))), whole)
    stating(path, 32_000)
    for read in (load_audio, probe_seconds):
        with pytest.raises(AudioError, match="bytes follow the samples that its header states") as error:
            read(path)
        assert_one_line(error, path)


@pytest.mark.parametrize(("kind", "mark", "at", "order"), [
    ("AIFF", b"SSND", 4, ">I"), ("W64", b"data\xf3\xac", 16, "<Q"), ("AU", b".snd", 8, ">I")])
def test_other_headers_that_state_a_size(tmp_path, speech, kind, mark, at, order):
    """libsndfile reads what is there of a file that was cut off, and not what follows a size, without a word."""
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, speech.numpy(), SAMPLE_RATE, format=kind, subtype="PCM_16")
    content, whole = path.read_bytes(), load_audio(path)
    assert len(whole) == len(speech)
    place = content.index(mark) + at
    stated, = struct.unpack_from(order, content, place)
    half = content[:place] + struct.pack(order, stated - 80_000) + content[place + struct.calcsize(order) :]
    for damaged, reason in ((content[:-50_000], TRUNCATED), (half, "80,000 bytes follow the samples that its header")):
        path.write_bytes(damaged)
        if kind == "W64" and damaged is half:
            assert torch.equal(load_audio(path), whole)
            continue
        for read in (load_audio, probe_seconds):
            with pytest.raises(AudioError, match=reason) as error:
                read(path)
            assert_one_line(error, path)
    path.write_bytes(content + b"\0" * 5000)
    assert torch.equal(load_audio(path)[: len(whole)], whole)


@pytest.mark.parametrize("stated", [2**64 - 1, 2**63 + 5, 2**63 - 100, 2**40])
def test_a_chunk_that_states_more_than_a_file_can_have(tmp_path, speech, stated):
    """In a Wave64, whose sizes have 64 bits, as a file or in a tar."""
    soundfile.write(tmp_path / "a.w64", speech.numpy(), SAMPLE_RATE, format="W64", subtype="PCM_16")
    content = (tmp_path / "a.w64").read_bytes()
    assert content[40:44] == b"fmt "
    damaged = content[:56] + struct.pack("<Q", stated) + content[64:]
    for path in (tmp_path / "a.w64", tmp_path / "a.tar"):
        path.write_bytes(damaged)
        name = path if path.suffix == ".w64" else f"{path}:0+{len(damaged)}"
        for read in (load_audio, probe_seconds):
            with pytest.raises(AudioError) as error:
                read(name)
            assert_one_line(error, name)


def test_samples_far_beyond_full_scale_are_refused(tmp_path, speech):
    """Integers that were made floats, or one damaged sample, of which a network would hear nothing right."""
    path, damaged = tmp_path / "a.wav", speech.clone()
    damaged[7] = 1e30
    for samples, peak in ((speech * 32_768, r"1.6\d+e\+04"), (damaged, r"1e\+30")):
        soundfile.write(path, samples.numpy(), SAMPLE_RATE, subtype="FLOAT")
        for read in (load_audio, probe_seconds):
            with pytest.raises(AudioError, match=f"samples of up to {peak}, where full scale is 1") as error:
                read(path)
            assert_one_line(error, path)
    soundfile.write(path, (speech * 50).numpy(), SAMPLE_RATE, subtype="FLOAT")
    assert load_audio(path).abs().max() > 20


@pytest.mark.parametrize("after", [b"", b"LIST\x04\0\0\0INFO", b"TAG" + bytes(125), bytes(5000)], ids=len)
def test_a_wav_without_samples_stays_empty(tmp_path, after):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), SAMPLE_RATE)
    path.write_bytes(path.read_bytes() + after)
    with pytest.raises(AudioError, match="no samples"):
        load_audio(path)


@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "opus", "mp3"])
def test_files_that_were_joined_byte_by_byte_are_refused(tmp_path, speech, kind, second):
    """libsndfile would read the first one alone, and say nothing."""
    one, two = write(tmp_path / f"a.{kind}", speech), write(tmp_path / f"b.{kind}", speech[:40_000])
    one.write_bytes(one.read_bytes() + (one, two)[second].read_bytes())
    for read in (load_audio, probe_seconds):
        with pytest.raises(AudioError, match="several recordings|bytes follow") as error:
            read(one)
        assert_one_line(error, one)


@pytest.mark.parametrize("stated", [0.5, 0.8])
@pytest.mark.parametrize("shape", [{}, {"subtype": "PCM_24"}, {"channels": 2}, {"rate": 48_000}, {"rate": 12_345}],
                         ids=str)
def test_a_flac_with_more_samples_than_its_header_states_is_refused(tmp_path, speech, shape, stated):
    """libsndfile would read as many as are stated, and say nothing."""
    path, channels = tmp_path / "a.flac", shape.get("channels", 1)
    samples = np.stack([speech.numpy() / (1 + k) for k in range(channels)], axis=1)
    soundfile.write(path, samples, shape.get("rate", SAMPLE_RATE), subtype=shape.get("subtype"))
    whole = load_audio(path)
    data = bytearray(path.read_bytes())
    data[22:26] = int(len(speech) * stated).to_bytes(4, "big")
    path.write_bytes(data)
    for read in (load_audio, probe_seconds):
        with pytest.raises(AudioError, match=f"states {int(len(speech) * stated):,} samples, and more follow") as error:
            read(path)
        assert_one_line(error, path)
    data[22:26] = len(speech).to_bytes(4, "big")
    path.write_bytes(data + b"TAG" + bytes(125))
    assert torch.equal(load_audio(path), whole), "as before, with a tag at its end"


ID3 = b"ID3\x03\0\0\0\0\x01\x10" + bytes(144)  # a tag, as ffmpeg writes one before the frames of Common Voice


def without_index(path) -> bytes:
    """An MP3 without its first frame, which holds the count of the others."""
    data = path.read_bytes()
    return data[data.find(b"\xff\xf3", 100) :]


def test_an_mp3_that_ends_before_a_window_that_libsndfile_expects(tmp_path, speech):
    """83 frames of 576 samples end 192 samples before the third second, and the tag counts as 240 more."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, speech.repeat(3).numpy(), SAMPLE_RATE, bitrate_mode="CONSTANT", compression_level=0.5)
    data = without_index(path)
    path.write_bytes(ID3 + data[: 83 * data.find(data[:2], 2)])
    assert soundfile.info(path).frames > 3 * SAMPLE_RATE
    windows = list(read_windows(path, step=1))
    assert [len(window) for window in windows] == [SAMPLE_RATE, SAMPLE_RATE, 83 * 576 - 2 * SAMPLE_RATE]


def test_an_mp3_without_an_index(tmp_path, speech):
    """Its length follows from the bit rate where that is one; where it varies, libsndfile would guess."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, speech.numpy(), SAMPLE_RATE, bitrate_mode="CONSTANT", compression_level=0.5)
    path.write_bytes(without_index(path))
    assert len(load_audio(path)) == pytest.approx(len(speech), abs=2000)
    path.write_bytes(2 * path.read_bytes())
    assert len(load_audio(path)) == pytest.approx(2 * len(speech), abs=4000), "both of two that were joined"
    sound = load_audio(path)
    path.write_bytes(ID3 + path.read_bytes())
    tagged = load_audio(path)
    assert soundfile.info(path).frames > len(tagged), "libsndfile takes the tag for sound"
    assert torch.equal(tagged[: len(sound)], sound)
    assert torch.allclose(torch.cat(list(read_windows(path, step=1))), tagged, atol=1e-6)
    assert probe_seconds(path) == pytest.approx(len(sound) / SAMPLE_RATE, abs=0.1)
    quiet = torch.cat([speech * 1e-4, torch.randn(48_000, generator=torch.Generator().manual_seed(0)) * 0.2])
    soundfile.write(path, quiet.numpy(), SAMPLE_RATE, bitrate_mode="VARIABLE", compression_level=0.5)
    assert len(load_audio(path)) == len(quiet)
    path.write_bytes(without_index(path))
    for read in (load_audio, probe_seconds):
        with pytest.raises(AudioError, match="a variable bit rate or long tags without an index") as error:
            read(path)
        assert_one_line(error, path)


# -- parts of files, and channels ------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_part_of_a_file(tmp_path, speech, kind):
    path = write(tmp_path / f"a.{kind}", speech)
    whole, part = load_audio(path), load_audio(path, part=(1.5, 2.25))
    assert len(part) == 36_000
    assert correlation(part, whole[24_000:60_000]) > (0.999 if kind != "opus" else 0.95)
    assert len(load_audio(path, part=(len(whole) / SAMPLE_RATE - 1, 5.0))) == 16_000, "to the end, and not beyond"


def test_a_part_in_the_damaged_middle_of_a_flac_is_refused(tmp_path, speech):
    path = write(tmp_path / "a.flac", speech.repeat(3))
    content = path.read_bytes()
    quarter = len(content) // 4
    path.write_bytes(content[:quarter] + bytes(2 * quarter) + content[3 * quarter :])
    assert len(load_audio(path, part=(0.5, 1.0))) == 16_000
    with pytest.raises(AudioError, match="damaged: its sound at 9.0 s cannot be found") as error:
        load_audio(path, part=(9.0, 1.0))
    assert_one_line(error, path)


@pytest.mark.parametrize("imbalance", [1.0, 0.9])
def test_channels_of_opposite_phase_do_not_cancel_out(tmp_path, speech, imbalance):
    """As one wire that is connected the wrong way round makes them: their mean is silence, or nearly."""
    samples = np.stack([speech.numpy(), -imbalance * speech.numpy()], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "a.wav"), speech)
    assert torch.equal(from_samples(samples, SAMPLE_RATE), speech)
    assert mix_down(np.zeros((100, 2), np.float32)).tolist() == [0.0] * 100
    independent = np.random.default_rng(0).normal(0, 0.1, (1000, 2)).astype(np.float32)
    assert np.array_equal(mix_down(independent), independent.mean(axis=1)), "the mean wherever it is louder"


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("/a/b.wav", "empty: 0 bytes")))
    assert (type(error), error.path, error.reason) == (AudioError, "/a/b.wav", "empty: 0 bytes")
    assert str(error) == "/a/b.wav: empty: 0 bytes"
