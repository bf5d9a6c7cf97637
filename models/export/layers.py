"""Recurrent layers as ONNX has them, for any number of frames: the exporter would unroll the plain ones.

Each gives the outputs of the layer that it is made from, with the same interface.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic_multi_out

from models.components.recurrent import RecurrentLayer
from models.mingru.layer import MinGRU, g

Network = TypeVar("Network", bound=nn.Module)


def with_exportable_layers(network: Network) -> Network:
    """Returns a copy of a network, in evaluation mode, whose recurrent layers `torch.onnx.export` can export."""
    network = copy.deepcopy(network).eval()
    for layer in network.modules():
        if isinstance(layer, RecurrentLayer):
            layer.forwards = EXPORTABLE[type(layer.forwards)](layer.forwards)
            if layer.backwards is not None:
                layer.backwards = EXPORTABLE[type(layer.backwards)](layer.backwards)
    return network


class OnnxRNN(nn.Module):
    """The weights of a one-directional `nn.GRU` or `nn.LSTM` layer, with their gates in ONNX's order."""

    order: tuple[int, ...]  # of PyTorch's gates

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.size, gates = layer.hidden_size, len(self.order)
        w, r, *biases = (torch.cat([value.detach().chunk(gates)[i] for i in self.order])
                         for value in layer.all_weights[0])
        self.register_buffer("input_weight", w[None])  # (1, gates * H, input)
        self.register_buffer("hidden_weight", r[None])  # (1, gates * H, H)
        self.register_buffer("bias", torch.cat(biases)[None])  # (1, 2 * gates * H)


class OnnxGRU(OnnxRNN):
    """The operator GRU, in the form in which the reset gate comes after the product, as in `nn.GRU`."""

    order = (1, 0, 2)  # update, reset, candidate

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (B, T, H) states of (B, T, input), and the last one, (1, B, H)."""
        batch, frames, _ = x.shape
        out, last = symbolic_multi_out(
            "GRU", (x.transpose(0, 1), self.input_weight, self.hidden_weight, self.bias, None, state),
            {"hidden_size": self.size, "linear_before_reset": 1},
            dtypes=[x.dtype] * 2, shapes=[(frames, 1, batch, self.size), (1, batch, self.size)])
        return out[:, 0].transpose(0, 1), last


class OnnxLSTM(OnnxRNN):
    """The operator LSTM."""

    order = (0, 3, 1, 2)  # input, output, forget, cell

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns (B, T, H) outputs of (B, T, input), and the last output and cell, (1, B, H) each."""
        batch, frames, _ = x.shape
        hidden, cell = (None, None) if state is None else state
        out, *last = symbolic_multi_out(
            "LSTM", (x.transpose(0, 1), self.input_weight, self.hidden_weight, self.bias, None, hidden, cell),
            {"hidden_size": self.size}, dtypes=[x.dtype] * 3,
            shapes=[(frames, 1, batch, self.size), (1, batch, self.size), (1, batch, self.size)])
        return out[:, 0].transpose(0, 1), tuple(last)


class OnnxMinGRU(nn.Module):
    """minGRU's recurrence as the operator Scan, whose body is the equation of one step."""

    def __init__(self, layer: MinGRU):
        super().__init__()
        self.linear = layer.linear

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (B, T, H) states of (B, T, input), and the last one, (B, H)."""
        from torch._higher_order_ops.scan import scan  # a prototype of PyTorch's, which needs its compiler

        def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            decay, addend = inputs
            h = decay * h + addend
            return h, h.clone()  # two outputs may not be one tensor

        k, v = self.linear(x).transpose(0, 1).chunk(2, dim=-1)  # (T, B, H)
        z = k.sigmoid()
        first = torch.zeros_like(k[0]) if state is None else state
        last, states = scan(step, first, (1 - z, z * g(v)))
        return states.transpose(0, 1), last


EXPORTABLE = {nn.GRU: OnnxGRU, nn.LSTM: OnnxLSTM, MinGRU: OnnxMinGRU}
