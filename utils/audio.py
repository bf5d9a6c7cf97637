"""Sound files to 16 kHz mono float32."""

import math
from collections.abc import Iterator
from itertools import count

import numpy as np
import soundfile
import torch
from torch import Tensor

from utils.files.frames import missing_allowed
from utils.files.sound import RATES, TRUNCATED, AudioError, describe, open_sound

SAMPLE_RATE = 16_000  # Hz, of everything the models see
SILENCE = 1e-3  # of full scale; a recording that never exceeds it, -60 dB, holds no speech
LOUDEST = 100  # of full scale, 40 dB; beyond are integers in the form of floats, and damage
CANCELLED = 0.01  # share of the loudest channel's power below which the mean of the channels has lost the sound
EXTENSIONS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
MOST_SAMPLES = 1 << 28  # of a file that is read as one, 1 GB: 4.6 h at 16 kHz
MOST_CHANNELS = 16  # of an array; the other dimension counts its samples
_MEMORY = "audio"  # the name of samples in memory in errors
_INTEGERS = {"int16": (0, 1 << 15), "int32": (0, 1 << 31), "uint8": (128, 1 << 7)}  # their zero and full scale
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
    with open_sound(path, whole=part is None) as sound:
        first, last = 0, sound.frames
        if part is not None:
            first = min(last, round(part[0] * sound.samplerate))
            last = min(last, first + round(part[1] * sound.samplerate))
        if last - first > MOST_SAMPLES:
            raise AudioError(path, f"{last - first:,} samples are too long to be read as one: cut it")
        _skip(path, sound, first)
        mono = _read_mono(path, sound, last - first, first)
        return from_samples(mono, sound.samplerate, name=path, sample_rate=sample_rate)


def read_windows(audio, *, step: int, overlap: int = 0, sample_rate: int = SAMPLE_RATE) -> Iterator[Tensor]:
    """Reads a recording of any length in bounded memory, as windows that begin every `step` seconds.

    They are parts of what `load_audio` returns: where a file is resampled, a second on both sides of each window
    is read as well.

    Args:
        audio: path of a file, or a (S,) waveform at `sample_rate`.
        step: seconds, whole ones so that windows begin on a sample at every rate.
        overlap: whole seconds by which a window reaches into the next one.
        sample_rate: of the windows, Hz.

    Yields (S,) float32 of `step + overlap` seconds, the last window less.
    Raises AudioError as `load_audio` does, once it comes to the fault.
    """
    size = step + overlap
    if isinstance(audio, Tensor):
        for start in range(0, max(1, len(audio) - overlap * sample_rate), step * sample_rate):
            yield audio[start : start + size * sample_rate]
        return
    with open_sound(audio) as sound:
        rate, frames = sound.samplerate, sound.frames
        margin = 0 if rate == sample_rate else 1  # second; the resampling filter needs milliseconds
        samples, first, read = np.empty(0, dtype=np.float32), 0, 0  # from second `first` to sample `read` of the file
        for start in count(0, step):
            begin, end = max(0, start - margin), min(frames, (start + size + margin) * rate)
            new = _read_mono(audio, sound, end - read, read)
            samples = np.concatenate([samples[(begin - first) * rate :], new])
            first, read = begin, read + len(new)
            if read < end:  # an MP3 of fewer samples than libsndfile states
                frames = read
            waveform = from_samples(samples, rate, name=audio, sample_rate=sample_rate)
            yield waveform[(start - begin) * sample_rate : (start - begin + size) * sample_rate]
            if (start + size) * rate >= frames:
                return


def _skip(path, sound: soundfile.SoundFile, sample: int) -> None:
    """Goes to a sample. Raises AudioError."""
    if sample and sound.seekable():
        try:
            sound.seek(sample)
        except (soundfile.LibsndfileError, ValueError) as error:  # of a FLAC that is damaged in its middle
            place = f"{sample / sound.samplerate:.1f} s"
            raise AudioError(path, f"damaged: its sound at {place} cannot be found ({describe(error)})") from None
        return
    for begin in range(0, sample, _BLOCK):
        _read_mono(path, sound, min(_BLOCK, sample - begin), begin)


def _read_mono(path, sound: soundfile.SoundFile, size: int, read: int) -> np.ndarray:
    """Returns the next (size,) float32 samples after `read`, mixed down; fewer at the end of some MP3 files.

    In blocks: memory goes to samples that are there, not just stated.
    """
    blocks, left = [], size
    while left:
        wanted = min(left, max(1, _BLOCK // sound.channels))
        try:
            block = sound.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, ValueError) as error:  # ValueError: libsndfile stands beyond the end
            raise AudioError(path, describe(error)) from None
        left -= len(block)
        blocks.append(mix_down(block))
        if len(block) < wanted:
            if sound.frames - (read + size - left) > missing_allowed(sound):
                raise AudioError(path, f"truncated: {read + size - left} of {sound.frames} samples")
            break
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

    Raises AudioError, naming `name`, where there is no sample, or one is not finite or far beyond full scale.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused
        mono = mix_down(samples) if samples.ndim == 2 and samples.shape[1] > 1 else samples
        mono = np.require(mono, np.float32, ["C", "W"]).reshape(-1)  # torch warns of what cannot be written
        if not mono.size:
            raise AudioError(name, "empty: no samples")
        peak = max(mono.max(), -mono.min())  # NaN where one sample is
    if not math.isfinite(peak):
        raise AudioError(name, "samples that are not finite (NaN or infinity)")
    if peak > LOUDEST:
        raise AudioError(name, f"samples of up to {peak:.4g}, where full scale is 1: divide those of 16 bit by 32,768")
    return resample(torch.from_numpy(mono), rate, sample_rate)


def from_array(audio: np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Returns samples in memory as a (S,) float32 waveform at 16 kHz, the channels mixed down.

    Args:
        audio: (S,), (channels, S) or (S, channels) floats, or integers whose full scale is that of their type.
        sample_rate: their rate, Hz.

    Raises AudioError, as `from_samples` does, or naming a shape, type or rate that is none of these.
    """
    if sample_rate not in RATES:
        raise AudioError(_MEMORY, f"a rate of {sample_rate} Hz, not {RATES.start:,} to {RATES.stop - 1:,}")
    if isinstance(audio, bytes | bytearray):
        raise AudioError(_MEMORY, "bytes, whose type cannot be known: give numpy.frombuffer(them, their type)")
    if isinstance(audio, Tensor):
        audio = audio.float() if audio.is_floating_point() else audio  # NumPy has no bfloat16
        audio = audio.numpy(force=True)
    return from_samples(_channels_last(_as_floats(np.asarray(audio))), int(sample_rate), name=_MEMORY)


def _as_floats(samples: np.ndarray) -> np.ndarray:
    """Returns samples whose full scale is 1. Raises AudioError that names any other type."""
    if samples.dtype.kind == "f":
        return samples
    if samples.dtype.name not in _INTEGERS:
        raise AudioError(_MEMORY, f"samples of type {samples.dtype}, neither floats nor {', '.join(_INTEGERS)}")
    zero, scale = _INTEGERS[samples.dtype.name]
    return (samples.astype(np.float32) - zero) / scale


def _channels_last(samples: np.ndarray) -> np.ndarray:
    """Returns (S,) or (S, channels) samples; the smaller dimension is taken for the channels.

    Raises AudioError that names the shape where that does not tell them apart.
    """
    if samples.ndim == 2 and 1 in samples.shape:
        return samples.reshape(-1)
    if samples.ndim == 2 and min(samples.shape) <= MOST_CHANNELS and samples.shape[0] != samples.shape[1]:
        return samples if samples.shape[0] > samples.shape[1] else samples.T
    if samples.ndim != 1:
        raise AudioError(_MEMORY, f"a shape of {samples.shape}, neither (samples,) nor (channels, samples) nor "
                                  f"(samples, channels) with at most {MOST_CHANNELS} channels")
    return samples


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
    """Resamples by the same filter between rates with little in common, such as 44,101 and 16,000 Hz.

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
        sound.seek(max(0, sound.frames - 1 - missing_allowed(sound)))
        return len(sound.read(1)) == 1
    except (soundfile.LibsndfileError, ValueError):  # ValueError: it went beyond the end
        return False
