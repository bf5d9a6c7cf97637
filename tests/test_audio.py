"""Every format and rate to 16 kHz mono; every kind of damage is an AudioError that names the file."""

import pickle
import struct

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH

from utils.audio import SAMPLE_RATE, AudioError, from_samples, load_audio, probe_seconds, resample

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


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("/a/b.wav", "empty: 0 bytes")))
    assert (type(error), error.path, error.reason) == (AudioError, "/a/b.wav", "empty: 0 bytes")
    assert str(error) == "/a/b.wav: empty: 0 bytes"
