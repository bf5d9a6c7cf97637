"""Beam search over any model that predicts the next token, batched over utterances and hypotheses.

A model is a function `step(tokens, state)`: the (N,) last tokens and the state of N hypotheses to the
(N, V) log-probabilities of the next tokens and the state after. A state is a tensor whose first
dimension is N, a list of one Python object a hypothesis, or a tuple or dict of states.
`weighted_sum` makes one step function of several, as shallow fusion and joint CTC scoring need.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = Any
Step = Callable[[Tensor, State], tuple[Tensor, State]]


class Hypothesis(NamedTuple):
    """One finished sequence of an utterance."""

    tokens: list[int]  # neither start nor end symbol
    score: float  # what the search ranked it by
    log_prob: float  # sum of its tokens' step scores, the end symbol's among them


def beam_search(step: Step, state: State, *, start: int, eos: int, max_tokens: Tensor, beam_size: int,
                nbest: int = 1, length_power: float = 0.0,
                penalty: Callable[[State], Tensor] | None = None) -> list[list[Hypothesis]]:
    """The best sequences that end in `eos`, by log P / length^length_power + penalty.

    All utterances advance together, so that one call of `step` serves B * beam_size hypotheses. An
    utterance is done when no sequence under way could still overtake its n-best: a count of those that
    ended would stop it while the first, short ones come in. At its maximal length a sequence can only end.

    Args:
        step: see the module; its scores are at most 0.
        state: of B * beam_size hypotheses, those of an utterance side by side.
        start: the token before the first.
        eos: the token that ends a sequence; it counts for the length.
        max_tokens: (B,) most tokens of each utterance's sequences, `eos` not counted.
        beam_size: hypotheses kept an utterance. 1 is greedy search.
        nbest: finished sequences returned an utterance, best first; fewer where fewer were found.
        length_power: 0 ranks by probability, 1 by probability a token (Chan et al. 2015, section 3.3).
        penalty: (N,) of the hypotheses' states, at most 0, added when they end.

    Raises ValueError where nbest exceeds beam_size.
    """
    if nbest > beam_size:
        raise ValueError(f"{nbest} best of a beam of {beam_size}")
    size, longest = len(max_tokens), int(max_tokens.max()) + 1
    first_row = torch.arange(size, device=max_tokens.device)[:, None] * beam_size
    beam = _begin(max_tokens, beam_size, nbest, start, eos, longest)
    for length in range(1, longest + 1):
        log_probs, state = step(beam.tokens[:, :, -1].flatten(), state)
        scores, parents, tokens = _extend(beam, log_probs, eos, must_end=length > max_tokens)
        ends = (tokens == eos) & ~beam.done[:, None]
        ends[:, beam_size:] = False  # what ends must rank within the beam
        ranks = scores.masked_fill(~ends, -torch.inf) / length**length_power
        if penalty is not None:
            ranks += penalty(state).unflatten(0, (size, beam_size)).gather(1, parents)
        beam = _finish(beam, ranks, scores, parents, eos, longest)
        scores, order = scores.masked_fill(tokens == eos, -torch.inf).topk(beam_size, dim=1)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        bound = scores[:, 0] / (max_tokens + 1) ** length_power  # no further loss, and the largest divisor
        beam = beam._replace(
            tokens=torch.cat([_rows(beam.tokens, parents), tokens[..., None]], dim=2), scores=scores,
            done=beam.done | (bound <= beam.ranks[:, -1]))
        if beam.done.all():
            break
        state = select(state, (parents + first_row).flatten())
    return _hypotheses(beam, eos)


class _Beam(NamedTuple):
    """B utterances: K hypotheses under way, and the n best that ended."""

    tokens: Tensor  # (B, K, 1 + length), the start symbol first
    scores: Tensor  # (B, K) float64 sums of step scores, falling
    finished: Tensor  # (B, n, longest) tokens, filled up with eos
    ranks: Tensor  # (B, n) what finished hypotheses are ranked by, falling; -inf where there is none yet
    log_probs: Tensor  # (B, n) their sums of step scores
    done: Tensor  # (B,) bool


def _begin(max_tokens: Tensor, beam_size: int, nbest: int, start: int, eos: int, longest: int) -> _Beam:
    """One empty hypothesis an utterance; the beam's other places hold impossible ones."""
    size, device = len(max_tokens), max_tokens.device
    nothing = torch.full((size, nbest), -torch.inf, dtype=torch.float64, device=device)
    scores = torch.full((size, beam_size), -torch.inf, dtype=torch.float64, device=device)
    scores[:, 0] = 0.0
    return _Beam(tokens=torch.full((size, beam_size, 1), start, device=device), scores=scores,
                 finished=torch.full((size, nbest, longest), eos, device=device), ranks=nothing, log_probs=nothing,
                 done=torch.zeros(size, dtype=torch.bool, device=device))


def _extend(beam: _Beam, log_probs: Tensor, eos: int, must_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best 2 K continuations, of which at most K end: (B, 2 K) scores, parents and tokens."""
    size, beam_size = beam.scores.shape
    classes = log_probs.shape[-1]
    totals = beam.scores[..., None] + log_probs.double().unflatten(0, (size, beam_size))  # (B, K, V)
    not_eos = torch.arange(classes, device=totals.device) != eos
    totals = totals.masked_fill((must_end[:, None] & not_eos)[:, None], -torch.inf)
    scores, index = totals.flatten(1).topk(2 * beam_size, dim=1)
    return scores, index // classes, index % classes


def _finish(beam: _Beam, ranks: Tensor, scores: Tensor, parents: Tensor, eos: int, longest: int) -> _Beam:
    """Merges the (B, 2 K) continuations that end now (the rank of the others is -inf) into the n best."""
    ending = _rows(beam.tokens, parents)[:, :, 1:]
    ending = F.pad(ending, (0, longest - ending.shape[2]), value=eos)
    best, order = torch.cat([beam.ranks, ranks], dim=1).topk(beam.ranks.shape[1], dim=1)
    return beam._replace(ranks=best, finished=_rows(torch.cat([beam.finished, ending], dim=1), order),
                         log_probs=torch.cat([beam.log_probs, scores], dim=1).gather(1, order))


def _rows(sequences: Tensor, index: Tensor) -> Tensor:
    """(B, K, L) sequences and (B, M) indices of them to (B, M, L)."""
    return sequences.gather(1, index[..., None].expand(-1, -1, sequences.shape[2]))


def _hypotheses(beam: _Beam, eos: int) -> list[list[Hypothesis]]:
    return [[Hypothesis(tokens[: tokens.index(eos)], rank, log_prob)
             for tokens, rank, log_prob in zip(*rows, strict=True) if rank > -torch.inf]
            for rows in zip(beam.finished.tolist(), beam.ranks.tolist(), beam.log_probs.tolist(), strict=True)]


def select(state: State, rows: Tensor) -> State:
    """The state of the hypotheses `rows`, (N,), in that order."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, list):
        return [state[row] for row in rows.tolist()]
    if isinstance(state, dict):
        return {name: select(part, rows) for name, part in state.items()}
    parts = [select(part, rows) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def weighted_sum(steps: Sequence[tuple[float, Step]]) -> Step:
    """One step function whose scores are the weighted sum of several's; its state is the tuple of theirs.

    Weights are above 0.
    """

    def step(tokens: Tensor, states: State) -> tuple[Tensor, State]:
        results = [one(tokens, state) for (_, one), state in zip(steps, states, strict=True)]
        scores = sum(weight * scores.double() for (weight, _), (scores, _) in zip(steps, results, strict=True))
        return scores, tuple(state for _, state in results)

    return step
