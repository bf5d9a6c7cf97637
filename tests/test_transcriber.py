"""Recordings of any length: how they are cut up and joined again, word times, and samples in memory."""

import io
import math
import warnings

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH, greedy_texts, tiny_network

from models import Transcriber
from models.inference.strategies import joined_parts, piece_lengths, segments
from utils.audio import AudioError, from_array, load_audio, read_windows, resample
from utils.decoding.alignment import align_ctc
from utils.decoding.options import DecodingOptions
from utils.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
SPACE = TOKENIZER.encode(" ")[0]


def emissions(text: str, each: int = 4) -> torch.Tensor:
    """Returns (T, C) log-probabilities of `text`: each character for one frame, then blanks."""
    path = [token for token in TOKENIZER.encode(text) for token in [token] + [0] * (each - 1)]
    return (0.999 * torch.nn.functional.one_hot(torch.tensor(path), TOKENIZER.ctc_size) + 1e-5).log()


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """A file with a minute and a half of real speech."""
    waveform = torch.cat([load_audio(path) for path in SPEECH])
    waveform = waveform.repeat(-(-90 * 16_000 // len(waveform)))[: 90 * 16_000]
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, waveform.numpy(), 16_000)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_windows_are_the_file(tmp_path, rate):
    """They overlap as stated, and each is that part of what is read at once, to its edges; an array has the same."""
    samples = (0.5 * np.sin(np.arange(rate * 25) / rate * 880)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, rate)
    windows = list(read_windows(tmp_path / "x.wav", step=10, overlap=4))
    assert [len(window) / 16_000 for window in windows] == [14, 14, 5]
    whole = load_audio(tmp_path / "x.wav")
    for i, window in enumerate(windows):
        expected = whole[i * 160_000 : i * 160_000 + len(window)]
        torch.testing.assert_close(window, expected, atol=1e-5, rtol=0)
    for step, overlap in ((10, 4), (10, 0), (7, 5), (25, 0), (24, 1), (60, 6)):
        read = list(read_windows(tmp_path / "x.wav", step=step, overlap=overlap))
        cut = list(read_windows(whole, step=step, overlap=overlap))
        assert [len(window) for window in read] == [len(window) for window in cut]
        assert all(torch.equal(one, whole[i * step * 16_000 :][: len(one)]) for i, one in enumerate(cut))
        assert len(read[-1]) + (len(read) - 1) * step * 16_000 == len(whole)


def test_a_fault_in_the_middle_of_a_file(tmp_path):
    """The windows before it come, then the error; the transcriber gives nothing of such a file, and goes on."""
    samples = np.zeros(16_000 * 80, dtype=np.float32)
    samples[16_000 * 70] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        list(read_windows(tmp_path / "nan.wav", step=30, overlap=6))
    errors = []
    transcriber = Transcriber(tiny_network("mingru"), batch_size=2)
    found = list(transcriber.transcribe_all([tmp_path / "nan.wav", SPEECH[0]], errors.append))
    assert [transcript.audio for transcript in found] == [str(SPEECH[0])]
    assert [error.path for error in errors] == [str(tmp_path / "nan.wav")]


def test_windows_join_between_words():
    """Whatever a window says beyond the cut, the words of the whole stay whole and come once."""
    words = "the quick brown fox jumps over the lazy dog and then it sleeps in the sun for a while".split()
    whole = emissions(" ".join(words))
    step, overlap = 80, 48
    windows = [whole[start : start + step + overlap].clone() for start in range(0, len(whole) - overlap, step)]
    for window in windows[1:]:
        window[:8] = emissions("zz")  # the beginning of a window is misheard
    for window in windows[:-1]:
        window[-8:] = emissions("zz")
    parts = joined_parts(windows, step, [SPACE])
    joined = torch.cat([window[part] for window, part in zip(windows, parts, strict=True)])
    assert torch.equal(joined, whole)


def test_pieces_end_between_words():
    text = "one two three four five six seven eight nine ten eleven twelve"
    whole = emissions(text)
    pieces = whole.split(piece_lengths(whole, 60, [SPACE]))
    assert len(pieces) > 4 and all(len(piece) <= 60 for piece in pieces)
    assert torch.equal(torch.cat(pieces), whole)
    spelled = []
    for piece in pieces:
        best = piece.argmax(-1)
        spelled += TOKENIZER.text([token for token in best.tolist() if token]).split()
    assert spelled == text.split() or "".join(spelled) == text.replace(" ", "")


def test_segments_end_in_silence():
    """Two bursts a second with silence between: no segment cuts a burst, nothing is lost."""
    burst = torch.cat([torch.ones(12_000), torch.zeros(4_000)])
    waveform = burst.repeat(40)
    parts = list(segments(waveform.split(50_000), 10.0))
    assert torch.equal(torch.cat([samples for _, samples in parts]), waveform)
    assert all(len(samples) <= 160_000 for _, samples in parts) and len(parts) > 4
    for start, samples in parts[1:]:
        assert waveform[int(start * 16_000)] == 0 or int(start * 16_000) % 16_000 == 0
        assert samples[0] == waveform[round(start * 16_000)]


def test_words_have_the_times_of_their_frames():
    words = align_ctc(emissions("no sir", each=5), "no sir", TOKENIZER, frame_seconds=0.04)
    assert [word.word for word in words] == ["no", "sir"]
    assert words[0].start == 0.0 and words[1].start == pytest.approx(14 * 0.04, abs=1e-3)
    assert words[1].end == pytest.approx(25.5 * 0.04, abs=1e-3)
    assert all(word.confidence > 0.99 for word in words)
    assert align_ctc(emissions("no"), "no sir said the man to him", TOKENIZER, 0.04) is None
    assert align_ctc(emissions("no"), "", TOKENIZER, 0.04) == []


@pytest.mark.parametrize("variant", ["mingru", "las", "las-multihead"])
def test_transcripts_of_short_and_long_recordings(variant, long_file):
    """Files in a batch are what they are alone; a long one has words in order, within its duration."""
    with Transcriber(tiny_network(variant), batch_size=3, segment_seconds=5) as transcriber:
        several = list(transcriber.transcribe_all([*SPEECH[:4], long_file], pytest.fail))
        for path, transcript in zip(SPEECH[:4], several, strict=False):
            alone = transcriber.transcribe(path)
            assert (alone.text, alone.audio) == (transcript.text, str(path))
            assert alone.text == greedy_texts(transcriber.network, [load_audio(path)])[0]
    long = several[-1]
    assert long.seconds == 90.0
    assert [word.word for word in long.words] == long.text.split()
    starts = [word.start for word in long.words]
    assert all(0 <= word.start <= word.end <= 90.0 and 0 <= word.confidence <= 1 for word in long.words)
    assert variant != "mingru" or starts == sorted(starts)


def test_arrays_are_transcribed_like_files():
    transcriber = Transcriber(tiny_network("mingru"))
    waveform = load_audio(SPEECH[0])
    expected = transcriber.transcribe(SPEECH[0])
    for audio in (waveform, waveform.numpy()):
        assert transcriber.transcribe(audio)._replace(audio="") == expected._replace(audio="")
    assert transcriber.transcribe(torch.zeros(16_000)).text == ""
    for samples, fault in ((torch.zeros(0), "empty"), (np.full(100, np.nan), "not finite")):
        with pytest.raises(AudioError, match=fault):
            transcriber.transcribe(samples)
    with pytest.raises(AudioError, match="no such file"):
        transcriber.transcribe("absent.wav")


def integers(kind: str):
    zero, scale = {"int16": (0, 1 << 15), "int32": (0, 1 << 31), "uint8": (128, 1 << 7)}[kind]
    return lambda x: (x.numpy().astype(np.float64) * (scale - 1) + zero).round().astype(kind)


def read_only(x: torch.Tensor) -> np.ndarray:
    samples = x.numpy().copy()
    samples.setflags(write=False)
    return samples


ARRAYS = {
    "one channel": lambda x: x[None], "channels first": lambda x: torch.stack([x, x]),
    "channels last": lambda x: np.stack([x, x, x], axis=1), "one channel last": lambda x: x.numpy()[:, None],
    "opposite phase": lambda x: torch.stack([x, -x]), "one silent": lambda x: torch.stack([x, 0 * x]) * 2,
    "float64": lambda x: x.double(), "float16": lambda x: x.numpy().astype(np.float16),
    "bfloat16": lambda x: x.bfloat16(), "with a gradient": lambda x: x.clone().requires_grad_(),
    "big-endian": lambda x: x.numpy().astype(">f4"), "a list": lambda x: x.tolist(), "read-only": read_only,
    "a negative view": lambda x: torch._neg_view(-x),
    "int16": integers("int16"), "int16 tensor": lambda x: torch.from_numpy(integers("int16")(x)[None]),
    "int32": integers("int32"), "uint8": lambda x: integers("uint8")(x / x.abs().max()),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_hold_the_same_sound(kind):
    waveform = load_audio(SPEECH[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = from_array(ARRAYS[kind](waveform)) * (waveform.abs().max() if kind == "uint8" else 1)
    assert samples.dtype == torch.float32 and samples.shape == waveform.shape and not samples.requires_grad
    tolerance = {"uint8": 0.01, "bfloat16": 0.01, "float16": 1e-3}.get(kind, 1e-4)
    torch.testing.assert_close(samples, waveform, atol=tolerance, rtol=0)
    if tolerance < 1e-3:
        transcriber = Transcriber(tiny_network("mingru"))
        assert transcriber.transcribe(ARRAYS[kind](waveform)).text == transcriber.transcribe(SPEECH[0]).text != ""


@pytest.mark.parametrize(("samples", "fault"), [
    (torch.zeros(1, 2, 100), r"a shape of \(1, 2, 100\)"), (torch.zeros(300, 40), r"a shape of \(300, 40\)"),
    (np.zeros((2, 2)), r"a shape of \(2, 2\)"), (np.float32(1), r"a shape of \(\)"), (np.zeros((2, 0)), "no samples"),
    (np.zeros(9, np.int64), "samples of type int64"), (np.zeros(9, bool), "type bool"), (np.zeros(9, complex), "compl"),
    (io.BytesIO(b"RIFF"), "type object"), (bytearray(9), "bytes, whose type cannot be known"), (b"RIFF", "bytes"),
    (np.full(9, 5_000.0), "samples of up to 5000, where full scale is 1"), (np.full(9, 1e300), "not finite")])
def test_arrays_of_other_kinds_are_refused(samples, fault):
    """The error is one line that names the shape or the type."""
    with pytest.raises(AudioError, match=fault) as caught:
        Transcriber(tiny_network("mingru")).transcribe(samples)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.5}, {"segment_seconds": math.inf},
                                     {"segment_seconds": 0.5}, {"segment_seconds": math.nan}, {"device": "meta"},
                                     {"device": "nothing"}], ids=str)
@pytest.mark.parametrize("variant", ["mingru", "las"])
def test_options_that_cannot_be_are_refused(tmp_path, variant, options):
    path, network = tmp_path / "a.ckpt", tiny_network(variant)
    torch.save({"recognizer": network.config, "state_dict": {
        f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    name, = options
    with pytest.raises(ValueError, match=f"^--{name} ") as caught:
        Transcriber(path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_rate_of_an_array_is_said_by_the_caller():
    transcriber = Transcriber(tiny_network("mingru"))
    waveform = load_audio(SPEECH[0])
    expected = transcriber.transcribe(waveform)
    assert transcriber.transcribe(waveform, sample_rate=16_000) == expected
    high = resample(waveform, 16_000, 44_100)
    for audio in (high, torch.stack([high, high])):
        assert transcriber.transcribe(audio, sample_rate=44_100).seconds == pytest.approx(expected.seconds, abs=1e-3)
    inner = slice(200, len(waveform) - 200)  # resampling knows edges
    torch.testing.assert_close(from_array(high, 44_100)[inner], waveform[inner], atol=0.02, rtol=0)
    for rate in (0, -16_000, 1e9, 44_100.5, "16000"):
        with pytest.raises(AudioError, match=f"a rate of {rate} Hz"):
            transcriber.transcribe(waveform, sample_rate=rate)
    with pytest.raises(AudioError, match="states its own sample_rate"):
        transcriber.transcribe(SPEECH[0], sample_rate=16_000)


@pytest.mark.parametrize("variant", ["mingru", "local-ctc", "las", "las-multihead"])
@pytest.mark.parametrize("samples", [1, 160, 3_333])
def test_words_lie_within_the_shortest_recordings(variant, samples):
    """One of 10 ms, for example, is shorter than a frame of CTC."""
    waveform = load_audio(SPEECH[0])[8_000:]
    waveform = waveform[waveform.abs().argmax() :][:samples]
    transcript = Transcriber(tiny_network(variant)).transcribe(waveform)
    assert transcript.seconds == round(samples / 16_000, 3)
    assert [word.word for word in transcript.words] == transcript.text.split()
    assert all(0 <= word.start <= word.end <= transcript.seconds for word in transcript.words)


def test_progress_adds_up_to_the_audio(long_file):
    for variant in ("mingru", "las"):
        seconds = []
        transcriber = Transcriber(tiny_network(variant), segment_seconds=40)
        list(transcriber.transcribe_all([long_file, SPEECH[0]], pytest.fail, seconds.append))
        assert sum(seconds) == pytest.approx(90 + len(load_audio(SPEECH[0])) / 16_000) and min(seconds) > 0


@pytest.mark.parametrize("variant", ["mingru", "las"])
def test_n_best_candidates(variant):
    with Transcriber(tiny_network(variant), DecodingOptions(decoder="beam", beam_size=8, nbest=3)) as transcriber:
        transcript = transcriber.transcribe(SPEECH[0])
    scores = [candidate.score for candidate in transcript.candidates]
    assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)
    assert transcript.text == transcript.candidates[0].text
