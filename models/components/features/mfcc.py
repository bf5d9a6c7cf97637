"""Mel-frequency cepstral coefficients (Davis and Mermelstein 1980)."""

import torch
from torch import Tensor
from torchaudio.functional import create_dct

from models.components.features.logmel import LogMel


class MFCC(LogMel):
    """The first `n_mfcc` coefficients of the discrete cosine transform of log-mel energies."""

    def __init__(self, *, n_mfcc: int = 40, n_mels: int = 80, **frames):
        if not 0 < n_mfcc <= n_mels:
            raise ValueError(f"n_mfcc {n_mfcc} must be 1 to n_mels {n_mels}")
        super().__init__(n_mfcc, n_mels=n_mels, **frames)
        with torch.device("cpu"):
            self.register_buffer("dct", create_dct(n_mfcc, n_mels, norm="ortho"), persistent=False)  # (n_mels, n_mfcc)

    def extract(self, waveforms: Tensor, sample_counts: Tensor) -> Tensor:
        """Returns (B, T, n_mfcc) coefficients of (B, S) float32 samples with (B,) counts."""
        return super().extract(waveforms, sample_counts) @ self.dct
