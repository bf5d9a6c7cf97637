"""SpecAugment (Park et al. 2019, arXiv:1904.08779): time and frequency masks over features."""

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Frequency and time masks, drawn on the device for each utterance, in training only.

    A time mask starts anywhere in the utterance's own frames and is at most `time_width` frames
    and at most `time_share / time_masks` of the utterance: the policy's cap `p`, here on the
    masks' total, so that short utterances keep most of their speech. Masked values become 0, the
    mean of normalised features.
    """

    def __init__(self, *, freq_masks: int, freq_width: int, time_masks: int, time_width: int,
                 time_share: float):
        super().__init__()
        if not 0 <= time_share <= 1:
            raise ValueError(f"time_share {time_share} must be 0 to 1")
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share

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
        return features.masked_fill(masked, 0.0)


def _draw_masks(count: int, widest: Tensor, extent: Tensor, size: int) -> Tensor:
    """Returns (B, size) booleans: `count` spans of 0 to `widest` positions each, within the first `extent`."""
    draws = torch.rand(2, len(extent), count, device=extent.device)
    width = (draws[0] * (widest[:, None] + 1)).long()  # (B, count), uniform over 0..widest
    start = (draws[1] * (extent[:, None] - width + 1)).long()
    position = torch.arange(size, device=extent.device)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return inside.any(dim=1)
