"""Recurrent layers in one or two directions, and the normalisation before them: padding never reaches a valid frame."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.checkpointing import EncoderLayer
from models.components.masks import length_mask, reverse_frames
from models.mingru.layer import MinGRU, ScanSpace, keep_scan_uncompiled, run_directions

RNNType = Literal["gru", "lstm", "mingru"]
Norm = Literal["layer", "batch"]


class SequenceBatchNorm(nn.BatchNorm1d):
    """Sequence-wise batch normalisation (Amodei et al. 2015, section 3.2), over valid frames only.

    The paper normalises W h, the input's share of a recurrent layer's activations; here it is the
    layer's input h, since `nn.GRU` and `nn.LSTM` keep W to themselves.
    """

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H) to the same shape; padding becomes 0."""
        valid = length_mask(lengths, x.shape[1])
        out = torch.zeros_like(x)
        out[valid] = super().forward(x[valid]).to(x.dtype)
        return out


class SequenceLayerNorm(nn.LayerNorm):
    """Layer normalisation of every frame by itself."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H) to the same shape."""
        return super().forward(x)


NORMS = {"layer": SequenceLayerNorm, "batch": SequenceBatchNorm}


def build_rnn(rnn_type: RNNType, input_size: int, hidden_size: int, scan: ScanSpace) -> nn.Module:
    """One direction of one layer: (B, T, input_size) to a tuple that begins with (B, T, hidden_size)."""
    if rnn_type == "mingru":
        return MinGRU(input_size, hidden_size, scan=scan)
    return {"gru": nn.GRU, "lstm": nn.LSTM}[rnn_type](input_size, hidden_size, batch_first=True)


class RecurrentLayer(EncoderLayer):
    """A recurrent layer in one or two directions, which are concatenated."""

    def __init__(self, input_size: int, hidden_size: int, *, rnn_type: RNNType, bidirectional: bool = True,
                 scan: ScanSpace = "linear"):
        super().__init__()
        self.forwards = build_rnn(rnn_type, input_size, hidden_size, scan)
        self.backwards = build_rnn(rnn_type, input_size, hidden_size, scan) if bidirectional else None

    def compile(self, *args, **kwargs) -> None:
        """Compiles the layer, all but minGRU's scan."""
        keep_scan_uncompiled()
        super().compile(*args, **kwargs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, input_size) to (B, T, directions * hidden_size)."""
        if isinstance(self.forwards, MinGRU):
            layers = [self.forwards] if self.backwards is None else [self.forwards, self.backwards]
            return run_directions(layers, x, lengths)
        out = self.forwards(x)[0]
        if self.backwards is None:
            return out
        reverse = self.backwards(reverse_frames(x, lengths))[0]
        return torch.cat([out, reverse_frames(reverse, lengths)], dim=-1)


class RecurrentBlock(RecurrentLayer):
    """norm -> GELU -> recurrence -> dropout."""

    def __init__(self, input_size: int, hidden_size: int, *, rnn_type: RNNType, bidirectional: bool,
                 norm: Norm, dropout: float, scan: ScanSpace):
        super().__init__(input_size, hidden_size, rnn_type=rnn_type, bidirectional=bidirectional, scan=scan)
        self.norm = NORMS[norm](input_size)
        self.dropout = nn.Dropout(dropout)

    def recompute_in_backward(self) -> None:
        """Refuses where normalisation keeps statistics of the batches, with a ValueError that names the flags."""
        if isinstance(self.norm, SequenceBatchNorm):
            raise ValueError("--gradient_checkpointing would count every batch twice in the statistics of "
                             "--rnn_norm batch")
        super().recompute_in_backward()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, input_size) to (B, T, directions * hidden_size)."""
        return self.dropout(super().forward(F.gelu(self.norm(x, lengths)), lengths))
