"""Recordings of any length, words in time, and the joining of what was heard in parts."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH, greedy_texts, tiny_network

from models import Transcriber
from models.inference.transcriber import cut_at_words, join_windows, segments
from utils.audio import AudioError, load_audio, read_windows
from utils.decoding.alignment import align_ctc
from utils.decoding.options import DecodingOptions
from utils.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
SPACE = TOKENIZER.encode(" ")[0]


def emissions(text: str, each: int = 4) -> torch.Tensor:
    """(T, C) log-probabilities that spell `text`: each character for one frame, then blanks."""
    path = [token for token in TOKENIZER.encode(text) for token in [token] + [0] * (each - 1)]
    return (0.999 * torch.nn.functional.one_hot(torch.tensor(path), TOKENIZER.ctc_size) + 1e-5).log()


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """A minute and a half of real speech, in a file at 44.1 kHz."""
    waveform = torch.cat([load_audio(path) for path in SPEECH])
    waveform = waveform.repeat(-(-90 * 16_000 // len(waveform)))[: 90 * 16_000]
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, waveform.numpy(), 16_000)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_windows_are_the_file(tmp_path, rate):
    """They overlap as stated, and joined they are what is read at once."""
    samples = (0.5 * np.sin(np.arange(rate * 25) / rate * 880)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, rate)
    windows = list(read_windows(tmp_path / "x.wav", step=10, overlap=4))
    assert [len(window) / 16_000 for window in windows] == [14, 14, 5]
    whole = load_audio(tmp_path / "x.wav")
    for i, window in enumerate(windows):
        expected = whole[i * 160_000 : i * 160_000 + len(window)]
        inner = slice(16_000, -16_000)  # resampling knows edges
        torch.testing.assert_close(window[inner], expected[inner], atol=1e-5, rtol=0)


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
    joined = join_windows(windows, step, [SPACE])
    assert torch.equal(joined, whole)


def test_pieces_end_between_words():
    text = "one two three four five six seven eight nine ten eleven twelve"
    whole = emissions(text)
    pieces = cut_at_words(whole, 60, [SPACE])
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
    assert all(0 <= word.start <= word.end <= 90.5 and 0 <= word.confidence <= 1 for word in long.words)
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


@pytest.mark.parametrize("variant", ["mingru", "las"])
def test_n_best_candidates(variant):
    with Transcriber(tiny_network(variant), DecodingOptions(decoder="beam", beam_size=8, nbest=3)) as transcriber:
        transcript = transcriber.transcribe(SPEECH[0])
    scores = [candidate.score for candidate in transcript.candidates]
    assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)
    assert transcript.text == transcript.candidates[0].text
