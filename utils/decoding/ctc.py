"""Decoding of CTC outputs (Graves et al. 2006)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.decoding.beam_search import Step


def greedy_decode(log_probs: Tensor, lengths: Tensor, *, blank: int = 0) -> list[list[int]]:
    """Best path: the likeliest class of each valid frame, repeats joined, blanks dropped.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) valid frames; frames beyond them are not looked at.
    """
    best = log_probs.argmax(dim=-1)  # (B, T)
    first = best.diff(dim=1, prepend=best.new_full((len(best), 1), -1)) != 0  # where a run begins
    paths, begins = best.cpu(), first.cpu()
    decoded = []
    for path, begin, length in zip(paths, begins, lengths.tolist(), strict=True):
        symbols = path[:length][begin[:length]]
        decoded.append(symbols[symbols != blank].tolist())
    return decoded


class PrefixState(NamedTuple):
    """The paths of N hypotheses' prefixes through T frames: natural logarithms, float64.

    Column t is after t frames; column 0, before any frame, holds the empty prefix alone.
    """

    last: Tensor  # (N,) last token of the prefix
    symbol: Tensor  # (N, T + 1) all paths that spell the prefix so far and end in its last symbol
    blank: Tensor  # (N, T + 1) those that end in a blank
    scores: Tensor  # (N, V) log P(the prefix, this token, then anything); of `eos` log P(the prefix alone)


def prefix_step(log_probs: Tensor, lengths: Tensor, *, blank: int, start: int, eos: int,
                classes: int) -> tuple[Step, PrefixState]:
    """CTC as a model that predicts the next token: a step function for `beam_search`, and its first state.

    P(token | tokens before) is a ratio of two prefix probabilities, each a sum over all texts that begin
    so (Graves 2008; Watanabe et al. 2017, algorithm 2).

    Args:
        log_probs: (N, T, C) of CTC, one row a hypothesis.
        lengths: (N,) valid frames.
        blank: class of the blank.
        start: the token before the first.
        eos: the token that ends a text.
        classes: V; the first C tokens are the classes of CTC.
    """
    x = log_probs.double()
    size, frames, symbols = x.shape
    invalid = torch.arange(frames, device=x.device) >= lengths[:, None]  # (N, T)
    never = x.new_full((size, frames + 1), -torch.inf)

    def column(values: Tensor, token: Tensor) -> Tensor:  # (N, T, C) to (N, T) of one symbol a row
        return values.gather(2, token[:, None, None].expand(-1, frames, 1))[..., 0]

    def scores_of(last: Tensor, symbol: Tensor, blanks: Tensor) -> Tensor:
        any_end = torch.logaddexp(symbol, blanks)
        entries = any_end[:, :-1, None] + x  # (N, T, C): the frame in which the next symbol begins
        again = (blanks[:, :-1] + column(x, last))[..., None]  # the same symbol needs a blank in between
        entries = entries.scatter(2, last[:, None, None].expand(-1, frames, 1), again)
        scores = x.new_full((size, classes), -torch.inf)
        scores[:, :symbols] = entries.masked_fill(invalid[..., None], -torch.inf).logsumexp(dim=1)
        scores[:, blank] = -torch.inf
        scores[:, eos] = any_end.gather(1, lengths[:, None])[:, 0]
        return scores

    def step(tokens: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
        begins = tokens == start
        token = tokens.clamp(max=symbols - 1)  # what is no symbol belongs to hypotheses that are given up
        any_end = torch.logaddexp(state.symbol, state.blank)
        source = torch.where((token == state.last)[:, None], state.blank, any_end)
        symbol = _follow(column(x, token), source)
        blanks = _follow(x[:, :, blank], symbol)
        symbol = torch.where(begins[:, None], never, symbol)
        blanks = torch.where(begins[:, None], state.blank, blanks)
        token = torch.where(begins, blank, token)  # before the first symbol none can come again
        so_far = torch.where(begins, 0.0, state.scores.gather(1, tokens[:, None])[:, 0])
        after = PrefixState(token, symbol, blanks, scores_of(token, symbol, blanks))
        return (after.scores - so_far[:, None]).nan_to_num(nan=-torch.inf, neginf=-torch.inf), after

    silence = F.pad(x[:, :, blank].cumsum(dim=1), (1, 0))
    nothing = torch.full((size,), blank, device=x.device)
    return step, PrefixState(nothing, never, silence, x.new_zeros(size, classes))


def _follow(x: Tensor, source: Tensor) -> Tensor:
    """(N, T + 1) solution of y_0 = 0, y_{t+1} = (y_t + source_t) exp(x_t), all but x as logarithms.

    A linear recurrence: y_{t+1} = exp(X_{t+1}) sum_{s <= t} source_s exp(-X_s) with X_t = x_0 + .. + x_{t-1},
    so that one `logcumsumexp` gives it for all frames at once.
    """
    total = torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(dim=1)], dim=1)  # (N, T + 1)
    y = total[:, 1:] + (source[:, :-1] - total[:, :-1]).logcumsumexp(dim=1)
    return torch.cat([torch.full_like(y[:, :1], -torch.inf), y], dim=1)
