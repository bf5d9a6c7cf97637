"""Attention over encoder frames: which of them a speller's state looks at.

`Attention.precompute` does once an utterance what no step changes; a call is then one step of the
speller. Energies, softmax and the weighted sum run in float32 under every precision.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.masks import length_mask

AttentionType = Literal["content", "bahdanau", "location", "multihead"]
Product = Callable[[Tensor, Tensor], Tensor]  # x @ matrix, such as torch.matmul


class Memory(NamedTuple):
    """What attention looks at: B utterances of T encoder frames."""

    keys: Tensor  # (B, T, A) float32; (B, A, T) where energies are products with them
    values: Tensor  # (B, T, H) float32
    valid: Tensor  # (B, T) bool

    def repeat(self, times: int) -> "Memory":
        """Each utterance `times` times in a row, one for each hypothesis of a beam."""
        return Memory(*(part.repeat_interleave(times, dim=0) for part in self))


class Attention(nn.Module, ABC):
    """A query and encoder frames to a context.

    Args:
        query_size: features of the speller's state.
        memory_size: features H of an encoder frame, and of the context.
        size: features A in which the two meet.
    """

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__()
        self.query = nn.Linear(query_size, size)
        self.key = nn.Linear(memory_size, size, bias=False)

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """(B, T, H) encoder frames and (B,) lengths to what every step reads."""
        return Memory(self.key(frames).float(), frames.float(), length_mask(lengths, frames.shape[1]))

    @abstractmethod
    def forward(self, query: Tensor, memory: Memory, previous: Tensor,
                product: Product = torch.matmul) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            query: (B, Q) the speller's state.
            memory: of `precompute`.
            previous: (B, T) weights of the step before, zeros at first.
            product: with what every step reads, where there are several (`models.components.unrolled`).

        Returns the (B, H) context and the (B, T) weights, which sum to 1 over valid frames.
        """


class EnergyAttention(Attention):
    """One energy a frame, a softmax, a weighted mean; subclasses say how well a query fits a key."""

    @abstractmethod
    def energies(self, query: Tensor, keys: Tensor, previous: Tensor, product: Product) -> Tensor:
        """(B, A) projected query, keys of `precompute`, (B, T) weights of the step before to (B, T) energies."""

    def forward(self, query: Tensor, memory: Memory, previous: Tensor,
                product: Product = torch.matmul) -> tuple[Tensor, Tensor]:
        """As `Attention.forward`."""
        projected = self.query(query).float()
        with torch.autocast(query.device.type, enabled=False):
            energies = self.energies(projected, memory.keys, previous, product)
            weights = energies.masked_fill(~memory.valid, -torch.inf).softmax(dim=-1)
            context = product(weights[:, None], memory.values)[:, 0]
        return context, weights


class ContentAttention(EnergyAttention):
    """Dot product of two one-layer perceptrons (Chan et al. 2015, section 3.2): <phi(s), psi(h)>."""

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """The keys are psi(h), (B, A, T)."""
        memory = super().precompute(frames, lengths)
        return memory._replace(keys=memory.keys.tanh().mT)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor, product: Product) -> Tensor:
        """phi(s) . psi(h)"""
        return product(query.tanh()[:, None], keys)[:, 0]


class AdditiveAttention(EnergyAttention):
    """v . tanh(W s + V h + b) (Bahdanau et al. 2015)."""

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        self.energy = nn.Parameter(torch.empty(size))
        nn.init.normal_(self.energy, std=size**-0.5)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor, product: Product) -> Tensor:
        """The perceptron above."""
        return _Perceptron.apply(query, keys, None, None, self.energy.float())


class LocationAttention(AdditiveAttention):
    """v . tanh(W s + V h + U f + b), f the convolved weights of the step before (Chorowski et al. 2015).

    Knowing where it looked last, it can move on from there.
    """

    filters, width = 10, 31  # the width in encoder frames

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        self.convolution = nn.Conv1d(1, self.filters, self.width, padding=self.width // 2, bias=False)
        self.location = nn.Linear(self.filters, size, bias=False)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor, product: Product) -> Tensor:
        """The perceptron above."""
        f = F.conv1d(previous[:, None], self.convolution.weight.float(), padding=self.width // 2)  # (B, filters, T)
        return _Perceptron.apply(query, keys, f, self.location.weight.float(), self.energy.float())


class MultiHeadAttention(Attention):
    """Scaled dot products in several subspaces (Vaswani et al. 2017); the weights are the heads' mean."""

    heads = 4

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        if size % self.heads or memory_size % self.heads:
            raise ValueError(f"{self.heads} heads must divide {memory_size} listener and {size} attention features")
        self.value = nn.Linear(memory_size, memory_size)
        self.output = nn.Linear(memory_size, memory_size)

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """Keys and values, each of which the heads share out among them."""
        return super().precompute(frames, lengths)._replace(values=self.value(frames).float())

    def forward(self, query: Tensor, memory: Memory, previous: Tensor,
                product: Product = torch.matmul) -> tuple[Tensor, Tensor]:
        """As `Attention.forward`."""
        projected = self.query(query).float()
        with torch.autocast(query.device.type, enabled=False):
            q = projected.unflatten(-1, (self.heads, -1))  # (B, heads, A / heads)
            k = memory.keys.unflatten(-1, (self.heads, -1))  # (B, T, heads, A / heads)
            v = memory.values.unflatten(-1, (self.heads, -1))
            energies = torch.einsum("bna,btna->bnt", q, k) * q.shape[-1] ** -0.5
            weights = energies.masked_fill(~memory.valid[:, None], -torch.inf).softmax(dim=-1)
            context = torch.einsum("bnt,btna->bna", weights, v).flatten(1)
        return self.output(context.to(query.dtype)).float(), weights.mean(dim=1)


class _Perceptron(torch.autograd.Function):
    """v . tanh(q + k + U f): (B, A), (B, T, A), (B, filters, T) or None, (A, filters) or None and (A,) to (B, T).

    In place where autograd could not be: (B, T, A) is by far the largest tensor of a step. tanh x is
    2 sigmoid(2 x) - 1, which PyTorch computes ten times faster on a CPU.
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


ATTENTIONS = {"content": ContentAttention, "bahdanau": AdditiveAttention, "location": LocationAttention,
              "multihead": MultiHeadAttention}


def near_diagonal(steps: Tensor, lengths: Tensor, size: tuple[int, int], width: float = 0.1) -> Tensor:
    """(B, U, T) closeness of step u and frame t to the diagonal, 1 on it: exp(-(u/U - t/T)^2 / (2 width^2)).

    Its complement is the penalty of guided attention (Tachibana et al. 2018, section 4.1). Its mean under
    the attention weights says how diagonal they are: speech and its text run in the same order, and
    attention that does not has not aligned.

    Args:
        steps: (B,) steps U of each utterance.
        lengths: (B,) frames T of each utterance.
        size: the padded U and T.
    """
    u = (torch.arange(size[0], device=steps.device) + 0.5) / steps[:, None].clamp_min(1)
    t = (torch.arange(size[1], device=steps.device) + 0.5) / lengths[:, None]
    return torch.exp(-((u[:, :, None] - t[:, None]) ** 2) / (2 * width**2))
