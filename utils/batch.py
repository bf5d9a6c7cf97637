"""The one structure that travels from the data to the models."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B utterances, zero-padded at the end to the longest of them."""

    waveforms: Tensor  # (B, S) float32, 16 kHz mono
    sample_counts: Tensor  # (B,) int64, valid samples of each waveform
    tokens: Tensor  # (B, U) int64, padded with the blank
    token_counts: Tensor  # (B,) int64
    texts: list[str]  # normalised references
    ids: list[str]
    skipped: list[str]  # files that were left out of this batch, by path
