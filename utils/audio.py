"""Sound files to 16 kHz mono float32."""

import math
from collections.abc import Iterator

import numpy as np
import soundfile
import torch
from torch import Tensor

from utils.files.sound import TRUNCATED, AudioError, describe, open_sound

SAMPLE_RATE = 16_000  # Hz, of everything the models see
SILENCE = 1e-3  # of full scale; a recording that never exceeds it, -60 dB, holds no speech
CANCELLED = 0.01  # share of the loudest channel's power below which the mean of the channels has lost the sound
EXTENSIONS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
MOST_SAMPLES = 1 << 28  # of a file that is read as one, 1 GB: 4.6 h at 16 kHz
_PROBED = 60  # seconds at a time of a file that is read to its end
_BLOCK = 1 << 20  # samples of all channels that are decoded at once
_LARGEST_TABLE = 1 << 22  # weights of torchaudio's resampling; 44.1 and 16 kHz take 70,560
_ZEROS, _ROLLOFF = 6, 0.99  # torchaudio's filter


def load_audio(path, *, part: tuple[float, float] | None = None, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Reads FLAC, WAV, OGG, Opus or MP3 of any rate and channel count.

    Args:
        part: begin and duration in seconds of what to read; all of the file by default.

    Returns (S,) float32 at `sample_rate`, the channels mixed down.
    Raises AudioError for a missing, unreadable, truncated, empty or non-finite file.
    """
    with open_sound(path) as sound:
        first, last = 0, sound.frames
        if part is not None:
            first = min(last, round(part[0] * sound.samplerate))
            last = min(last, first + round(part[1] * sound.samplerate))
        if last - first > MOST_SAMPLES:
            raise AudioError(path, f"{last - first:,} samples are too long to be read as one: cut it")
        _skip(path, sound, first)
        mono = _read_mono(path, sound, last - first, first)
        return from_samples(mono, sound.samplerate, name=path, sample_rate=sample_rate)


def read_windows(path, *, step: int, overlap: int = 0, sample_rate: int = SAMPLE_RATE) -> Iterator[Tensor]:
    """Reads a file of any length in bounded memory, as windows that begin every `step` seconds.

    Each is (S,) float32 at `sample_rate` and lasts `step + overlap` seconds, the last one less. Whole
    seconds, so that windows begin on a sample at every rate.
    Raises AudioError as `load_audio` does, where the fault stands.
    """
    with open_sound(path) as sound:
        read, size = 0, (step + overlap) * sound.samplerate
        kept = np.empty(0, dtype=np.float32)
        while read < sound.frames:
            fresh = _read_mono(path, sound, min(size - len(kept), sound.frames - read), read)
            read += len(fresh)
            window = np.concatenate([kept, fresh]) if len(kept) else fresh
            yield from_samples(window, sound.samplerate, name=path, sample_rate=sample_rate)
            kept = window[len(window) - overlap * sound.samplerate :]


def _skip(path, sound: soundfile.SoundFile, count: int) -> None:
    """Goes to sample `count`. Raises AudioError."""
    if count and sound.seekable():
        sound.seek(count)
        return
    for begin in range(0, count, _BLOCK):
        _read_mono(path, sound, min(_BLOCK, count - begin), begin)


def _read_mono(path, sound: soundfile.SoundFile, count: int, read: int) -> np.ndarray:
    """(count,) float32, the mean of the channels, in blocks: memory goes to samples that are there, not just stated."""
    blocks, left = [], count
    while left:
        wanted = min(left, max(1, _BLOCK // sound.channels))
        try:
            block = sound.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, ValueError) as error:  # ValueError: libsndfile stands beyond the end
            raise AudioError(path, describe(error)) from None
        left -= len(block)
        if len(block) < wanted:
            raise AudioError(path, f"truncated: {read + count - left} of {sound.frames} samples")
        blocks.append(mix_down(block))
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, dtype=np.float32), *blocks])


def mix_down(samples: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of (S, channels) samples as (S,) float32.

    Where the channels cancel each other out, as those of opposite phase do, it is the loudest channel instead.
    """
    samples = samples.astype(np.float32, copy=False)
    if samples.shape[1] == 1:
        return samples[:, 0]
    with np.errstate(all="ignore"):  # what is not finite is refused later
        mean = samples.mean(axis=1)
        powers = np.einsum("sc,sc->c", samples, samples)
        if mean.dot(mean) < CANCELLED * powers.max(initial=0.0):
            return np.ascontiguousarray(samples[:, powers.argmax()])
    return mean


def from_samples(samples: np.ndarray, rate: int, *, name="audio", sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Returns (S,) or (S, channels) samples at `rate` Hz as a (S',) float32 tensor at `sample_rate`.

    Raises AudioError, naming `name`, where there is no sample or one is not finite.
    """
    mono = mix_down(samples) if samples.ndim == 2 and samples.shape[1] > 1 else samples
    mono = np.ascontiguousarray(mono, dtype=np.float32).reshape(-1)
    if not mono.size:
        raise AudioError(name, "empty: no samples")
    with np.errstate(all="ignore"):
        finite = np.isfinite(mono.sum())  # one pass; a sum of finite samples in [-1, 1] stays finite
    if not finite:
        raise AudioError(name, "samples that are not finite (NaN or infinity)")
    return resample(torch.from_numpy(mono), rate, sample_rate)


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Band-limited resampling along the last dimension; both rates in Hz."""
    if rate == new_rate:
        return waveform
    common = math.gcd(rate, new_rate)
    if (rate // common) * (new_rate // common) > _LARGEST_TABLE:
        return _resample_directly(waveform, rate, new_rate)
    from torchaudio.functional import resample as sinc_resample

    return sinc_resample(waveform, rate, new_rate)


def _resample_directly(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """The same filter for rates with little in common, such as 44,101 and 16,000 Hz.

    torchaudio makes a table of `rate` by `new_rate` weights, 5 GB for these. Here each output sample's own
    weights are computed: the mean of the inputs around it, weighted by a sinc under a squared cosine that
    ends after 6 zero crossings, which lie 1 / cutoff of the lower rate apart.
    """
    cutoff = _ROLLOFF * min(rate, new_rate) / rate  # cycles of half a turn a sample
    reach = math.ceil(_ZEROS / cutoff)
    count = math.ceil(waveform.shape[-1] * new_rate / rate)
    padded = torch.nn.functional.pad(waveform, (reach, reach + 1))
    taps, pieces = torch.arange(-reach, reach + 1), []
    for start in range(0, count, size := max(1, _BLOCK // len(taps))):
        numbers = torch.arange(start, min(start + size, count))
        centres = numbers * rate // new_rate  # whole input samples
        fraction = (numbers * rate % new_rate).double() / new_rate
        distance = ((taps - fraction[:, None]) * cutoff).clamp(-_ZEROS, _ZEROS)
        weights = torch.sinc(distance) * torch.cos(distance * math.pi / _ZEROS / 2) ** 2 * cutoff
        nearby = padded[..., (centres[:, None] + taps + reach)]
        pieces.append((nearby * weights.to(waveform.dtype)).sum(dim=-1))
    return torch.cat(pieces, dim=-1)


def probe_seconds(path) -> float:
    """Returns the duration that the header states, in seconds, in about a millisecond.

    Reads the last sample too: a truncated file is found out without decoding the whole of it. Floating-point
    files, the only ones that can hold NaN, and those without random access (GSM) are read to their end.
    Raises AudioError.
    """
    with open_sound(path) as sound:
        if sound.subtype in ("FLOAT", "DOUBLE") or not sound.seekable():
            for _ in read_windows(path, step=_PROBED, sample_rate=sound.samplerate):
                pass
        elif not _has_last_sample(sound):
            raise AudioError(path, TRUNCATED)
        return sound.frames / sound.samplerate


def _has_last_sample(sound: soundfile.SoundFile) -> bool:
    if sound.format == "OGG":
        return True  # its pages have been looked at, and going there is slow
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 1
    except (soundfile.LibsndfileError, ValueError):  # ValueError: it went beyond the end
        return False
