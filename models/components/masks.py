"""Padding masks: which frames of a padded batch are valid.

Sequences are (B, T, features) with (B,) integer lengths; images are (B, C, T, F).
"""

from typing import TypeVar

import torch
from torch import Tensor

Lengths = TypeVar("Lengths", Tensor, int)  # of the utterances of a batch, or of one


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns (B, size) booleans, true where a position lies within its utterance's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns (B, T, features) or (B, C, T, F) with zeros beyond each length."""
    mask = length_mask(lengths, x.shape[-2])[..., None]  # (B, T, 1)
    return x.masked_fill(~(mask[:, None] if x.dim() == 4 else mask), 0.0)


def reverse_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns (B, T, H) with each utterance's valid frames back to front and its padding where it was.

    It is its own inverse. A recurrent layer over the reversed frames starts at the utterance's
    own last frame, which matches packed sequences and needs neither packing nor a
    synchronisation with the host.
    """
    position = torch.arange(x.shape[1], device=x.device)
    reverse = lengths[:, None] - 1 - position
    index = torch.where(reverse >= 0, reverse, position)  # (B, T)
    return x.gather(1, index[..., None].expand_as(x))
