"""The feed-forward module of a pre-normalised residual network, frame by frame."""

from torch import nn


class FeedForward(nn.Sequential):
    """Layer normalisation, a wider layer with Swish, and a linear layer: (..., size) to (..., size).

    Args:
        width: hidden units.
        begin_at_zero: return zeros at first, so that a residual network begins as it was without this module
            (as the last scale of a residual branch in Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """

    def __init__(self, size: int, width: int, dropout: float, *, begin_at_zero: bool = False):
        if width < 1:
            raise ValueError(f"a feed-forward module of {width} units must have at least 1")
        last = nn.Linear(width, size)
        super().__init__(nn.LayerNorm(size), nn.Linear(size, width), nn.SiLU(), nn.Dropout(dropout),
                         last, nn.Dropout(dropout))
        if begin_at_zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
