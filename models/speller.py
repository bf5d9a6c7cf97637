"""The speller of Listen, Attend and Spell (Chan et al. 2015, arXiv:1508.01211v2, section 3.2)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.components.attention import ATTENTIONS, AttentionType, Memory
from utils.decoding.scorers import Scorer


class SpellerState(NamedTuple):
    """The state of N hypotheses between two tokens."""

    hidden: tuple[Tensor, ...]  # (N, D) of each LSTM layer
    cells: tuple[Tensor, ...]  # (N, D)
    context: Tensor  # (N, H)
    weights: Tensor  # (N, T) attention
    coverage: Tensor  # (N, T) attention so far


class LSTMCell(nn.Linear):
    """`nn.LSTMCell`, but with one weight for [input, hidden], one bias, and float32 gates under every precision."""

    def __init__(self, input_size: int, size: int):
        super().__init__(input_size + size, 4 * size)
        nn.init.ones_(self.bias[size : 2 * size])  # forget gates begin open

    def forward(self, x: Tensor, h: Tensor, c: Tensor, gates: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Returns the (N, D) hidden state and cell after (N, input_size) `x`.

        `gates`, (N, 4 D), are what another input, multiplied elsewhere, adds to the gates.
        """
        inputs = torch.cat([x, h], dim=-1).to(self.weight.dtype)
        i, f, g, o = (super().forward(inputs).float() + gates).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Speller(nn.Module):
    """LSTM layers fed with the last token and the last context, attention, and a perceptron."""

    def __init__(self, memory_size: int, classes: int, impossible: list[int], *, size: int, layers: int,
                 attention: AttentionType, attention_size: int, embedding_size: int, tied: bool, dropout: float):
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(classes, embedding_size)
        # The first cell's weight for tokens is a layer of its own, so that a known text is multiplied at once.
        self.inputs = nn.Linear(embedding_size, 4 * size, bias=False)
        self.lstm = nn.ModuleList(LSTMCell(size if i else memory_size, size) for i in range(layers))
        self.attention = ATTENTIONS[attention](size, memory_size, attention_size)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = nn.Linear(size + memory_size, embedding_size)
        self.output = nn.Linear(embedding_size, classes)
        if tied:
            self.output.weight = self.embedding.weight
        mask = torch.zeros(classes, dtype=torch.bool)
        mask[impossible] = True
        self.register_buffer("impossible", mask, persistent=False)  # (V,) classes that are never predicted

    def initial(self, memory: Memory) -> SpellerState:
        """Returns the state before the first token."""
        size, frames = memory.valid.shape
        zeros = memory.values.new_zeros
        layers = tuple(zeros(size, self.size) for _ in self.lstm)
        return SpellerState(hidden=layers, cells=layers, context=zeros(size, memory.values.shape[2]),
                            weights=zeros(size, frames), coverage=zeros(size, frames))

    def step(self, tokens: Tensor, state: SpellerState, memory: Memory) -> tuple[Tensor, SpellerState]:
        """Returns the (N, V) log-probabilities of the next token after (N,) last ones, and the state after.

        s_i = RNN(s_{i-1}, y_{i-1}, c_{i-1})
        c_i = AttentionContext(s_i, h)
        P(y_i | x, y_<i) = CharacterDistribution(s_i, c_i)
        """
        hidden, cells = [], []
        x, gates = state.context, self.inputs(self.embedding(tokens))
        for cell, h, c in zip(self.lstm, state.hidden, state.cells, strict=True):
            h, c = cell(x, h, c, gates)
            hidden.append(h)
            cells.append(c)
            x, gates = self.dropout(h), 0.0
        x = x.to(self.perceptron.weight.dtype)
        context, weights = self.attention(x, memory, state.weights)
        log_probs = self.classify(torch.cat([x, context.to(x.dtype)], dim=-1))
        return log_probs, SpellerState(tuple(hidden), tuple(cells), context, weights, state.coverage + weights)

    def classify(self, outputs: Tensor) -> Tensor:
        """Returns (..., V) float32 log-probabilities of (..., D + H) s_i and c_i, by a perceptron and a softmax."""
        scores = self.output(self.dropout(self.perceptron(outputs).tanh())).float()
        return scores.masked_fill(self.impossible, -torch.inf).log_softmax(dim=-1)

    def forward(self, tokens: Tensor, memory: Memory, scheduled_sampling: float = 0.0) -> tuple[Tensor, Tensor]:
        """Predicts each token after the given ones before it (teacher forcing).

        Training runs `models.fast_speller.fast_forward`, which gives the same.

        Args:
            tokens: (B, U) input of each step, `<sos>` first.
            memory: the encoder output, by `attention.precompute`.
            scheduled_sampling: share of the inputs that are drawn from the speller's own last prediction
                instead (section 3.3; Bengio et al. 2015, arXiv:1506.03099v3).

        Returns (B, U, V) float32 log-probabilities and (B, U, T) attention weights.
        """
        state, outputs, weights = self.initial(memory), [], []
        sampled = torch.rand(tokens.shape) < scheduled_sampling  # on the CPU, so that asking stalls no device
        for u, token in enumerate(tokens.unbind(1)):
            if u and sampled[:, u].any():
                token = torch.where(sampled[:, u].to(token.device), sample(outputs[-1].detach()), token)
            log_probs, state = self.step(token, state, memory)
            outputs.append(log_probs)
            weights.append(state.weights)
        return torch.stack(outputs, dim=1), torch.stack(weights, dim=1)


def sample(log_probs: Tensor) -> Tensor:
    """Draws one class from each (..., V) distribution (Gumbel's trick, which asks the host for nothing)."""
    return (log_probs - torch.empty_like(log_probs).exponential_().log()).argmax(dim=-1)


class SpellerScorer(Scorer):
    """The speller's log-probabilities, and a penalty on encoder frames that no token attended to.

    Args:
        speller: the network.
        memory: of N hypotheses.
        coverage_weight: beta of Wu et al. 2016, arXiv:1609.08144v2, equation 14.
    """

    def __init__(self, speller: Speller, memory: Memory, coverage_weight: float = 0.0):
        self.speller, self.memory, self.coverage_weight = speller, memory, coverage_weight

    def initial(self) -> SpellerState:
        """Returns the state before the first token."""
        return self.speller.initial(self.memory)

    def score(self, tokens: Tensor, state: SpellerState) -> tuple[Tensor, SpellerState]:
        """Returns (N, V) log-probabilities of the next tokens, and the state after `tokens`."""
        return self.speller.step(tokens, state, self.memory)

    def final_score(self, state: SpellerState) -> Tensor | float:
        """Returns coverage_weight * sum over frames of log(min(attention so far, 1)), (N,)."""
        if not self.coverage_weight:
            return 0.0
        covered = state.coverage.clamp(1e-9, 1.0).log().masked_fill(~self.memory.valid, 0.0)
        return self.coverage_weight * covered.sum(dim=1)
