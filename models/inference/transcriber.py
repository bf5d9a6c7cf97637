"""Recordings of any length to transcripts, in bounded memory.

    from models import Transcriber
    transcript = Transcriber("english").transcribe("a.wav")
    print(transcript.text, transcript.words[0].start)
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.inference.strategies import AttentionStrategy, CTCStrategy
from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE, AudioError, from_array
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.process import find_device
from utils.types import Candidate, Transcript


class Transcriber:
    """A network, a decoder, and the reading of audio around them.

    Args:
        network: a recogniser, the path of a checkpoint, or the name of a network in `pretrained/`.
        decoding: how texts are chosen; greedily by default.
        batch_size: parts of recordings that the network takes at once.
        segment_seconds: longest segment for an attention network; about the longest that it was trained on.
        device: where a checkpoint's network goes.

    Raises CheckpointError, UsageError for a device that cannot be used, and ValueError where batch_size is no number
    of at least 1, or segment_seconds is below 1, too short to find a pause, or infinite.
    """

    def __init__(self, network, decoding: DecodingOptions | None = None, *, batch_size: int = 8,
                 segment_seconds: float = 15.0, device: str | torch.device = "cpu"):
        if not 1 <= segment_seconds < math.inf:
            raise ValueError(f"--segment_seconds {segment_seconds:g} must be at least 1")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"--batch_size {batch_size} must be a whole number of at least 1")
        if not isinstance(network, Recognizer):
            network = Recognizer.from_checkpoint(network, find_device(str(device)))
        self.network, self.batch_size = network.eval(), batch_size
        self.decoder = Decoder(decoding or DecodingOptions(), network.tokenizer)
        self.strategy = (AttentionStrategy(network, self.decoder, segment_seconds) if network.autoregressive
                         else CTCStrategy(network, self.decoder, batch_size))

    def __enter__(self) -> "Transcriber":
        return self

    def __exit__(self, *_) -> None:
        self.decoder.__exit__()

    def transcribe(self, audio, sample_rate: int | None = None) -> Transcript:
        """Returns the transcript of one recording.

        Args:
            audio: path of a file, or samples: (S,), (channels, S) or (S, channels), see `utils.audio.from_array`.
            sample_rate: rate of the samples, 16 kHz by default; a file states its own.

        Raises AudioError.
        """

        def refuse(error: AudioError) -> None:
            raise error

        if sample_rate is not None and _is_path(audio):
            raise AudioError(audio, "a file states its own sample_rate: leave it out")
        if sample_rate is not None:
            audio = from_array(audio, sample_rate)
        return next(self.transcribe_all([audio], refuse))

    @torch.inference_mode()
    def transcribe_all(self, recordings: Iterable, on_error: Callable[[AudioError], None],
                       progress: Callable[[float], None] = lambda seconds: None) -> Iterator[Transcript]:
        """Yields the transcript of each recording that can be read, in order.

        Args:
            recordings: paths, or samples at 16 kHz as `transcribe` takes them.
            on_error: called with the error of each recording that cannot be read.
            progress: called with the seconds of audio that were recognised since the last call.
        """
        parts, outputs, done = self._parts(recordings), [], 0.0
        while batch := list(islice(parts, self.batch_size)):
            waveforms = [part.waveform for part in batch if part.error is None]
            results = iter(self.strategy.recognize(waveforms) if waveforms else [])
            for part in batch:
                if part.error is not None:
                    on_error(part.error)
                else:
                    outputs.append((part.start, next(results)))  # no waveforms: hours of them would take gigabytes
                    progress(part.end - done)
                    done = part.end
                    if part.last:
                        yield self._transcript(part.name, outputs, part.end)
                if part.last:
                    outputs, done = [], 0.0

    def _parts(self, recordings: Iterable) -> Iterator["_Part"]:
        """Yields the parts of one recording after the other; an error is the last part of its recording."""
        for audio in recordings:
            name = str(audio) if _is_path(audio) else "audio"
            try:
                waiting = None
                for start, waveform in self.strategy.split(audio if _is_path(audio) else from_array(audio)):
                    if waiting is not None:
                        yield waiting
                    waiting = _Part(name, start, waveform)
                yield waiting._replace(last=True)
            except AudioError as error:
                yield _Part(name, error=error, last=True)

    def _transcript(self, name: str, outputs: list[tuple[float, Any]], seconds: float) -> Transcript:
        """Returns the transcript of a recording from the starts and outputs of its parts."""
        seconds, pieces = round(seconds, 3), self.strategy.decode(outputs)
        words = [word._replace(start=min(round(word.start + piece.start, 3), seconds),
                               end=min(round(word.end + piece.start, 3), seconds))
                 for piece in pieces for word in piece.words]
        best = [piece.candidates[0] for piece in pieces]
        candidates = pieces[0].candidates if len(pieces) == 1 else [
            Candidate(" ".join(one.text for one in best if one.text), sum(one.score for one in best))]
        return Transcript(name, candidates[0].text, seconds, words, candidates)


class _Part(NamedTuple):
    """A part of a recording, as `Strategy.split` yields it, or the recording's error."""

    name: str
    start: float = 0.0  # seconds
    waveform: Tensor | None = None
    last: bool = False  # of its recording
    error: AudioError | None = None

    @property
    def end(self) -> float:
        """Returns the seconds from the beginning of the recording to the end of the part."""
        return self.start + len(self.waveform) / SAMPLE_RATE


def _is_path(audio) -> bool:
    return isinstance(audio, str | os.PathLike)
