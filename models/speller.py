"""The speller of Listen, Attend and Spell (Chan et al. 2015, section 3.2): characters, one after the other."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.components.attention import ATTENTIONS, AttentionType, Memory, Product
from models.components.unrolled import UnrolledLSTM, UnrolledProducts


class SpellerState(NamedTuple):
    """What N hypotheses carry from one character to the next."""

    hidden: tuple[Tensor, ...]  # (N, D) of each LSTM layer
    cells: tuple[Tensor, ...]  # (N, D)
    context: Tensor  # (N, H)
    weights: Tensor  # (N, T) attention
    coverage: Tensor  # (N, T) attention so far


class Speller(nn.Module):
    """LSTM layers fed with the last character and the last context, attention, and a perceptron.

    All that needs no state of the step before is done for all steps at once: what the embedded
    characters add to the first layer's gates, the classification, and the gradients of what all steps read.
    """

    def __init__(self, memory_size: int, classes: int, silent: list[int], *, size: int, layers: int,
                 attention: AttentionType, attention_size: int, embedding_size: int, tied: bool, dropout: float):
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(classes, embedding_size)
        self.characters = nn.Linear(embedding_size, 4 * size, bias=False)
        inputs = [memory_size] + [size] * (layers - 1)
        self.gates = nn.ModuleList(nn.Linear(count + size, 4 * size) for count in inputs)
        for gates in self.gates:
            nn.init.ones_(gates.bias[size : 2 * size])  # forget gates begin open
        self.attention = ATTENTIONS[attention](size, memory_size, attention_size)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(size + memory_size, embedding_size)
        self.output = nn.Linear(embedding_size, classes)
        if tied:
            self.output.weight = self.embedding.weight
        impossible = torch.zeros(classes, dtype=torch.bool)
        impossible[silent] = True
        self.register_buffer("impossible", impossible, persistent=False)  # classes that are never spelled

    def forward(self, tokens: Tensor, memory: Memory, scheduled_sampling: float = 0.0) -> tuple[Tensor, Tensor]:
        """Spells with the given characters as inputs (teacher forcing).

        Args:
            tokens: (B, U) input of each step, `<sos>` first.
            memory: what the listener heard.
            scheduled_sampling: share of the inputs that are drawn from the speller's own last prediction
                instead (section 3.3; Bengio et al. 2015).

        Returns (B, U, V) float32 log-probabilities and (B, U, T) attention weights.
        """
        (size, steps), state, outputs, weights = tokens.shape, self.start(memory), [], []
        layers, product = [UnrolledLSTM(gates, steps, size) for gates in self.gates], UnrolledProducts(steps)
        sampled = torch.rand(tokens.shape) < scheduled_sampling  # on the CPU, so that asking stalls no device
        characters = self.characters(self.embedding(tokens)).unbind(1)
        for u, gates in enumerate(characters):
            if u and sampled[:, u].any():
                drawn = sample(self.classify(outputs[-1]).detach())
                token = torch.where(sampled[:, u].to(tokens.device), drawn, tokens[:, u])
                gates = self.characters(self.embedding(token))
            output, state = self._advance(gates, state, memory, layers, product)
            outputs.append(output)
            weights.append(state.weights)
        return self.classify(torch.stack(outputs, dim=1)), torch.stack(weights, dim=1)

    def start(self, memory: Memory) -> SpellerState:
        """The state before the first character."""
        size, frames = memory.valid.shape
        zeros = memory.values.new_zeros
        nothing = tuple(zeros(size, self.size) for _ in self.gates)
        return SpellerState(hidden=nothing, cells=nothing, context=zeros(size, memory.values.shape[2]),
                            weights=zeros(size, frames), coverage=zeros(size, frames))

    def step(self, tokens: Tensor, state: SpellerState, memory: Memory) -> tuple[Tensor, SpellerState]:
        """One character: (N,) last tokens to (N, V) log-probabilities of the next, and the state after."""
        layers = [UnrolledLSTM(gates, 1, len(tokens)) for gates in self.gates]
        output, state = self._advance(self.characters(self.embedding(tokens)), state, memory, layers)
        return self.classify(output), state

    def _advance(self, gates: Tensor, state: SpellerState, memory: Memory, layers: list[UnrolledLSTM],
                 product: Product = torch.matmul) -> tuple[Tensor, SpellerState]:
        """s_i = RNN(s_{i-1}, y_{i-1}, c_{i-1}); c_i = AttentionContext(s_i, h) (section 3.2).

        `gates` is what y_{i-1} adds to the gates of the first layer. Returns (N, D + H) s_i and c_i.
        """
        x, hidden, cells = state.context, [], []
        for layer, h, c in zip(layers, state.hidden, state.cells, strict=True):
            h, c = layer(x, h, c, gates)
            hidden.append(h)
            cells.append(c)
            x, gates = self.dropout(h), 0.0
        context, weights = self.attention(x.to(self.hidden.weight.dtype), memory, state.weights, product)
        state = SpellerState(tuple(hidden), tuple(cells), context, weights, state.coverage + weights)
        return torch.cat([x, context], dim=-1).to(self.hidden.weight.dtype), state

    def classify(self, outputs: Tensor) -> Tensor:
        """P(y_i | x, y_<i) of s_i and c_i, by a perceptron and a softmax: log-probabilities, float32."""
        scores = self.output(self.dropout(self.hidden(outputs).tanh())).float()
        return scores.masked_fill(self.impossible, -torch.inf).log_softmax(dim=-1)


def sample(log_probs: Tensor) -> Tensor:
    """One class of each (..., V) distribution (Gumbel's trick, which asks the host for nothing)."""
    return (log_probs - torch.empty_like(log_probs).exponential_().log()).argmax(dim=-1)
