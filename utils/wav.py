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
UNKNOWN_SIZE = 0x7FFF_F000  # bytes; a WAV written to a pipe states 0, this or more for its samples
EXTENSIBLE = 0xFFFE  # the format code of a WAV that states its samples' own one later, in the sub-format
FOREIGN = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"RF64": "RF64", b"RIFX": "RIFX", b"RIFF": "RIFF but no WAV",
           b"riff": "Wave64", b"FORM": "AIFF", b".snd": "AU", b"caff": "CAF", b"\x1aE\xdf\xa3": "Matroska or WebM"}
CHUNK_SECONDS = 0.25
MARGIN_SECONDS = 0.01  # of sound on both sides of a chunk, more than the resampling filter reaches from 1 kHz on


def read_stream(stream: BinaryIO, seconds: float = CHUNK_SECONDS) -> Iterator[Tensor]:
    """Yields chunks of (S,) samples at 16 kHz: of a WAV by its header, of anything else as raw 16-bit mono.

    Raises AudioError, also for other kinds of sound files and for what follows the samples that a WAV states.
    """
    start, left = stream.read(12), math.inf  # bytes of samples to come
    channels, kind = 1, np.dtype("<i2")
    if is_wav := start[:4] == b"RIFF" and start[8:] == b"WAVE":
        rate, channels, kind, left = read_wav_header(stream)
        if rate != SAMPLE_RATE:
            raise AudioError(NAME, f"a stream must come at {SAMPLE_RATE} Hz, not {rate}; `sox - -r 16000` changes it")
        start = b""
    _refuse_foreign(start)
    frame = channels * kind.itemsize  # bytes
    size = int(seconds * SAMPLE_RATE) * frame
    scale = 1.0 if kind.kind == "f" else float(1 << (8 * kind.itemsize - 1))
    while data := start + stream.read(min(size - len(start), left)):
        left -= len(data) - len(start)
        end = len(data) // frame * frame
        samples = np.frombuffer(data[:end], dtype=kind).reshape(-1, channels)
        if len(samples):
            yield from_samples(samples.astype(np.float32) / scale, SAMPLE_RATE, name=NAME)
        start = data[end:]
        if len(data) < size:
            break
    if is_wav:
        _refuse_more_sound(stream.read(4))


def _refuse_foreign(start: bytes) -> None:
    """Raises AudioError where a stream begins as a sound file whose bytes would be taken for raw samples."""
    kind = next((name for magic, name in FOREIGN.items() if start.startswith(magic)), None)
    if kind or start[4:8] == b"ftyp":
        raise AudioError(NAME, f"{kind or 'MP4'}, which cannot be streamed; `ffmpeg -i FILE -ar 16000 -f wav -` "
                               "makes a WAV of it")


def _refuse_more_sound(after: bytes) -> None:
    """Raises AudioError where the bytes after a WAV's samples begin neither a chunk, nor a tag, nor padding."""
    is_chunk = after.isascii() and after.decode().isprintable() and after != b"RIFF"
    if after.strip(b"\0") and not is_chunk and after[:3] != b"ID3":
        raise AudioError(NAME, "goes on after the samples that its header states, and the rest was left out; "
                               "`ffmpeg -ignore_length 1 -i FILE -f wav -` reads all of it")


def read_wav_header(stream: BinaryIO) -> tuple[int, int, np.dtype, float]:
    """Returns what a WAV states whose first 12 bytes are read; stops before the samples. Raises AudioError.

    It is the rate in Hz, the channels, the type of the samples, and how many bytes they have, infinity where that is
    unknown.
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
            code = int.from_bytes(body[24:26], "little") if code == EXTENSIBLE else code
            kind = {(1, 16): "<i2", (1, 32): "<i4", (3, 32): "<f4"}.get((code, bits))
    if not kind or not channels:
        raise AudioError(NAME, "this kind of WAV cannot be streamed: give 16-bit, 32-bit or float samples")
    return rate, channels, np.dtype(kind), size if 0 < size < UNKNOWN_SIZE else math.inf


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
