"""Waveforms to normalised log-mel spectrograms, inside the network and on its device."""

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from models.components.masks import length_mask
from utils.audio import SAMPLE_RATE

FeatureNorm = Literal["utterance", "global", "none"]
MOST_MELS = 512
FLOOR = 1e-6  # of mel energies, for samples in [-1, 1]: about the noise of 16-bit audio
VARIANCE_FLOOR = 1e-5
CACHED_FRAMES = 1024  # at a time on a CPU, whose cache holds them from the waveform to the logarithm: 4 times faster


class LogMel(nn.Module):
    """Log-mel filterbank energies, float32 under every precision.

    Frame t is centred on sample `t * hop` and sees zeros beyond the utterance's ends, so an
    utterance has `1 + samples // hop` frames, whatever it is batched with.
    """

    def __init__(self, *, n_mels: int = 80, window_ms: float = 25.0, hop_ms: float = 10.0,
                 feature_norm: FeatureNorm = "utterance", sample_rate: int = SAMPLE_RATE):
        super().__init__()
        self.feature_norm = feature_norm
        self.size = n_mels
        self.window = round(sample_rate * window_ms / 1000)  # samples
        self.hop = round(sample_rate * hop_ms / 1000)  # samples
        if not 0 < self.hop <= self.window <= sample_rate:
            raise ValueError(f"hop_ms {hop_ms} must be above 0 and at most window_ms {window_ms}, that at most 1000")
        if not 0 < n_mels <= MOST_MELS:
            raise ValueError(f"n_mels {n_mels} must be 1 to {MOST_MELS}")
        filters = mel_filters(n_mels, self.window, sample_rate)
        self.bands = mel_bands(filters)
        self.n_fft = 2 * (len(filters) - 1)
        self.register_buffer("filters", filters, persistent=False)  # (n_fft // 2 + 1, F)
        self.register_buffer("hann", torch.hann_window(self.window, device="cpu"), persistent=False)
        self.register_buffer("mean", torch.zeros(n_mels))  # of the training set, for "global"
        self.register_buffer("scale", torch.ones(n_mels))

    def _apply(self, fn, recurse=True):
        """Follows the network to its device, but stays float32 where its weights become less."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def lengths(self, sample_counts: Tensor) -> Tensor:
        """(B,) samples to (B,) frames, integers."""
        return 1 + sample_counts // self.hop

    def forward(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) samples in [-1, 1] to (B, T, F) features, zero beyond each length, and (B,) lengths."""
        with torch.autocast(waveforms.device.type, enabled=False):
            log_mel = self._log_mel(waveforms.float(), sample_counts)
            lengths = self.lengths(sample_counts)
            return zero_beyond(self._normalize(log_mel, lengths), lengths), lengths

    def _log_mel(self, waveforms: Tensor, sample_counts: Tensor) -> Tensor:
        half = self.window // 2
        padded = zero_beyond(F.pad(waveforms, (half, self.n_fft - half)), half + sample_counts)
        frames = padded.unfold(1, self.n_fft, self.hop)[:, : 1 + waveforms.shape[1] // self.hop]  # (B, T, n_fft)
        at_once = max(1, CACHED_FRAMES // len(frames)) if frames.device.type == "cpu" else frames.shape[1]
        return torch.cat([self._log_mel_of(some) for some in frames.split(at_once, dim=1)], dim=1)

    def _log_mel_of(self, frames: Tensor) -> Tensor:
        """(B, T, n_fft) samples, of which the first `window` count, to (B, T, F)."""
        spectrum = torch.fft.rfft(frames * F.pad(self.hann, (0, self.n_fft - self.window)))
        power = torch.add(*torch.view_as_real(spectrum).square().unbind(-1))  # (B, T, n_fft // 2 + 1)
        bands = self.bands if power.device.type == "cpu" else [(slice(None), slice(None))]
        mel = torch.cat([power[..., bins] @ self.filters[bins, mels] for bins, mels in bands], dim=-1)
        return mel.clamp_min(FLOOR).log_()

    def _normalize(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        if self.feature_norm == "none":
            return log_mel
        if self.feature_norm == "global":
            return (log_mel - self.mean).mul_(self.scale)
        mean, variance = frame_moments(log_mel, lengths)  # (B, 1, F) each
        return (log_mel - mean).mul_((variance + VARIANCE_FLOOR).rsqrt())

    @torch.no_grad()
    def fit_global_statistics(self, batches) -> None:
        """Sets the mean and scale of "global" from `(waveforms, sample_counts)` of training audio."""
        count, total, squares = 0, 0.0, 0.0
        for waveforms, sample_counts in batches:
            lengths = self.lengths(sample_counts)
            log_mel = zero_beyond(self._log_mel(waveforms.float(), sample_counts), lengths).double()
            count += int(lengths.sum())
            total = total + log_mel.sum(dim=(0, 1))
            squares = squares + log_mel.square().sum(dim=(0, 1))
        if not count:
            raise ValueError("no audio to take the global feature statistics from")
        mean = total / count
        self.mean.copy_(mean)
        self.scale.copy_((squares / count - mean.square() + VARIANCE_FLOOR).rsqrt())


def zero_beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """Sets (B, T) samples or (B, T, F) frames to zero beyond each length, in place.

    On a CPU it touches only what lies beyond the shortest; to ask a GPU for that would make the host wait.
    """
    shortest = int(lengths.min()) if x.device.type == "cpu" else 0
    valid = length_mask(lengths - shortest, x.shape[1] - shortest)
    x[:, shortest:] *= valid if x.dim() == 2 else valid[..., None]
    return x


def mel_filters(n_mels: int, window: int, sample_rate: int) -> Tensor:
    """Triangular mel filters, (n_fft // 2 + 1, n_mels).

    n_fft is the smallest power of two, from the window's length on, that gives every filter a
    frequency: narrow low filters fall between the bins of a short transform and would be constant.
    """
    n_fft = 1 << (window - 1).bit_length()
    while True:
        with warnings.catch_warnings(), torch.device("cpu"):  # values, also where a network is shapes
            warnings.simplefilter("ignore")  # torchaudio's own word about the empty filters
            filters = melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate)
        if filters.any(dim=0).all():
            return filters
        n_fft *= 2


def mel_bands(filters: Tensor, count: int = 5) -> list[tuple[slice, slice]]:
    """Runs of neighbouring filters, and the frequencies beyond which they are zero: a third of the whole product."""
    bands = []
    for mels in torch.arange(filters.shape[1], device="cpu").tensor_split(min(count, filters.shape[1])):
        mels = slice(int(mels[0]), int(mels[-1]) + 1)
        bins = filters[:, mels].any(dim=1).nonzero()
        bands.append((slice(int(bins.min()), int(bins.max()) + 1), mels))
    return bands


def frame_moments(frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over each utterance's valid frames: (B, T, F) to two (B, 1, F)."""
    valid = length_mask(lengths, frames.shape[1]).to(frames.dtype)
    share = (valid / lengths[:, None])[:, None]  # (B, 1, T), of each frame in the mean
    mean = share @ frames
    return mean, share @ (frames - mean).square_()
