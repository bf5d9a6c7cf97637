"""Recurrent layers in one or two directions, and the normalisation before them: padding never reaches a valid frame."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.convolution import ShortConv
from models.components.encoder_layer import EncoderLayer
from models.components.feedforward import FeedForward
from models.components.masks import length_mask, mask_frames, reverse_frames
from models.mingru.fused import exclude_scan_from_compile, fused_directions
from models.mingru.layer import MinGRU, ScanType

RNNType = Literal["gru", "lstm", "mingru"]
Norm = Literal["layer", "batch"]


class SequenceBatchNorm(nn.BatchNorm1d):
    """Sequence-wise batch normalisation (Amodei et al. 2015, section 3.2), over valid frames only.

    The paper normalises W h, the input's share of a recurrent layer's activations; here it is the
    layer's input h, since `nn.GRU` and `nn.LSTM` keep W to themselves.
    """

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the normalised (B, T, H) frames; padding becomes 0."""
        if not self.training:  # elementwise then, as `nn.BatchNorm1d` is
            return mask_frames(super().forward(x.transpose(1, 2)).transpose(1, 2).to(x.dtype), lengths)
        valid = length_mask(lengths, x.shape[1])
        out = torch.zeros_like(x)
        out[valid] = super().forward(x[valid]).to(x.dtype)
        return out


class SequenceLayerNorm(nn.LayerNorm):
    """Layer normalisation of each frame by itself, with the interface of `SequenceBatchNorm`."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the normalised (B, T, H) frames."""
        return super().forward(x)


NORMS = {"layer": SequenceLayerNorm, "batch": SequenceBatchNorm}


def build_rnn(rnn_type: RNNType, input_size: int, hidden_size: int, scan: ScanType) -> nn.Module:
    """Returns one direction of one layer: (B, T, input_size) to a tuple that begins with (B, T, hidden_size)."""
    if rnn_type == "mingru":
        return MinGRU(input_size, hidden_size, scan=scan)
    return {"gru": nn.GRU, "lstm": nn.LSTM}[rnn_type](input_size, hidden_size, batch_first=True)


class RecurrentLayer(EncoderLayer):
    """A recurrent layer in one or two directions, which are concatenated.

    The second direction reads each utterance back to front from its own last frame, which gives the outputs of packed
    sequences without packing.
    """

    def __init__(self, input_size: int, hidden_size: int, *, rnn_type: RNNType, bidirectional: bool = True,
                 scan: ScanType = "linear"):
        super().__init__()
        self.forwards = build_rnn(rnn_type, input_size, hidden_size, scan)
        self.backwards = build_rnn(rnn_type, input_size, hidden_size, scan) if bidirectional else None
        state = 1, 1, hidden_size
        self.state_shapes = {"mingru": [state[1:]], "gru": [state], "lstm": [state, state]}[rnn_type]  # of one stream

    def compile(self, *args, **kwargs) -> None:
        """Compiles the layer, all but minGRU's scan."""
        exclude_scan_from_compile()
        super().compile(*args, **kwargs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, T, directions * hidden_size) of (B, T, input_size)."""
        if isinstance(self.forwards, MinGRU) and self.forwards.scan == "linear":
            directions = [self.forwards] if self.backwards is None else [self.forwards, self.backwards]
            return fused_directions([direction.linear for direction in directions], x, lengths)
        out = self.forwards(x)[0]
        if self.backwards is None:
            return out
        reverse = self.backwards(reverse_frames(x, lengths))[0]
        return torch.cat([out, reverse_frames(reverse, lengths)], dim=-1)


class RecurrentBlock(RecurrentLayer):
    """Normalisation, perhaps a short convolution, GELU, a recurrent layer, dropout; perhaps a feed-forward module.

    With all three of the options it has what the language model of minGRU's paper has in a layer (a convolution, minGRU
    and an MLP), the first two of them under one residual connection.

    Args:
        conv: frames of the convolution, 0 for none.
        residual: add the input to the output, where they are of one size (He et al. 2016).
        feedforward: hidden units of a residual feed-forward module, which adds zero at first; 0 for none.
    """

    def __init__(self, input_size: int, hidden_size: int, *, rnn_type: RNNType, bidirectional: bool,
                 norm: Norm, dropout: float, scan: ScanType, conv: int = 0, residual: bool = False,
                 feedforward: int = 0):
        super().__init__(input_size, hidden_size, rnn_type=rnn_type, bidirectional=bidirectional, scan=scan)
        self.norm = NORMS[norm](input_size)
        self.conv = ShortConv(input_size, conv, causal=not bidirectional) if conv else None
        self.dropout = nn.Dropout(dropout)
        outputs = hidden_size * (2 if bidirectional else 1)
        self.residual = residual and input_size == outputs
        self.feedforward = FeedForward(outputs, feedforward, dropout, begin_at_zero=True) if feedforward else None
        if conv:
            self.state_shapes = [*self.state_shapes, (1, conv - 1, input_size)]

    def recompute_in_backward(self) -> None:
        """Refuses batch normalisation, which keeps statistics, by a ValueError that names the flags."""
        if isinstance(self.norm, SequenceBatchNorm):
            raise ValueError("--gradient_checkpointing would count every batch twice in the statistics of "
                             "--rnn_norm batch")
        super().recompute_in_backward()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, T, directions * hidden_size) of (B, T, input_size)."""
        out = self.norm(x, lengths)
        if self.conv is not None:
            out = self.conv(out, lengths)
        return self.add(x, self.dropout(super().forward(F.gelu(out), lengths)))

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Returns what follows the recurrent layer: the residual connections and the feed-forward module."""
        out = x + out if self.residual else out
        return out if self.feedforward is None else out + self.feedforward(out)

    def step(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns outputs for the next frames of one stream, (1, T, input_size), and the state after them.

        Only for a layer in one direction. `state` is what the call before returned, at first zeros of `state_shapes`.
        """
        lengths = torch.full((1,), x.shape[1], device=x.device)
        out, past = self.norm(x, lengths), []
        if self.conv is not None:
            *state, before = state
            padded = torch.cat([before, out], dim=1)
            out, past = self.conv.add(out, padded), [padded[:, x.shape[1] :]]
        out, state = self.forwards(F.gelu(out), state if len(state) > 1 else state[0])
        return self.add(x, out), *(state if isinstance(state, tuple) else [state]), *past
