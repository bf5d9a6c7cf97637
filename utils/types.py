"""The structures that travel between data, models and reports."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B utterances, zero-padded at the end to the longest of them."""

    waveforms: Tensor  # (B, S) float32, 16 kHz mono
    sample_counts: Tensor  # (B,) int64, valid samples of each waveform
    tokens: Tensor  # (B, U) int64, padded with the blank
    token_counts: Tensor  # (B,) int64
    texts: list[str]  # normalised references
    ids: list[str]
    skipped: list[str]  # files that were left out of this batch, by path



class Word(NamedTuple):
    """A word, where it is, and how sure the network was of its tokens."""

    word: str
    start: float  # seconds from the beginning of the recording
    end: float
    confidence: float  # geometric mean of its tokens' probabilities, 0 to 1


class Candidate(NamedTuple):
    """One of the best texts."""

    text: str
    score: float  # what the search ranked it by, a natural logarithm


class Transcript(NamedTuple):
    """The best text of a recording, its words, and what else it may have been."""

    audio: str  # path as it was given
    text: str
    seconds: float  # duration of the audio
    words: list[Word]
    candidates: list[Candidate]  # best first; the text alone for a recording that was decoded in pieces
