"""Loops over steps whose gradients are taken as wholes.

Every step of a speller reads the same matrices: an LSTM's weights, what the listener heard. Autograd would make
a gradient of a matrix's own size at each step, and add it to those before it. Here the steps keep their inputs,
and after the last one backwards a single product gives the gradient of the matrix for all of them.
"""

import torch
from torch import Tensor, nn


class _Collect(torch.autograd.Function):
    """Hands out addends of products with `matrix`; their gradients, which come back together, are the products'."""

    @staticmethod
    def forward(ctx, addends: Tensor, matrix: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs  # without their graphs, which would hold this one for ever
        return addends.view_as(addends)

    @staticmethod
    def backward(ctx, grad: Tensor):
        inputs = torch.cat(ctx.inputs, dim=-2)
        return grad, inputs.mT @ grad.to(inputs.dtype), None


class UnrolledProducts:
    """`x @ matrix` in a loop of `steps` steps, for any matrices that all of the steps read.

    (..., N, K) and (..., K, M) to (..., N, M), each matrix once a step.
    """

    def __init__(self, steps: int):
        self.steps, self.matrices = steps, {}

    def __call__(self, x: Tensor, matrix: Tensor) -> Tensor:
        if id(matrix) not in self.matrices:
            inputs = []
            zeros = x.new_zeros(*x.shape[:-2], self.steps * x.shape[-2], matrix.shape[-1])
            addends = _Collect.apply(zeros, matrix, inputs).chunk(self.steps, dim=-2)
            self.matrices[id(matrix)] = matrix, matrix.detach(), iter(addends), inputs  # the first keeps its id taken
        _, constant, addends, inputs = self.matrices[id(matrix)]
        inputs.append(x.detach())
        return next(addends) + x @ constant


class UnrolledLSTM:
    """An LSTM layer in a loop of `steps` steps over N sequences; a step is one node of autograd's graph.

    Args:
        linear: of the input and the last state, side by side, to the gates; D hidden units make 4 D.
    """

    def __init__(self, linear: nn.Linear, steps: int, size: int):
        device = linear.weight.device.type
        lower = torch.is_autocast_enabled(device)
        weight = linear.weight.to(torch.get_autocast_dtype(device)) if lower else linear.weight
        self.inputs, self.weight, self.transposed = [], weight.detach(), None
        addends = linear.bias.float().expand(steps * size, -1)
        self.addends = iter(_Collect.apply(addends, weight.mT, self.inputs).chunk(steps))

    def __call__(self, x: Tensor, h: Tensor, cell: Tensor, gates: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(N, inputs), (N, D), (N, D) to the next (N, D) state and cell, float32; `gates` are added to the layer's."""
        x = torch.cat([x, h], dim=-1).to(self.weight.dtype)
        return _LSTMStep.apply(x, cell, next(self.addends) + gates, self)


class _LSTMStep(torch.autograd.Function):
    """Products with few rows are fastest as matrix times columns, the matrix contiguous: on a CPU by half."""

    @staticmethod
    def forward(ctx, x: Tensor, cell: Tensor, addend: Tensor, layer: UnrolledLSTM) -> tuple[Tensor, Tensor]:
        i, f, g, o = (addend + (layer.weight @ x.t()).t()).chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        following = f * cell + i * g
        squashed = following.tanh()
        layer.inputs.append(x.detach())
        ctx.layer = layer
        ctx.save_for_backward(i, f, g, o, cell, squashed)
        return o * squashed, following

    @staticmethod
    def backward(ctx, d_h: Tensor, d_cell: Tensor):
        i, f, g, o, cell, squashed = ctx.saved_tensors
        layer = ctx.layer
        d_cell = d_cell + d_h * o * (1 - squashed * squashed)
        d_gates = torch.cat([d_cell * g * i * (1 - i), d_cell * cell * f * (1 - f), d_cell * i * (1 - g * g),
                             d_h * squashed * o * (1 - o)], dim=-1)  # (N, 4 D)
        if layer.transposed is None:
            layer.transposed = layer.weight.t().contiguous()
        d_x = (layer.transposed @ d_gates.t().to(layer.transposed.dtype)).t()
        return d_x, d_cell * f, d_gates, None
