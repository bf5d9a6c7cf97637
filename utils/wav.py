"""Audio as it arrives, chunk by chunk: WAV or raw samples on a pipe, and samples at any rate."""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.audio import SAMPLE_RATE, AudioError, from_samples, resample

NAME = "standard input"  # in errors
MAX_HEADER = 1 << 20  # bytes; a WAV with a larger chunk before its samples is damaged
CHUNK_SECONDS = 0.25
MARGIN_SECONDS = 0.01  # of sound on both sides of a chunk, more than the resampling filter reaches from 1 kHz on


def read_stream(stream: BinaryIO, seconds: float = CHUNK_SECONDS) -> Iterator[Tensor]:
    """Yields chunks of (S,) samples at 16 kHz: of a WAV by its header, of anything else as raw 16-bit mono.

    Raises AudioError.
    """
    start = stream.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        rate, channels, kind = read_wav_header(stream)
        if rate != SAMPLE_RATE:
            raise AudioError(NAME, f"a stream must come at {SAMPLE_RATE} Hz, not {rate}; `sox - -r 16000` changes it")
        start = b""
    else:
        channels, kind = 1, np.dtype("<i2")
    frame = channels * kind.itemsize  # bytes
    size = int(seconds * SAMPLE_RATE) * frame
    scale = 1.0 if kind.kind == "f" else float(1 << (8 * kind.itemsize - 1))
    while data := start + stream.read(size - len(start)):
        end = len(data) // frame * frame
        samples = np.frombuffer(data[:end], dtype=kind).reshape(-1, channels)
        if len(samples):
            yield from_samples(samples.astype(np.float32) / scale, SAMPLE_RATE, name=NAME)
        start = data[end:]
        if len(data) < size:
            return


def read_wav_header(stream: BinaryIO) -> tuple[int, int, np.dtype]:
    """Returns rate in Hz, channels and sample type of a WAV whose first 12 bytes are read; stops before the samples.

    Raises AudioError.
    """
    rate = channels = kind = None
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            break
        if size > MAX_HEADER:
            kind = None
            break
        body = stream.read(size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            code, channels, rate, _, _, bits = np.frombuffer(body[:16], dtype="<u2,<u2,<u4,<u4,<u2,<u2")[0].tolist()
            kind = {(1, 16): "<i2", (1, 32): "<i4", (3, 32): "<f4"}.get((1 if code == 0xFFFE else code, bits))
    if not kind or not channels:
        raise AudioError(NAME, "this kind of WAV cannot be streamed: give 16-bit, 32-bit or float samples")
    return rate, channels, np.dtype(kind)


class StreamResampler:
    """Resamples a stream chunk by chunk: joined, the chunks are what `resample` makes of the whole.

    Args:
        rate: of the samples that are fed, Hz.
    """

    def __init__(self, rate: int):
        common = math.gcd(rate, SAMPLE_RATE)
        self.rate, self.unit, self.new_unit = rate, rate // common, SAMPLE_RATE // common  # samples of equal duration
        self.margin = math.ceil(MARGIN_SECONDS * rate / self.unit)  # units
        self.samples, self.before = torch.zeros(0), 0  # and the units among them that were given out already

    def feed(self, samples: Tensor) -> Tensor:
        """Returns the 16 kHz samples that (S,) more samples complete."""
        self.samples = torch.cat([self.samples, samples])
        end = max(self.before, len(self.samples) // self.unit - self.margin)
        ready = self._resampled()[: (end - self.before) * self.new_unit]
        keep = max(0, end - self.margin)
        self.samples, self.before = self.samples[keep * self.unit :], end - keep
        return ready

    def finish(self) -> Tensor:
        """Returns the rest of the samples; nothing can be fed afterwards."""
        return self._resampled()

    def _resampled(self) -> Tensor:
        return resample(self.samples, self.rate, SAMPLE_RATE)[self.before * self.new_unit :]
