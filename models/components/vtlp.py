"""Vocal tract length perturbation (Jaitly and Hinton 2013): mel spectrograms as of a longer or shorter vocal tract."""

import math

import torch
from torch import Tensor, nn

from utils.audio import SAMPLE_RATE

HIGHEST = SAMPLE_RATE / 2  # Hz; stays where it is
HIGHEST_FORMANT = 4800.0  # Hz, the paper's; formants below it all move by one factor


class VTLP(nn.Module):
    """Scales the frequency axis by a factor drawn for each utterance, in training only.

    Args:
        bins: mel bins F.
        width: the factor is 1 - width to 1 + width; 0 for none.
    """

    def __init__(self, bins: int, width: float):
        super().__init__()
        if not 0 <= width <= 0.5:
            raise ValueError(f"freq_warp {width} must be 0 to 0.5")
        self.width, self.step = width, _mel(torch.tensor(HIGHEST, device="cpu")).item() / (bins + 1)
        centres = _hertz(self.step * torch.arange(1, bins + 1, device="cpu"))
        self.register_buffer("centres", centres, persistent=False)  # (F,) Hz

    def forward(self, features: Tensor) -> Tensor:
        """Returns (B, T, F) log-mel features as they would be at scaled frequencies, interpolated between bins."""
        if not (self.training and self.width):
            return features
        factors = 1 + self.width * (2 * torch.rand(len(features), 1, device=features.device) - 1)
        last = features.shape[-1] - 1
        position = (_mel(warp_frequencies(self.centres, factors)) / self.step - 1).clamp(0, last)  # (B, F)
        below = position.long().clamp(max=max(last - 1, 0))
        share = (position - below)[:, None].to(features.dtype)
        index = below[:, None].expand_as(features)
        return torch.lerp(features.gather(2, index), features.gather(2, (index + 1).clamp(max=last)), share)


def warp_frequencies(frequencies: Tensor, factors: Tensor) -> Tensor:
    """Returns (B, F) of (F,) Hz: times the (B, 1) factors where formants are, above them so that the highest stays."""
    bend = HIGHEST_FORMANT * factors.clamp(max=1.0)  # where the highest formant comes to lie
    slope = (HIGHEST - bend) / (HIGHEST - bend / factors)
    return torch.where(frequencies <= bend / factors, frequencies * factors, HIGHEST - slope * (HIGHEST - frequencies))


def _mel(hertz: Tensor) -> Tensor:
    return 2595.0 / math.log(10.0) * torch.log1p(hertz / 700.0)


def _hertz(mel: Tensor) -> Tensor:
    return 700.0 * torch.expm1(mel * (math.log(10.0) / 2595.0))
