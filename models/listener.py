"""The listener of Listen, Attend and Spell (Chan et al. 2015, arXiv:1508.01211v2, section 3.1): a pyramidal BiLSTM."""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.components.convolution import VGG, ConvFrontend, halve
from models.components.masks import Lengths, mask_frames
from models.components.recurrent import RecurrentLayer

Frontend = Literal["none", "vgg", "rescnn"]


class ListenerOutput(NamedTuple):
    """Frames of B utterances for the speller and for CTC."""

    frames: Tensor  # (B, T, H)
    lengths: Tensor  # (B,) int64
    ctc_frames: Tensor  # (B, T', H') of the deepest layer that joins at most four feature frames
    ctc_lengths: Tensor  # (B,) int64


class PyramidalLayer(RecurrentLayer):
    """Joins neighbouring frames, which halves the time, then normalisation and a BiLSTM: the paper's pBLSTM."""

    def __init__(self, input_size: int, hidden_size: int, dropout: float):
        super().__init__(2 * input_size, hidden_size, rnn_type="lstm")
        self.norm = nn.LayerNorm(2 * input_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, ceil(T / 2), 2 * hidden_size) of (B, T, input_size); a last odd frame is joined with zeros."""
        x = F.pad(mask_frames(x, lengths), (0, 0, 0, x.shape[1] % 2))
        x, lengths = x.unflatten(1, (-1, 2)).flatten(2), halve(lengths)
        return self.dropout(super().forward(self.norm(x), lengths)), lengths


class Listener(nn.Module):
    """[convolutions,] a BiLSTM, and `layers` pyramidal ones above it."""

    def __init__(self, n_mels: int, size: int, layers: int, *, frontend: Frontend, conv_channels: int,
                 residual_blocks: int, dropout: float):
        super().__init__()
        self.frontend = None
        if frontend == "vgg":
            self.frontend = VGG(conv_channels, n_mels)
        elif frontend == "rescnn":
            self.frontend = ConvFrontend(conv_channels, n_mels, residual_blocks, time_stride=4, dropout=dropout)
        self.bottom = RecurrentLayer(self.frontend.outputs if self.frontend else n_mels, size, rnn_type="lstm")
        self.dropout = nn.Dropout(dropout)
        self.pyramid = nn.ModuleList(PyramidalLayer(2 * size, size, dropout) for _ in range(layers))
        self.outputs = 2 * size
        self.reduction = (4 if self.frontend else 1) * 2**layers  # feature frames per frame
        # The centre of frame 0, in feature frames: strided convolutions keep the place of the first of the frames that
        # they stand for, pooling and pyramidal layers join frames.
        strided = 4 if frontend == "rescnn" else 1
        self.first_centre = (self.reduction - strided) / 2
        self.ctc_layers = 0 if self.frontend else min(layers, 2)  # pyramidal layers below CTC, four frames in one
        self.ctc_reduction = 4 if self.frontend else 2**self.ctc_layers  # feature frames per CTC frame

    def forward(self, features: Tensor, lengths: Tensor) -> ListenerOutput:
        """Returns the output for (B, T, F) features with (B,) lengths."""
        if self.frontend is not None:
            features, lengths = self.frontend(features, lengths)
        x = self.dropout(self.bottom(features, lengths))
        ctc = x, lengths
        for i, layer in enumerate(self.pyramid, start=1):
            x, lengths = layer(x, lengths)
            ctc = (x, lengths) if i == self.ctc_layers else ctc
        return ListenerOutput(mask_frames(x, lengths), lengths, mask_frames(*ctc), ctc[1])

    def output_length(self, frames: Lengths) -> Lengths:
        """Returns the CTC frames of `frames` feature frames."""
        frames = frames if self.frontend is None else self.frontend.output_length(frames)
        for _ in range(self.ctc_layers):
            frames = halve(frames)
        return frames
