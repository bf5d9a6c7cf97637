"""A fast path for `Speller.forward`; a test holds the two equal, and `benchmarks/las.py` compares their speed.

Autograd would take the gradient of each matrix that every step reads (LSTM weights, keys, values) at each step, and
add up as many matrices as there are steps. Here the steps keep their inputs, and after the last step of the backward
pass one product gives the gradient for all of them. The embedded tokens and the classification, which need no
state, are computed for all steps at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.components.attention import AdditiveAttention, Attention, ContentAttention, LocationAttention, Memory
from models.speller import LSTMCell, Speller, sample

Product = Callable[[Tensor, Tensor], Tensor]


def fast_forward(speller: Speller, tokens: Tensor, memory: Memory,
                 scheduled_sampling: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns what `speller(tokens, memory, scheduled_sampling)` does: log-probabilities and attention weights."""
    (size, steps), state, outputs, weights = tokens.shape, speller.initial(memory), [], []
    layers, product = [UnrolledLSTM(cell, steps, size) for cell in speller.lstm], UnrolledProducts(steps)
    sampled, dtype = torch.rand(tokens.shape) < scheduled_sampling, speller.perceptron.weight.dtype
    replaced = sampled.to(tokens.device)  # once: each copy makes the host wait for the device
    for u, gates in enumerate(speller.inputs(speller.embedding(tokens)).unbind(1)):
        if u and sampled[:, u].any():
            with torch.no_grad():
                drawn = sample(speller.classify(outputs[-1]))
            token = torch.where(replaced[:, u], drawn, tokens[:, u])
            gates = speller.inputs(speller.embedding(token))
        x, hidden, cells = state.context, [], []
        for layer, h, c in zip(layers, state.hidden, state.cells, strict=True):
            h, c = layer(x, h, c, gates)
            hidden.append(h)
            cells.append(c)
            x, gates = speller.dropout(h), 0.0
        context, attended = attend(speller.attention, x.to(dtype), memory, state.weights, product)
        state = state._replace(hidden=tuple(hidden), cells=tuple(cells), context=context, weights=attended)
        outputs.append(torch.cat([x, context], dim=-1).to(dtype))
        weights.append(attended)
    return speller.classify(torch.stack(outputs, dim=1)), torch.stack(weights, dim=1)


def attend(attention: Attention, query: Tensor, memory: Memory, previous: Tensor,
           product: Product) -> tuple[Tensor, Tensor]:
    """Returns what `attention(query, memory, previous)` does, by `product` where it multiplies with keys or values."""
    if type(attention) not in (ContentAttention, AdditiveAttention, LocationAttention):
        return attention(query, memory, previous)
    projected = attention.query(query).float()
    with torch.autocast(query.device.type, enabled=False):
        if isinstance(attention, ContentAttention):
            energies = product(projected.tanh()[:, None], memory.keys)[:, 0]
        else:
            location = ((attention.convolve(previous), attention.location.weight.float())
                        if isinstance(attention, LocationAttention) else (None, None))
            energies = _TanhProduct.apply(projected, memory.keys, *location, attention.energy.float())
        weights = energies.masked_fill(~memory.valid, -torch.inf).softmax(dim=-1)
        return product(weights[:, None], memory.values)[:, 0], weights


class _TanhProduct(torch.autograd.Function):
    """v . tanh(q + k + U f): (B, A), (B, T, A), (B, filters, T) or None, (A, filters) or None and (A,) to (B, T).

    It works in place, as autograd could not: (B, T, A) is by far the largest tensor of a step. See `attention.tanh`.
    """

    @staticmethod
    def forward(ctx, query: Tensor, keys: Tensor, f: Tensor | None, location: Tensor | None, energy: Tensor) -> Tensor:
        if f is None:
            sums = keys + query[:, None]
        else:
            sums = torch.baddbmm(keys, f.mT, location.t().expand(len(f), -1, -1)).add_(query[:, None])
        sigmoid = sums.mul_(2).sigmoid_()
        ctx.save_for_backward(sigmoid, f, location, energy)
        return 2 * (sigmoid @ energy) - energy.sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        sigmoid, f, location, energy = ctx.saved_tensors
        d_energy = 2 * (grad.flatten() @ sigmoid.flatten(0, 1)) - grad.sum()
        d_sums = sigmoid.addcmul(sigmoid, sigmoid, value=-1).mul_(4 * energy).mul_(grad[..., None])  # (B, T, A)
        d_query, d_f, d_location = d_sums.sum(dim=1), None, None
        if f is not None:
            d_f = torch.bmm(location.t().expand(len(f), -1, -1), d_sums.mT)
            d_location = torch.bmm(f, d_sums).sum(dim=0).t()
        return d_query, d_sums, d_f, d_location, d_energy


class _Collect(torch.autograd.Function):
    """Returns addends for the products of all steps with `matrix`; their gradients come back together."""

    @staticmethod
    def forward(ctx, addends: Tensor, matrix: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs  # detached: their graphs contain this node, and nothing would free the cycle
        return addends.view_as(addends)

    @staticmethod
    def backward(ctx, grad: Tensor):
        inputs = torch.cat(ctx.inputs, dim=-2)
        return grad, inputs.mT @ grad.to(inputs.dtype), None


class UnrolledProducts:
    """`x @ matrix`, (..., N, K) and (..., K, M) to (..., N, M), once per step with each of any matrices."""

    def __init__(self, steps: int):
        self.steps, self.matrices = steps, {}

    def __call__(self, x: Tensor, matrix: Tensor) -> Tensor:
        if id(matrix) not in self.matrices:  # which keeps the matrix, so that its id stays its own
            inputs = []
            zeros = x.new_zeros(*x.shape[:-2], self.steps * x.shape[-2], matrix.shape[-1])
            addends = _Collect.apply(zeros, matrix, inputs).chunk(self.steps, dim=-2)
            self.matrices[id(matrix)] = matrix, matrix.detach(), iter(addends), inputs
        _, constant, addends, inputs = self.matrices[id(matrix)]
        inputs.append(x.detach())
        return next(addends) + x @ constant


class UnrolledLSTM:
    """An `LSTMCell` in a loop of `steps` steps over N sequences; a step is one node of autograd's graph."""

    def __init__(self, cell: LSTMCell, steps: int, size: int):
        device = cell.weight.device.type
        lower = torch.is_autocast_enabled(device)
        weight = cell.weight.to(torch.get_autocast_dtype(device)) if lower else cell.weight
        self.inputs, self.weight, self.transposed = [], weight.detach(), None
        addends = cell.bias.float().expand(steps * size, -1)
        self.addends = iter(_Collect.apply(addends, weight.mT, self.inputs).chunk(steps))

    def __call__(self, x: Tensor, h: Tensor, c: Tensor, gates: Tensor | float) -> tuple[Tensor, Tensor]:
        """Returns what `LSTMCell.forward` does."""
        x = torch.cat([x, h], dim=-1).to(self.weight.dtype)
        return _LSTMStep.apply(x, c, next(self.addends) + gates, self)


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
