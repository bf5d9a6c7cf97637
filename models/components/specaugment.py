"""SpecAugment (Park et al. 2019, arXiv:1904.08779): time and frequency masks over features, without time warping."""

import torch
from torch import Tensor, nn

from models.components.masks import length_mask


class SpecAugment(nn.Module):
    """Frequency and time masks, drawn on the device for each utterance, in training only.

    A time mask starts anywhere in the utterance's own frames and is at most `time_width` frames
    and at most `time_share / time_masks` of the utterance: the policy's cap `p`, here on the
    masks' total, so that short utterances keep most of their speech. Masked values become 0, the
    mean of normalised features, or the utterance's mean with `fill_with_mean`, for features that are not.
    """

    def __init__(self, *, freq_masks: int, freq_width: int, time_masks: int, time_width: int,
                 time_share: float, fill_with_mean: bool = False):
        super().__init__()
        if not 0 <= time_share <= 1:
            raise ValueError(f"time_share {time_share} must be 0 to 1")
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share
        self.fill_with_mean = fill_with_mean

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Returns masked (B, T, F) features with (B,) lengths; `features` itself is left as it was."""
        if not self.training:
            return features
        batch, frames, bins = features.shape
        masked = torch.zeros(batch, frames, bins, dtype=torch.bool, device=features.device)
        if self.freq_masks:
            extent = torch.full_like(lengths, bins)
            widest = torch.full_like(lengths, min(self.freq_width, bins))
            masked |= _draw_masks(self.freq_masks, widest, extent, bins)[:, None, :]
        if self.time_masks:
            capped = (lengths * (self.time_share / self.time_masks)).long().clamp(max=self.time_width)
            masked |= _draw_masks(self.time_masks, capped, lengths, frames)[:, :, None]
        if not self.fill_with_mean:
            return features.masked_fill(masked, 0.0)
        mean = features.sum(dim=(1, 2)) / (lengths * bins)  # beyond its length an utterance's features are 0
        return torch.where(masked & length_mask(lengths, frames)[..., None], mean[:, None, None], features)


def _draw_masks(count: int, widest: Tensor, extent: Tensor, size: int) -> Tensor:
    """Returns (B, size) booleans: `count` spans of 0 to `widest` positions each, within the first `extent`."""
    draws = torch.rand(2, len(extent), count, device=extent.device)
    width = (draws[0] * (widest[:, None] + 1)).long()  # (B, count), uniform over 0..widest
    start = (draws[1] * (extent[:, None] - width + 1)).long()
    position = torch.arange(size, device=extent.device)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return inside.any(dim=1)
