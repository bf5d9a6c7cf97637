"""Waveforms to normalised features, inside the network and on its device."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from models.components.masks import Lengths, length_mask
from utils.audio import SAMPLE_RATE

FeatureNorm = Literal["utterance", "global", "none"]
VARIANCE_FLOOR = 1e-5


class Features(nn.Module, ABC):
    """Features of overlapping frames, float32 under every precision.

    Frame t is centred on sample `t * hop` and sees zeros beyond the utterance's ends, so an utterance
    has `1 + samples // hop` frames, whatever it is batched with.
    """

    def __init__(self, size: int, *, window_ms: float = 25.0, hop_ms: float = 10.0,
                 feature_norm: FeatureNorm = "utterance"):
        super().__init__()
        self.size = size  # features F per frame
        self.feature_norm = feature_norm
        self.window = round(SAMPLE_RATE * window_ms / 1000)  # samples
        self.hop = round(SAMPLE_RATE * hop_ms / 1000)  # samples
        if not 0 < self.hop <= self.window <= SAMPLE_RATE:
            raise ValueError(f"hop_ms {hop_ms} must be above 0 and at most window_ms {window_ms}, that at most 1000")
        self.register_buffer("mean", torch.zeros(size))  # of the training set, for "global"
        self.register_buffer("scale", torch.ones(size))

    @abstractmethod
    def extract(self, waveforms: Tensor, sample_counts: Tensor) -> Tensor:
        """Returns (B, T, F) features, not normalised, of (B, S) float32 samples with (B,) counts."""

    def _apply(self, fn, recurse=True):
        """Follows the network to its device, but stays float32 where its weights become less."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def lengths(self, sample_counts: Lengths) -> Lengths:
        """Returns the frames of `sample_counts` samples."""
        return 1 + sample_counts // self.hop

    def forward(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T, F) features, zero beyond each length, and (B,) lengths of (B, S) samples in [-1, 1]."""
        with torch.autocast(waveforms.device.type, enabled=False):
            features = self.extract(waveforms.float(), sample_counts)
            lengths = self.lengths(sample_counts)
            return zero_beyond(self._normalize(features, lengths), lengths), lengths

    def _normalize(self, features: Tensor, lengths: Tensor) -> Tensor:
        if self.feature_norm == "none":
            return features
        if self.feature_norm == "global":
            return (features - self.mean).mul_(self.scale)
        mean, variance = frame_moments(features, lengths)  # (B, 1, F) each
        return (features - mean).mul_((variance + VARIANCE_FLOOR).rsqrt())

    @property
    def has_statistics(self) -> bool:
        """Returns whether the mean and scale of "global" are set."""
        return bool((self.scale != 1).any())

    @torch.no_grad()
    def fit_global_statistics(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the mean and scale of "global" from `(waveforms, sample_counts)` of training audio."""
        count, total, squares = 0, 0.0, 0.0
        for waveforms, sample_counts in batches:
            lengths = self.lengths(sample_counts)
            features = zero_beyond(self.extract(waveforms.float(), sample_counts), lengths).double()
            count += int(lengths.sum())
            total = total + features.sum(dim=(0, 1))
            squares = squares + features.square().sum(dim=(0, 1))
        if not count:
            raise ValueError("no audio to take the global feature statistics from")
        mean = total / count
        self.mean.copy_(mean)
        self.scale.copy_((squares / count - mean.square() + VARIANCE_FLOOR).rsqrt())


def on_cpu(x: Tensor) -> bool:
    """Returns whether `x` holds values on a CPU, where asking for them costs nothing; an export has no values."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()


def zero_beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """Sets (B, T) samples or (B, T, F) frames to zero beyond each length, in place, and returns them.

    On a CPU it touches only what lies beyond the shortest length; to ask a GPU for that would make the host wait.
    """
    shortest = int(lengths.min()) if on_cpu(x) else 0
    valid = length_mask(lengths - shortest, x.shape[1] - shortest)
    x[:, shortest:] *= valid if x.dim() == 2 else valid[..., None]
    return x


def frame_moments(frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance over each utterance's valid frames: (B, T, F) to two (B, 1, F)."""
    valid = length_mask(lengths, frames.shape[1]).to(frames.dtype)
    share = (valid / lengths[:, None])[:, None]  # (B, 1, T), of each frame in the mean
    mean = share @ frames
    return mean, share @ (frames - mean).square_()
