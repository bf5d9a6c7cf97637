"""Scorers for the attention beam search: each rates the next token of every hypothesis.

`utils.decoding.beam_search.beam_search` ranks by the weighted sum of several: an attention decoder, CTC, an n-gram.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.tokenizer import Tokenizer

# One entry per hypothesis: a tensor whose first dimension is N, a list of N objects, or a tuple of states.
State = Any


class Scorer(ABC):
    """Rates the next token of N hypotheses, those of an utterance next to each other."""

    @abstractmethod
    def initial(self) -> State:
        """Returns the state of N hypotheses without tokens."""

    @abstractmethod
    def score(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Adds a token to each hypothesis and rates the next one.

        Args:
            tokens: (N,) last tokens, at first the start symbol.
            state: before these tokens.

        Returns (N, V) scores of the next tokens, at most 0, and the state after `tokens`.
        """

    def final_score(self, state: State) -> Tensor | float:
        """Returns (N,) scores, at most 0, that hypotheses get once, at their end; 0 by default.

        Neither the scorer's weight nor the hypothesis's length changes them.
        """
        return 0.0


class CTCPrefixState(NamedTuple):
    """Log-probabilities, float64, of the paths of N prefixes through T frames.

    Column t is after t frames; column 0, before any frame, holds the empty prefix alone.
    """

    last: Tensor  # (N,) last token of the prefix
    symbol: Tensor  # (N, T + 1) of all paths that give the prefix and end in its last symbol
    blank: Tensor  # (N, T + 1) of all paths that give the prefix and end in a blank
    scores: Tensor  # (N, V) log P(prefix and this token, then anything); of `eos` log P(prefix alone)


class CTCPrefixScorer(Scorer):
    """CTC as a model that predicts the next token.

    P(token | tokens before) is a ratio of two prefix probabilities, each a sum over all texts that begin
    with the prefix (Graves 2008, section 7.5; Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for
    End-to-End Speech Recognition", algorithm 2).

    Args:
        log_probs: (N, T, C) of CTC, one row per hypothesis.
        lengths: (N,) valid frames.
        tokenizer: whose first C tokens are the classes of CTC.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, tokenizer: Tokenizer):
        self.log_probs, self.lengths, self.tokenizer = log_probs.double(), lengths, tokenizer
        self.padding = torch.arange(log_probs.shape[1], device=lengths.device) >= lengths[:, None]  # (N, T)

    def initial(self) -> CTCPrefixState:
        """Returns the empty prefix, whose only path is blank in every frame."""
        x = self.log_probs
        size, frames, _ = x.shape
        return CTCPrefixState(last=torch.full((size,), self.tokenizer.blank, device=x.device),
                              symbol=x.new_full((size, frames + 1), -torch.inf),
                              blank=F.pad(x[:, :, self.tokenizer.blank].cumsum(dim=1), (1, 0)),
                              scores=x.new_zeros(size, self.tokenizer.size))

    def score(self, tokens: Tensor, state: CTCPrefixState) -> tuple[Tensor, CTCPrefixState]:
        """Returns log P(token | prefix) of each next token, and the state of the prefixes with `tokens`."""
        first = tokens == self.tokenizer.sos
        last = tokens.clamp(max=self.log_probs.shape[2] - 1)  # other tokens end hypotheses: no matter what they get
        # The last symbol begins after any path of the prefix before; after a blank where it comes twice.
        before = torch.where((last == state.last)[:, None], state.blank, torch.logaddexp(state.symbol, state.blank))
        symbol = _linear_recurrence(self._frames_of(last), before)
        blank = _linear_recurrence(self.log_probs[:, :, self.tokenizer.blank], symbol)
        symbol = torch.where(first[:, None], -torch.inf, symbol)
        blank = torch.where(first[:, None], state.blank, blank)
        last = torch.where(first, self.tokenizer.blank, last)  # no symbol before the first that could come twice
        scores = self._prefix_scores(last, symbol, blank)
        prefix = torch.where(first, 0.0, state.scores.gather(1, tokens[:, None])[:, 0])
        conditional = (scores - prefix[:, None]).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        return conditional, CTCPrefixState(last, symbol, blank, scores)

    def _prefix_scores(self, last: Tensor, symbol: Tensor, blank: Tensor) -> Tensor:
        """Returns `CTCPrefixState.scores`: sums over the frame in which the next symbol begins."""
        x, paths = self.log_probs, torch.logaddexp(symbol, blank)
        begins = paths[:, :-1, None] + x  # (N, T, C)
        repeated = (blank[:, :-1] + self._frames_of(last))[..., None]  # the last symbol needs a blank in between
        begins = begins.scatter(2, last[:, None, None].expand(-1, x.shape[1], 1), repeated)
        scores = x.new_full((len(x), self.tokenizer.size), -torch.inf)
        scores[:, : x.shape[2]] = begins.masked_fill(self.padding[..., None], -torch.inf).logsumexp(dim=1)
        scores[:, self.tokenizer.blank] = -torch.inf
        scores[:, self.tokenizer.eos] = paths.gather(1, self.lengths[:, None])[:, 0]
        return scores

    def _frames_of(self, tokens: Tensor) -> Tensor:
        """Returns the (N, T) log-probabilities of one token per hypothesis."""
        index = tokens[:, None, None].expand(-1, self.log_probs.shape[1], 1)
        return self.log_probs.gather(2, index)[..., 0]


def _linear_recurrence(x: Tensor, source: Tensor) -> Tensor:
    """Returns the (N, T + 1) logarithms of y_0 = 0, y_{t+1} = (y_t + source_t) exp(x_t), from those of source and x.

    y_{t+1} = exp(X_{t+1}) sum_{s <= t} source_s exp(-X_s) with X_t = x_0 + .. + x_{t-1}, so that one
    `logcumsumexp` gives it for all frames at once.
    """
    total = torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(dim=1)], dim=1)  # (N, T + 1)
    y = total[:, 1:] + (source[:, :-1] - total[:, :-1]).logcumsumexp(dim=1)
    return torch.cat([torch.full_like(y[:, :1], -torch.inf), y], dim=1)
