"""How recordings of any length become texts: one way for CTC networks, another for attention networks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import lcm
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE, SILENCE, read_windows
from utils.decoding.decoder import Decoder
from utils.types import Candidate, Word

STEP, OVERLAP = 30, 6  # seconds between the beginnings of windows, and by which they overlap
PIECE = 60  # seconds of log-probabilities that are decoded at once
PAUSE = 0.4  # seconds over which loudness is measured to find a pause


class Piece(NamedTuple):
    """A part of a recording that was decoded at once."""

    start: float  # seconds from the beginning of the recording
    candidates: list[Candidate]  # best first
    words: list[Word]  # their times count from the start of the piece


class Strategy(ABC):
    """Splits a recording into parts, runs the network on batches of parts, and decodes their outputs.

    Args:
        network: in evaluation mode.
        decoder: the search.
    """

    def __init__(self, network: Recognizer, decoder: Decoder):
        self.network, self.decoder = network, decoder

    @abstractmethod
    def split(self, audio) -> Iterator[tuple[float, Tensor]]:
        """Yields the start, in seconds, and the (S,) waveform of each part of a path or a (S,) waveform.

        Raises AudioError.
        """

    @abstractmethod
    def recognize(self, waveforms: list[Tensor]) -> list[Any]:
        """Returns the network's output for each part of a batch."""

    @abstractmethod
    def decode(self, outputs: list[tuple[float, Any]]) -> list[Piece]:
        """Returns the pieces of a recording from the starts and outputs of its parts."""

    def encode(self, waveforms: list[Tensor]) -> NamedTuple:
        """Returns the encoder output of a batch of parts."""
        counts = torch.tensor([len(waveform) for waveform in waveforms], device=self.network.device)
        return self.network.encode(pad_sequence(waveforms, batch_first=True).to(self.network.device), counts)


class CTCStrategy(Strategy):
    """Joins log-probabilities of windows that overlap, and decodes them in pieces that end between words.

    The windows are joined between two words within each overlap, where both have context on either side.

    Args:
        network: a CTC network.
        decoder: the search.
        batch_size: pieces that are decoded at once.
    """

    def __init__(self, network: Recognizer, decoder: Decoder, batch_size: int):
        super().__init__(network, decoder)
        self.batch_size = batch_size
        frame = network.ctc_frame_samples
        whole = lcm(frame, SAMPLE_RATE) // SAMPLE_RATE  # seconds that are whole frames
        self.step = -(-STEP // whole) * whole
        self.frames_per_second = 1 / network.ctc_frame_seconds
        self.boundaries = network.tokenizer.boundaries or [network.tokenizer.blank]

    def split(self, audio) -> Iterator[tuple[float, Tensor]]:
        """Yields windows that overlap."""
        for i, window in enumerate(read_windows(audio, step=self.step, overlap=OVERLAP)):
            yield i * self.step, window

    def recognize(self, waveforms: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """Returns (T, C) log-probabilities of each window, and those for the times of words where they are others."""
        encoding = self.encode(waveforms)
        log_probs, lengths = self.network.ctc_log_probs(encoding)
        kinds = [log_probs]
        if self.network.local_ctc_weight:
            kinds.append(self.network.alignment_log_probs(encoding))
        blank = log_probs.new_full(log_probs.shape[2:], -100.0)
        blank[self.network.tokenizer.blank] = 0.0
        return [tuple((blank.expand_as(one) if is_silent(waveform) else one)[:length].cpu() for one in outputs)
                for waveform, length, *outputs in zip(waveforms, lengths.tolist(), *kinds, strict=True)]

    def decode(self, outputs: list[tuple[float, tuple[Tensor, ...]]]) -> list[Piece]:
        """Returns pieces of at most `PIECE` seconds."""
        windows = [output for _, output in outputs]
        parts = joined_parts([output[0] for output in windows], round(self.step * self.frames_per_second),
                             self.boundaries)
        kinds = [torch.cat([one[part] for one, part in zip(kind, parts, strict=True)])
                 for kind in zip(*windows, strict=True)]
        log_probs, alignment = kinds[0], kinds[-1]  # (T, C), often the same
        lengths = piece_lengths(log_probs, int(PIECE * self.frames_per_second), self.boundaries)
        candidates = self._search(log_probs.split(lengths))
        words = [self.network.align_ctc(piece, texts[0].text) or []
                 for piece, texts in zip(alignment.split(lengths), candidates, strict=True)]
        starts = [frame / self.frames_per_second for frame in accumulate([0, *lengths[:-1]])]
        return [Piece(*fields) for fields in zip(starts, candidates, words, strict=True)]

    def _search(self, pieces: Sequence[Tensor]) -> list[list[Candidate]]:
        candidates = []
        for i in range(0, len(pieces), self.batch_size):
            batch = list(pieces[i : i + self.batch_size])
            lengths = torch.tensor([len(piece) for piece in batch])
            candidates += self.decoder.search_ctc(pad_sequence(batch, batch_first=True), lengths)
        return candidates


class AttentionStrategy(Strategy):
    """Cuts a recording at pauses, and decodes each segment by itself.

    Args:
        network: an attention network.
        decoder: the search.
        longest: seconds of the longest segment.
    """

    def __init__(self, network: Recognizer, decoder: Decoder, longest: float):
        super().__init__(network, decoder)
        self.longest = longest

    def split(self, audio) -> Iterator[tuple[float, Tensor]]:
        """Yields segments that end at pauses."""
        yield from segments(read_windows(audio, step=STEP), self.longest)

    def recognize(self, waveforms: list[Tensor]) -> list[tuple[list[Candidate], list[Word]]]:
        """Returns the best texts and the words of each segment; no words where it is silent."""
        encoding = self.encode(waveforms)
        candidates = self.network.search(encoding, self.decoder)
        words = self.network.align(encoding, [texts[0].text for texts in candidates])
        return [([Candidate("", 0.0)], []) if is_silent(waveform) else output
                for waveform, output in zip(waveforms, zip(candidates, words, strict=True), strict=True)]

    def decode(self, outputs: list[tuple[float, tuple[list[Candidate], list[Word]]]]) -> list[Piece]:
        """Returns each segment as a piece."""
        return [Piece(start, *output) for start, output in outputs]


def is_silent(waveform: Tensor) -> bool:
    """Returns whether a waveform never exceeds `SILENCE`: it has no words, whatever the network says."""
    return bool(waveform.abs().max() <= SILENCE)


def joined_parts(log_probs: list[Tensor], step: int, boundaries: list[int]) -> list[slice]:
    """Returns the frames of each window that belong to the whole recording, once each.

    In the middle half of each overlap one window gives way to the next before a word's end in both: before one
    of the tokens `boundaries`.

    Args:
        log_probs: (T_i, C) of windows that begin every `step` frames.
        step: frames.
        boundaries: tokens that begin a word or stand between words.
    """
    parts, begin = [], 0
    for one, following in zip(log_probs, log_probs[1:], strict=False):
        overlap = min(len(one) - step, len(following))
        margin = overlap // 4
        between = word_ends(one[step : step + overlap], boundaries) + word_ends(following[:overlap], boundaries)
        cut = margin + int(between[margin : overlap - margin].argmax()) if overlap > 2 * margin else 0
        parts.append(slice(begin, step + cut))
        begin = cut
    return [*parts, slice(begin, None)]


def piece_lengths(log_probs: Tensor, longest: int, boundaries: list[int]) -> list[int]:
    """Returns lengths, at most `longest`, of pieces of (T, C) log-probabilities; each but the last ends with a word."""
    lengths = []
    while len(log_probs) > longest:
        lengths.append(longest // 2 + int(word_ends(log_probs[:longest], boundaries)[longest // 2 :].argmax()))
        log_probs = log_probs[lengths[-1] :]
    return [*lengths, len(log_probs)]


def word_ends(log_probs: Tensor, boundaries: list[int]) -> Tensor:
    """Returns how surely a frame stands between words, (T,): it or the next is a boundary, and it is no letter.

    Boundaries are spaces, or pieces that begin a word. Two windows may have the same one a frame apart. Where none
    is near, the surest blank is best.
    """
    probabilities = log_probs.exp()
    spaces, blanks = probabilities[:, boundaries].sum(dim=1), probabilities[:, 0]
    soon = torch.maximum(spaces, F.pad(spaces[1:], (0, 1)))
    still = F.avg_pool1d(blanks[None], 3, stride=1, padding=1)[0]
    return soon - (1 - blanks - spaces) + 0.1 * still


def segments(waveforms: Iterable[Tensor], longest: float) -> Iterator[tuple[float, Tensor]]:
    """Cuts a recording into segments of at most `longest` seconds that end where it is quietest.

    Args:
        waveforms: (S,) consecutive parts of the recording.
        longest: seconds.

    Yields the start, in seconds, and the (S,) waveform of each segment.
    """
    most, size = int(longest * SAMPLE_RATE), int(PAUSE * SAMPLE_RATE)
    start, kept = 0, torch.empty(0)
    for waveform in waveforms:
        kept = torch.cat([kept, waveform])
        while len(kept) > most:
            energy = F.avg_pool1d(kept[None, most // 3 : most].square(), size, stride=size // 4)[0]
            cut = most // 3 + int(energy.argmin()) * (size // 4) + size // 2
            yield start / SAMPLE_RATE, kept[:cut]
            start, kept = start + cut, kept[cut:]
    yield start / SAMPLE_RATE, kept
