"""What a recording adds to speech: a level and noise, and with `varied` a room, a microphone or a telephone."""

import functools
import math
import random

import numpy as np
import torch

from data.acoustics import (
    NOISE_SLOPE,
    coloured_noise,
    energy,
    fast_size,
    frequencies_of,
    impulse_response,
    microphone,
    telephone,
)
from utils.audio import SAMPLE_RATE

PEAK = (0.25, 0.95)  # the loudest sample, of full scale
NOISE_DB = (20, 40)  # speech over white noise
VARIED_NOISE_DB = (12, 45)
ROOM_SHARE = 0.4  # of the utterances
ROOM_SECONDS = (0.08, 0.5)  # until a room's sound has fallen by 60 dB
ROOM_LEVEL = (0.1, 0.7)  # root of the reverberation's energy, the direct sound being 1
TELEPHONE_SHARE = 0.1
TILT = 0.35  # most of a filter x[n] - tilt x[n-1], either way: a microphone's and a distance's colour
SILENCE = (0.0, 0.4)  # seconds before and after


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
    size = fast_size(length + (round(SAMPLE_RATE * ROOM_SECONDS[1]) if in_room else 0))
    frequencies = frequencies_of(size)
    speech = torch.fft.rfft(torch.from_numpy(np.pad(wave, (before, size - before - len(wave)))))
    if in_room:
        room = impulse_response(round(SAMPLE_RATE * ROOM_SECONDS[1]), rng.uniform(*ROOM_SECONDS),
                                rng.uniform(*ROOM_LEVEL), random_numbers)
        speech *= torch.fft.rfft(room, size)
    speech *= microphone(frequencies, rng.uniform(-TILT, TILT))
    noise = coloured_noise(frequencies, rng.uniform(*NOISE_SLOPE), random_numbers)
    noise_db = rng.uniform(*VARIED_NOISE_DB) + 10 * math.log10(length / len(wave))  # of the speech, without the silence
    recorded = speech + noise * (energy(speech) / energy(noise) * 10 ** (-noise_db / 10)) ** 0.5
    if rng.random() < TELEPHONE_SHARE:
        recorded *= telephone(frequencies)
    return _set_level(torch.fft.irfft(recorded, size)[:length].numpy(), rng)


def _set_level(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.round(wave * (rng.uniform(*PEAK) * 32767 / np.abs(wave).max())).astype(np.int16)


RECORDINGS = {"plain": record_plainly, "varied": record_variedly}
