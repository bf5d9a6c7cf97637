"""Log-mel spectrograms."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from models.components.features.base import Features, on_cpu, zero_beyond
from utils.audio import SAMPLE_RATE

MAX_MELS = 512
FLOOR = 1e-6  # of mel energies, for samples in [-1, 1]: about the noise of 16-bit audio
CACHED_FRAMES = 1024  # at a time on a CPU, whose cache holds them from the waveform to the logarithm: 4 times faster


class LogMel(Features):
    """Logarithms of the energies in `n_mels` triangular mel filters, under a Hann window."""

    def __init__(self, size: int | None = None, *, n_mels: int = 80, **frames):
        if not 0 < n_mels <= MAX_MELS:
            raise ValueError(f"n_mels {n_mels} must be 1 to {MAX_MELS}")
        super().__init__(size or n_mels, **frames)
        filters = mel_filters(n_mels, self.window)
        self.bands = mel_bands(filters)
        self.n_fft = 2 * (len(filters) - 1)
        self.register_buffer("filters", filters, persistent=False)  # (n_fft // 2 + 1, n_mels)
        self.register_buffer("hann", torch.hann_window(self.window, device="cpu"), persistent=False)

    def extract(self, waveforms: Tensor, sample_counts: Tensor) -> Tensor:
        """Returns (B, T, n_mels) log energies of (B, S) float32 samples with (B,) counts."""
        half = self.window // 2
        padded = zero_beyond(F.pad(waveforms, (half, self.n_fft - half)), half + sample_counts)
        frames = padded.unfold(1, self.n_fft, self.hop)[:, : self.lengths(waveforms.shape[1])]  # (B, T, n_fft)
        if not on_cpu(frames):
            return self._log_energies(frames)
        at_once = max(1, CACHED_FRAMES // len(frames))
        return torch.cat([self._log_energies(some) for some in frames.split(at_once, dim=1)], dim=1)

    def _log_energies(self, frames: Tensor) -> Tensor:
        """Returns (B, T, n_mels) of (B, T, n_fft) samples, of which the first `window` count."""
        spectrum = torch.fft.rfft(frames * F.pad(self.hann, (0, self.n_fft - self.window)))
        power = torch.add(*torch.view_as_real(spectrum).square().unbind(-1))  # (B, T, n_fft // 2 + 1)
        bands = self.bands if on_cpu(power) else [(slice(None), slice(None))]
        mel = torch.cat([power[..., bins] @ self.filters[bins, mels] for bins, mels in bands], dim=-1)
        return mel.clamp_min(FLOOR).log_()


def mel_filters(n_mels: int, window: int) -> Tensor:
    """Returns triangular mel filters, (n_fft // 2 + 1, n_mels), for windows of `window` samples.

    n_fft is the smallest power of two, from the window's length on, that gives every filter a
    frequency: narrow low filters fall between the bins of a short transform and would be constant.
    """
    n_fft = 1 << (window - 1).bit_length()
    while True:
        with warnings.catch_warnings(), torch.device("cpu"):  # values, even where a network is built on "meta"
            warnings.simplefilter("ignore")  # torchaudio's own warning about the empty filters
            filters = melscale_fbanks(n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE)
        if filters.any(dim=0).all():
            return filters
        n_fft *= 2


def mel_bands(filters: Tensor, count: int = 5) -> list[tuple[slice, slice]]:
    """Returns pairs of frequency bins and neighbouring filters: a block-diagonal product, a third of the whole one."""
    bands = []
    for mels in torch.arange(filters.shape[1], device="cpu").tensor_split(min(count, filters.shape[1])):
        mels = slice(int(mels[0]), int(mels[-1]) + 1)
        bins = filters[:, mels].any(dim=1).nonzero()
        bands.append((slice(int(bins.min()), int(bins.max()) + 1), mels))
    return bands
