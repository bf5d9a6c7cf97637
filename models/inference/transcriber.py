"""Recordings of any length to transcripts, in bounded memory.

    from models import Transcriber
    transcript = Transcriber("X.ckpt").transcribe("a.wav")
    print(transcript.text, transcript.words[0].start)

A recording is read in windows that overlap. Of a CTC model the log-probabilities are joined between two
words within each overlap, where both windows know what comes before and after, and decoded in pieces
that end between words. A model that spells gets waveforms that end at pauses instead.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE, SILENCE, AudioError, from_samples, read_windows
from utils.decoding.options import Decoder, DecodingOptions
from utils.types import Candidate, Transcript, Word

STEP, OVERLAP = 30, 6  # seconds; what lasts no longer than their sum is heard at once
PIECE = 60  # seconds of log-probabilities that are decoded at once
PAUSE = 0.4  # seconds whose loudness tells a pause from speech


class Transcriber:
    """A network, a decoder, and the reading of audio around them.

    Args:
        network: a recogniser, or the path of a checkpoint.
        decoding: how texts are chosen; greedily by default.
        batch_size: windows at a time.
        segment_seconds: longest waveform for a model that spells; about the longest that it was trained on.
        device: where a checkpoint's network goes.

    Raises CheckpointError, and ValueError where segment_seconds is below 1: no pause would be found in so little.
    """

    def __init__(self, network, decoding: DecodingOptions | None = None, *, batch_size: int = 8,
                 segment_seconds: float = 15.0, device: str | torch.device = "cpu"):
        if not segment_seconds >= 1:
            raise ValueError(f"--segment_seconds {segment_seconds:g} must be at least 1")
        network = network if isinstance(network, Recognizer) else Recognizer.from_checkpoint(network, device)
        self.network = network.eval()
        self.decoder = Decoder(decoding or DecodingOptions(), self.network.tokenizer)
        self.batch_size, self.segment_seconds = batch_size, segment_seconds
        frame = self.network.ctc_frame_samples
        whole = math.lcm(frame, SAMPLE_RATE) // SAMPLE_RATE  # seconds that are whole frames
        self.step = -(-STEP // whole) * whole
        self.step_frames = self.step * SAMPLE_RATE // frame
        self.frames_a_second = SAMPLE_RATE / frame
        self.boundaries = self.network.tokenizer.boundaries or [self.network.tokenizer.blank]

    def __enter__(self) -> "Transcriber":
        return self

    def __exit__(self, *_) -> None:
        self.decoder.__exit__()

    def transcribe(self, audio) -> Transcript:
        """One recording: a path, or (S,) samples at 16 kHz. Raises AudioError."""

        def refuse(error: AudioError):
            raise error

        return next(self.transcribe_all([audio], refuse))

    @torch.inference_mode()
    def transcribe_all(self, recordings: Iterable, on_error: Callable[[AudioError], None],
                       progress: Callable[[float], None] = lambda seconds: None) -> Iterator[Transcript]:
        """The transcript of each recording that can be read, in order.

        The others are told to `on_error`, and the seconds of audio that were heard to `progress`.
        """
        windows, heard = self._windows(recordings), []
        while batch := list(islice(windows, self.batch_size)):
            outputs = iter(self._hear([window for window in batch if window.error is None]))
            for window in batch:
                if window.error is not None:
                    on_error(window.error)
                    heard = []
                    continue
                seconds = len(window.waveform) / SAMPLE_RATE
                heard.append((window.start, next(outputs)))  # the waveform goes: hours of it would be gigabytes
                progress(min(seconds, self.step))
                if window.last:
                    yield self._join(window.name, heard, window.start + seconds)
                    heard = []

    def _windows(self, recordings: Iterable) -> Iterator["_Window"]:
        """The windows, or segments, of one recording after the other."""
        for recording in recordings:
            named = not isinstance(recording, Tensor) and not hasattr(recording, "__array__")
            name = str(recording) if named else "audio"
            try:
                waveforms = (read_windows(recording, step=self.step, overlap=OVERLAP) if named
                             else _windows_of(from_samples(np.asarray(recording), SAMPLE_RATE), self.step, OVERLAP))
                if self.network.autoregressive:
                    waveforms = segments(_without_overlap(waveforms), self.segment_seconds)
                else:
                    waveforms = ((i * self.step, waveform) for i, waveform in enumerate(waveforms))
                waiting = None
                for start, waveform in waveforms:
                    if waiting is not None:
                        yield _Window(name, *waiting, last=False)
                    waiting = start, waveform
                yield _Window(name, *waiting, last=True)
            except AudioError as error:
                yield _Window(name, 0.0, None, last=True, error=error)

    def _hear(self, windows: list["_Window"]) -> list:
        """Of each window, two log-probabilities side by side, (T, 2 C), one for the text and one for its times.

        Or, of a model that spells, the candidates and their words.
        """
        if not windows:
            return []
        device = next(self.network.parameters()).device
        waveforms = [window.waveform for window in windows]
        counts = torch.tensor([len(waveform) for waveform in waveforms], device=device)
        encoding = self.network.encode(pad_sequence(waveforms, batch_first=True).to(device), counts)
        silent = [bool(waveform.abs().max() <= SILENCE) for waveform in waveforms]
        if not self.network.autoregressive:
            log_probs, lengths = self.network.ctc_log_probs(encoding)
            log_probs = torch.cat([log_probs, self.network.alignment_log_probs(encoding)], dim=-1)
            return [_blank_only(one[:length]) if nothing else one[:length].cpu()
                    for one, length, nothing in zip(log_probs, lengths.tolist(), silent, strict=True)]
        found = self.network.search(encoding, self.decoder)
        words = self.network.align(encoding, [candidates[0].text for candidates in found])
        return [([Candidate("", 0.0)], []) if nothing else pair
                for pair, nothing in zip(zip(found, words, strict=True), silent, strict=True)]

    def _join(self, name: str, heard: list[tuple[float, object]], seconds: float) -> Transcript:
        """What was heard from each start on in a recording of so many seconds, as one transcript."""
        if self.network.autoregressive:
            pieces = [(start, *output) for start, output in heard]
        else:
            outputs = [output for _, output in heard]
            pieces = self._decode(join_windows(outputs, self.step_frames, self.boundaries))
        words = [word._replace(start=round(word.start + start, 3), end=round(word.end + start, 3))
                 for start, _, found in pieces for word in found]
        if len(pieces) == 1:
            candidates = pieces[0][1]
        else:
            text = " ".join(found[0].text for _, found, _ in pieces if found[0].text)
            candidates = [Candidate(text, sum(found[0].score for _, found, _ in pieces))]
        return Transcript(name, candidates[0].text, round(seconds, 3), words, candidates)

    def _decode(self, log_probs: Tensor) -> list[tuple[float, list[Candidate], list[Word]]]:
        """Start in seconds, candidates and words of each piece of (T, 2 C) log-probabilities."""
        classes = self.network.tokenizer.ctc_size
        pieces = cut_at_words(log_probs, int(PIECE * self.frames_a_second), self.boundaries)
        starts = [0, *torch.tensor([len(piece) for piece in pieces]).cumsum(0).tolist()]
        decoded = []
        for i in range(0, len(pieces), self.batch_size):
            some = pieces[i : i + self.batch_size]
            lengths = torch.tensor([len(piece) for piece in some])
            padded = pad_sequence([piece[:, :classes] for piece in some], batch_first=True)
            found = self.decoder.search_ctc(padded, lengths)
            for start, piece, candidates in zip(starts[i:], some, found, strict=False):
                words = self.network.align_ctc(piece[:, classes:], candidates[0].text)
                decoded.append((start / self.frames_a_second, candidates, words))
        return decoded


class _Window(NamedTuple):
    name: str
    start: float  # seconds
    waveform: Tensor | None
    last: bool  # of its recording
    error: AudioError | None = None


def join_windows(log_probs: list[Tensor], step: int, boundaries: list[int]) -> Tensor:
    """Joins (T_i, C) log-probabilities of windows that begin every `step` frames to (T, C) of the recording.

    In the middle half of each overlap one window gives way to the next before a word's end in both: before one
    of the tokens `boundaries`.
    """
    parts, begin = [], 0
    for one, following in zip(log_probs, log_probs[1:], strict=False):
        overlap = min(len(one) - step, len(following))
        margin = overlap // 4
        between = word_ends(one[step : step + overlap], boundaries) + word_ends(following[:overlap], boundaries)
        cut = margin + int(between[margin : overlap - margin].argmax()) if overlap > 2 * margin else 0
        parts.append(one[begin : step + cut])
        begin = cut
    return torch.cat([*parts, log_probs[-1][begin:]])


def cut_at_words(log_probs: Tensor, longest: int, boundaries: list[int]) -> list[Tensor]:
    """Cuts (T, C) log-probabilities into pieces of at most `longest` frames; each but the last ends with a word."""
    pieces = []
    while len(log_probs) > longest:
        cut = longest // 2 + int(word_ends(log_probs[:longest], boundaries)[longest // 2 :].argmax())
        pieces.append(log_probs[:cut])
        log_probs = log_probs[cut:]
    return [*pieces, log_probs]


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
    """A waveform that comes in parts, in segments of at most `longest` seconds that end in their quietest place.

    Yields the start of each in seconds, and its samples.
    """
    most, size = int(longest * SAMPLE_RATE), int(PAUSE * SAMPLE_RATE)
    start, kept = 0, torch.empty(0)
    for part in waveforms:
        kept = torch.cat([kept, part])
        while len(kept) > most:
            energy = F.avg_pool1d(kept[None, most // 3 : most].square(), size, stride=size // 4)[0]
            cut = most // 3 + int(energy.argmin()) * (size // 4) + size // 2
            yield start / SAMPLE_RATE, kept[:cut]
            start, kept = start + cut, kept[cut:]
    yield start / SAMPLE_RATE, kept


def _without_overlap(waveforms: Iterable[Tensor]) -> Iterator[Tensor]:
    """Windows that overlap, cut in the middle of the overlaps: resampling knows no edge there."""
    half = OVERLAP * SAMPLE_RATE // 2
    waiting = None
    for waveform in waveforms:
        if waiting is not None:
            yield waiting[:-half]
            waveform = waveform[half:]
        waiting = waveform
    yield waiting


def _windows_of(waveform: Tensor, step: int, overlap: int) -> Iterator[Tensor]:
    """The same windows of samples in memory as `read_windows` reads of a file."""
    step, size = step * SAMPLE_RATE, (step + overlap) * SAMPLE_RATE
    for start in range(0, max(1, len(waveform) - overlap * SAMPLE_RATE), step):
        yield waveform[start : start + size]


def _blank_only(log_probs: Tensor) -> Tensor:
    """Of a recording below SILENCE, in which a network would hear something all the same."""
    blank = torch.full(log_probs.shape, -100.0)
    blank[:, 0] = blank[:, log_probs.shape[1] // 2] = 0.0
    return blank
