"""What a room, noise, a microphone or a telephone does to speech, as factors and terms of its spectrum.

Synthetic corpora are recorded with them (`data/synthetic/conditions.py`), and training changes waveforms by them
(`data/augment.py`).
"""

import math

import numpy as np
import torch
from torch import Tensor

from utils.audio import SAMPLE_RATE

TELEPHONE_BAND = (300, 3400)  # Hz
NOISE_SLOPE = (0.0, 2.0)  # power of the frequency that the noise's power falls with: 0 white, 1 pink, 2 brown
LOWEST_NOISE = 30.0  # Hz, below which coloured noise does not grow


def fast_size(length: int) -> int:
    """Returns an even size of at least `length` whose Fourier transform is fast: few bits, then zeros."""
    step = 1 << max(1, length.bit_length() - 4)
    return -(-length // step) * step


def frequencies_of(size: int) -> Tensor:
    """Returns the frequencies in Hz, (size // 2 + 1,), of the spectrum of `size` samples."""
    return torch.arange(size // 2 + 1) * (SAMPLE_RATE / size)


def energy(spectrum: Tensor) -> float:
    """Returns the sum of the squares of a complex spectrum."""
    return float(torch.view_as_real(spectrum).square().sum())


def impulse_response(samples: int, seconds: float, level: float, random_numbers: np.random.Generator) -> Tensor:
    """Returns a room's (samples,) impulse response: the direct sound, and noise that dies away.

    Args:
        seconds: until the noise has fallen by 60 dB.
        level: root of the noise's energy, the direct sound being 1.
    """
    times = np.arange(samples, dtype=np.float32) / SAMPLE_RATE
    tail = random_numbers.standard_normal(samples, dtype=np.float32)
    tail *= np.exp(-math.log(1000) * times / seconds)
    tail *= level / np.linalg.norm(tail)
    tail[0] = 1
    return torch.from_numpy(tail)


def microphone(frequencies: Tensor, tilt: float) -> Tensor:
    """Returns the response of the filter x[n] - tilt x[n-1]: a microphone's and a distance's colour."""
    return 1 - torch.polar(torch.full_like(frequencies, tilt), -2 * math.pi * frequencies / SAMPLE_RATE)


def coloured_noise(frequencies: Tensor, slope: float, random_numbers: np.random.Generator) -> Tensor:
    """Returns the spectrum of noise whose power falls with the frequency to the power `slope`."""
    numbers = random_numbers.standard_normal((len(frequencies), 2), dtype=np.float32)
    return torch.view_as_complex(torch.from_numpy(numbers)) * frequencies.clamp(min=LOWEST_NOISE) ** (-slope / 2)


def telephone(frequencies: Tensor, band: tuple[float, float] = TELEPHONE_BAND) -> Tensor:
    """Returns the gains of a telephone's band, from and to Hz: about 24 dB an octave below it, 72 above."""
    low, high = band
    return 1 / (1 + (low / frequencies.clamp(min=1)) ** 8 + (frequencies / high) ** 24).sqrt()


def with_codec_noise(waveform: Tensor, decibels: float, random_numbers: np.random.Generator) -> Tensor:
    """Returns the (S,) waveform with white noise that follows its level at each moment, `decibels` below.

    So sound codecs, from a telephone's logarithmic steps (ITU-T G.711) to today's: their noise hides beneath what is
    loud, and is there in all bands, also in those where the speech has nothing.
    """
    noise = torch.from_numpy(random_numbers.standard_normal(len(waveform), dtype=np.float32))
    return waveform + waveform * noise * 10 ** (-decibels / 20)
