"""What a recording adds to speech: a level and noise, and with `varied` a room, a microphone or a telephone."""

import functools
import math
import random

import numpy as np
import torch
from torch import Tensor

from utils.audio import SAMPLE_RATE

PEAK = (0.25, 0.95)  # the loudest sample, of full scale
NOISE_DB = (20, 40)  # speech over white noise
VARIED_NOISE_DB = (12, 45)
NOISE_SLOPE = (0.0, 2.0)  # power of the frequency that the noise's power falls with: 0 white, 1 pink, 2 brown
ROOM_SHARE = 0.4  # of the utterances
ROOM_SECONDS = (0.08, 0.5)  # until a room's sound has fallen by 60 dB
ROOM_LEVEL = (0.1, 0.7)  # root of the reverberation's energy, the direct sound being 1
TELEPHONE_SHARE = 0.1
TELEPHONE_BAND = (300, 3400)  # Hz
TILT = 0.35  # most of a filter x[n] - tilt x[n-1], either way: a microphone's and a distance's colour
SILENCE = (0.0, 0.4)  # seconds before and after
LOWEST_NOISE = 30.0  # Hz, below which coloured noise does not grow


@functools.cache
def _resampler(rate: int) -> torch.nn.Module:
    """Returns the module from `rate` to 16 kHz, kept because its filters take as long as an utterance."""
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns (S,) float32 samples at 16 kHz."""
    return _resampler(rate)(torch.from_numpy(samples.astype(np.float32))).numpy()


def record_plainly(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Adds low white noise and a level: (S,) float32 to (S,) int16."""
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(wave), dtype=np.float32)
    wave = wave + noise * np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return _set_level(wave, rng)


def record_variedly(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Adds silence, a room, a microphone's colour, coloured noise, a telephone's band and a level.

    (S,) float32 to (S',) int16. All filters work on one spectrum, to which the noise is added as a spectrum too.
    """
    before, after = (round(SAMPLE_RATE * rng.uniform(*SILENCE)) for _ in range(2))
    random_numbers = np.random.default_rng(rng.getrandbits(64))
    in_room = rng.random() < ROOM_SHARE
    length = before + len(wave) + after
    size = _fast_size(length + (round(SAMPLE_RATE * ROOM_SECONDS[1]) if in_room else 0))
    frequencies = torch.arange(size // 2 + 1) * (SAMPLE_RATE / size)  # Hz
    speech = torch.fft.rfft(torch.from_numpy(np.pad(wave, (before, size - before - len(wave)))))
    if in_room:
        speech *= torch.fft.rfft(_room(rng, random_numbers), size)
    tilt = rng.uniform(-TILT, TILT)
    speech *= 1 - torch.polar(torch.full_like(frequencies, tilt), -2 * math.pi * frequencies / SAMPLE_RATE)
    noise = _coloured_noise(frequencies, rng.uniform(*NOISE_SLOPE), random_numbers)
    noise_db = rng.uniform(*VARIED_NOISE_DB) + 10 * math.log10(length / len(wave))  # of the speech, without the silence
    recorded = speech + noise * (_energy(speech) / _energy(noise) * 10 ** (-noise_db / 10)) ** 0.5
    if rng.random() < TELEPHONE_SHARE:
        low, high = TELEPHONE_BAND
        recorded *= 1 / (1 + (low / frequencies.clamp(min=1)) ** 8 + (frequencies / high) ** 24).sqrt()
    return _set_level(torch.fft.irfft(recorded, size)[:length].numpy(), rng)


def _room(rng: random.Random, random_numbers: np.random.Generator) -> Tensor:
    """Returns an impulse response: the direct sound, and noise that falls by 60 dB in the room's time."""
    count = round(SAMPLE_RATE * ROOM_SECONDS[1])
    seconds = np.arange(count, dtype=np.float32) / SAMPLE_RATE
    tail = random_numbers.standard_normal(count, dtype=np.float32)
    tail *= np.exp(-math.log(1000) * seconds / rng.uniform(*ROOM_SECONDS))
    tail *= rng.uniform(*ROOM_LEVEL) / np.linalg.norm(tail)
    tail[0] = 1
    return torch.from_numpy(tail)


def _energy(spectrum: Tensor) -> float:
    return float(torch.view_as_real(spectrum).square().sum())


def _coloured_noise(frequencies: Tensor, slope: float, random_numbers: np.random.Generator) -> Tensor:
    """Returns the spectrum of noise whose power falls with the frequency to the power `slope`."""
    numbers = random_numbers.standard_normal((len(frequencies), 2), dtype=np.float32)
    return torch.view_as_complex(torch.from_numpy(numbers)) * frequencies.clamp(min=LOWEST_NOISE) ** (-slope / 2)


def _fast_size(length: int) -> int:
    """Returns an even size of at least `length` whose Fourier transform is fast: few bits, then zeros."""
    step = 1 << max(1, length.bit_length() - 4)
    return -(-length // step) * step


def _set_level(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.round(wave * (rng.uniform(*PEAK) * 32767 / np.abs(wave).max())).astype(np.int16)


RECORDINGS = {"plain": record_plainly, "varied": record_variedly}
