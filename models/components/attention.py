"""Attention: a decoder's state weighs the encoder's frames; their weighted mean is the context.

`Attention.precompute` does the work that is the same in every step, once per utterance; a call is then one
step of the decoder. Energies, softmax and the weighted mean run in float32 under every precision.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.masks import length_mask

AttentionType = Literal["content", "bahdanau", "location", "multihead"]


class Memory(NamedTuple):
    """Encoder output of B utterances of T frames, prepared for attention."""

    keys: Tensor  # (B, T, A) float32; ContentAttention's (B, A, T)
    values: Tensor  # (B, T, H) float32
    valid: Tensor  # (B, T) bool, false for padding

    def repeat(self, times: int) -> "Memory":
        """Returns each utterance `times` times in a row, once per hypothesis of a beam."""
        return Memory(*(part.repeat_interleave(times, dim=0) for part in self))


class Attention(nn.Module, ABC):
    """The interface of all kinds.

    Args:
        query_size: features Q of the decoder's state.
        memory_size: features H of an encoder frame, and of the context.
        size: features A of projected queries and keys.
    """

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__()
        self.query = nn.Linear(query_size, size)
        self.key = nn.Linear(memory_size, size, bias=False)

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """Projects (B, T, H) encoder frames with (B,) lengths to keys."""
        return Memory(self.key(frames).float(), frames.float(), length_mask(lengths, frames.shape[1]))

    @abstractmethod
    def forward(self, query: Tensor, memory: Memory, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Attends once.

        Args:
            query: (B, Q) the decoder's state.
            memory: the encoder output, by `precompute`.
            previous: (B, T) weights of the step before, zeros at first.

        Returns the (B, H) context and the (B, T) weights, which sum to 1 over valid frames.
        """


class SingleHeadAttention(Attention):
    """One energy per frame, a softmax over them, and the weighted mean of the frames."""

    @abstractmethod
    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Returns (B, T) energies of (B, A) projected queries, keys and the (B, T) weights of the step before."""

    def forward(self, query: Tensor, memory: Memory, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Attends once; see `Attention.forward`."""
        projected = self.query(query).float()  # (B, A)
        with torch.autocast(query.device.type, enabled=False):
            energies = self.energies(projected, memory.keys, previous)  # (B, T)
            weights = energies.masked_fill(~memory.valid, -torch.inf).softmax(dim=-1)
            context = (weights[:, None] @ memory.values)[:, 0]  # (B, H)
        return context, weights


class ContentAttention(SingleHeadAttention):
    """<phi(s), psi(h)>, phi and psi perceptrons (Chan et al. 2015, arXiv:1508.01211v2, section 3.2)."""

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """Projects frames to keys psi(h), (B, A, T)."""
        memory = super().precompute(frames, lengths)
        return memory._replace(keys=memory.keys.tanh().mT)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Returns phi(s) . psi(h)."""
        return (query.tanh()[:, None] @ keys)[:, 0]


class AdditiveAttention(SingleHeadAttention):
    """v . tanh(W s + V h + b) (Bahdanau et al. 2015, arXiv:1409.0473v7, section A.1.2)."""

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        self.energy = nn.Parameter(torch.empty(size))  # v
        nn.init.normal_(self.energy, std=size**-0.5)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Returns v . tanh(W s + V h + b)."""
        return tanh(query[:, None] + keys) @ self.energy.float()


class LocationAttention(AdditiveAttention):
    """v . tanh(W s + V h + U f + b), f the convolved weights of the step before, from where it can move on.

    Chorowski et al. 2015, arXiv:1506.07503v1, section 2.2.
    """

    filters, width = 10, 31  # the width in encoder frames

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        self.convolution = nn.Conv1d(1, self.filters, self.width, padding=self.width // 2, bias=False)
        self.location = nn.Linear(self.filters, size, bias=False)  # U

    def convolve(self, previous: Tensor) -> Tensor:
        """Returns f, (B, filters, T), of the (B, T) weights of the step before."""
        return F.conv1d(previous[:, None], self.convolution.weight.float(), padding=self.width // 2)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Returns v . tanh(W s + V h + U f + b)."""
        location = self.convolve(previous).mT @ self.location.weight.float().t()  # U f: (B, T, A)
        return tanh(query[:, None] + keys + location) @ self.energy.float()


class MultiHeadAttention(Attention):
    """Scaled dot products in several subspaces (Vaswani et al. 2017, arXiv:1706.03762v7, section 3.2.2).

    The weights that it returns are the mean over its heads.
    """

    heads = 4

    def __init__(self, query_size: int, memory_size: int, size: int):
        super().__init__(query_size, memory_size, size)
        if size % self.heads or memory_size % self.heads:
            raise ValueError(f"{self.heads} heads must divide {memory_size} listener and {size} attention features")
        self.value = nn.Linear(memory_size, memory_size)
        self.output = nn.Linear(memory_size, memory_size)

    def precompute(self, frames: Tensor, lengths: Tensor) -> Memory:
        """Projects frames to the keys and values of all heads."""
        return super().precompute(frames, lengths)._replace(values=self.value(frames).float())

    def forward(self, query: Tensor, memory: Memory, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Attends once; see `Attention.forward`."""
        projected = self.query(query).float()
        with torch.autocast(query.device.type, enabled=False):
            q = projected.unflatten(-1, (self.heads, -1))  # (B, heads, A / heads)
            k = memory.keys.unflatten(-1, (self.heads, -1))  # (B, T, heads, A / heads)
            v = memory.values.unflatten(-1, (self.heads, -1))
            energies = torch.einsum("bna,btna->bnt", q, k) * q.shape[-1] ** -0.5
            weights = energies.masked_fill(~memory.valid[:, None], -torch.inf).softmax(dim=-1)
            context = torch.einsum("bnt,btna->bna", weights, v).flatten(1)
        return self.output(context.to(query.dtype)).float(), weights.mean(dim=1)


ATTENTIONS = {"content": ContentAttention, "bahdanau": AdditiveAttention, "location": LocationAttention,
              "multihead": MultiHeadAttention}


def tanh(x: Tensor) -> Tensor:
    """Returns 2 sigmoid(2 x) - 1: on a CPU PyTorch computes it three times faster than `torch.tanh`."""
    return 2 * (2 * x).sigmoid() - 1


def soft_diagonal(steps: Tensor, lengths: Tensor, size: tuple[int, int], width: float = 0.1) -> Tensor:
    """Returns how near step u and frame t are to the diagonal: exp(-(u/U - t/T)^2 / (2 width^2)), (B, U, T).

    It is 1 on the diagonal. 1 minus it is the penalty of guided attention (Tachibana et al. 2018,
    arXiv:1710.08969v2, section 4.1, with a width of 0.2). Its mean under the attention weights, the diagonality,
    lies between 0 and 1: speech and its text run in the same order, and attention far from the diagonal has not
    aligned.

    Args:
        steps: (B,) steps U of each utterance.
        lengths: (B,) frames T of each utterance.
        size: the padded U and T.
        width: standard deviation, as a share of the whole.
    """
    u = (torch.arange(size[0], device=steps.device) + 0.5) / steps[:, None].clamp_min(1)
    t = (torch.arange(size[1], device=steps.device) + 0.5) / lengths[:, None]
    return torch.exp(-((u[:, :, None] - t[:, None]) ** 2) / (2 * width**2))
