"""Beam search for models that predict the next token, batched over utterances and hypotheses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.decoding.scorers import Scorer, State

WeightedScorers = Sequence[tuple[float, Scorer]]


class Hypothesis(NamedTuple):
    """One finished sequence of an utterance."""

    tokens: list[int]  # neither start nor end symbol
    score: float  # what the search ranked it by


def beam_search(scorers: WeightedScorers, *, start: int, eos: int, max_tokens: Tensor, beam_size: int,
                nbest: int = 1, length_power: float = 0.0) -> list[list[Hypothesis]]:
    """Returns the best sequences that end in `eos`, by score / length^length_power + final score.

    The score of a sequence is the weighted sum of the scorers' scores of its tokens, `eos` included. All
    utterances advance together, so that one call of a scorer serves B * beam_size hypotheses. An utterance
    is done when no unfinished sequence could still overtake its n-best: stopping at a number of finished
    sequences would keep the first, short ones. At its maximal length a sequence can only end.

    Args:
        scorers: weights, above 0, and scorers of B * beam_size hypotheses.
        start: the token before the first.
        eos: the token that ends a sequence; it counts for the length.
        max_tokens: (B,) most tokens of each utterance's sequences, `eos` not counted.
        beam_size: hypotheses kept per utterance. 1 is greedy search.
        nbest: finished sequences returned per utterance, best first; fewer where fewer were found.
        length_power: 0 ranks by score, 1 by score per token (Chan et al. 2015, arXiv:1508.01211v2, section 3.4).

    Raises ValueError where nbest exceeds beam_size.
    """
    if nbest > beam_size:
        raise ValueError(f"{nbest} best of a beam of {beam_size}")
    longest = int(max_tokens.max()) + 1
    first_row = torch.arange(len(max_tokens), device=max_tokens.device)[:, None] * beam_size
    beam, states = _begin(max_tokens, beam_size, nbest, start, eos, longest), [one.initial() for _, one in scorers]
    for length in range(1, longest + 1):
        scores, final, states = _score(scorers, beam.tokens[:, :, -1], states)
        extensions = _extend(beam, scores, eos, must_end=length > max_tokens)
        beam = _finish(beam, extensions, final, eos, length**length_power)
        beam, parents = _prune(beam, extensions, eos, (max_tokens + 1) ** length_power)
        if beam.done.all():
            break
        states = [select(state, (parents + first_row).flatten()) for state in states]
    return _hypotheses(beam, eos)


class _Beam(NamedTuple):
    """K unfinished hypotheses of each of B utterances, and the n best finished ones."""

    tokens: Tensor  # (B, K, 1 + length), the start symbol first
    scores: Tensor  # (B, K) float64, falling
    finished: Tensor  # (B, n, longest) tokens, padded with eos
    ranks: Tensor  # (B, n) what finished hypotheses are ranked by, falling; -inf where there is none yet
    done: Tensor  # (B,) bool


class _Extensions(NamedTuple):
    """The best hypotheses with one more token, of which at most K end."""

    scores: Tensor  # (B, 2 K) falling
    parents: Tensor  # (B, 2 K) the hypotheses of the beam that they extend
    tokens: Tensor  # (B, 2 K) the tokens that they add


def _begin(max_tokens: Tensor, beam_size: int, nbest: int, start: int, eos: int, longest: int) -> _Beam:
    """Returns one empty hypothesis per utterance; the beam's other places hold impossible ones."""
    size, device = len(max_tokens), max_tokens.device
    scores = torch.full((size, beam_size), -torch.inf, dtype=torch.float64, device=device)
    scores[:, 0] = 0.0
    return _Beam(tokens=torch.full((size, beam_size, 1), start, device=device), scores=scores,
                 finished=torch.full((size, nbest, longest), eos, device=device),
                 ranks=torch.full((size, nbest), -torch.inf, dtype=torch.float64, device=device),
                 done=torch.zeros(size, dtype=torch.bool, device=device))


def _score(scorers: WeightedScorers, tokens: Tensor, states: list[State]) -> tuple[Tensor, Tensor, list[State]]:
    """Adds (B, K) tokens; returns (B, K, V) scores of the next ones, (B, K) final scores, and the states after."""
    results = [scorer.score(tokens.flatten(), state) for (_, scorer), state in zip(scorers, states, strict=True)]
    scores = sum(weight * scores.double() for (weight, _), (scores, _) in zip(scorers, results, strict=True))
    states = [state for _, state in results]
    final = torch.zeros(tokens.numel(), device=tokens.device)
    for (_, scorer), state in zip(scorers, states, strict=True):
        final = final + scorer.final_score(state)
    return scores.unflatten(0, tokens.shape), final.unflatten(0, tokens.shape), states


def _extend(beam: _Beam, scores: Tensor, eos: int, must_end: Tensor) -> _Extensions:
    """Returns the best extensions by (B, K, V) scores of the next tokens."""
    classes = scores.shape[2]
    not_eos = torch.arange(classes, device=scores.device) != eos
    totals = (beam.scores[..., None] + scores).masked_fill((must_end[:, None] & not_eos)[:, None], -torch.inf)
    best, index = totals.flatten(1).topk(2 * scores.shape[1], dim=1)
    return _Extensions(best, index // classes, index % classes)


def _finish(beam: _Beam, extensions: _Extensions, final: Tensor, eos: int, divisor: float) -> _Beam:
    """Merges the extensions that end now into the n best."""
    ends = (extensions.tokens == eos) & ~beam.done[:, None]
    ends[:, beam.scores.shape[1] :] = False  # a hypothesis that ends must rank within the beam
    ranks = extensions.scores.masked_fill(~ends, -torch.inf) / divisor + final.gather(1, extensions.parents)
    ending = _rows(beam.tokens, extensions.parents)[:, :, 1:]
    ending = F.pad(ending, (0, beam.finished.shape[2] - ending.shape[2]), value=eos)
    ranks, order = torch.cat([beam.ranks, ranks], dim=1).topk(beam.ranks.shape[1], dim=1)
    return beam._replace(ranks=ranks, finished=_rows(torch.cat([beam.finished, ending], dim=1), order))


def _prune(beam: _Beam, extensions: _Extensions, eos: int, divisors: Tensor) -> tuple[_Beam, Tensor]:
    """Keeps the K best extensions that do not end; returns them and their (B, K) parents.

    `divisors`, (B,), are the largest that a score can be divided by.
    """
    scores = extensions.scores.masked_fill(extensions.tokens == eos, -torch.inf)
    scores, order = scores.topk(beam.scores.shape[1], dim=1)
    parents, tokens = extensions.parents.gather(1, order), extensions.tokens.gather(1, order)
    bound = scores[:, 0] / divisors  # the best that a hypothesis can still reach: no further loss
    return beam._replace(tokens=torch.cat([_rows(beam.tokens, parents), tokens[..., None]], dim=2), scores=scores,
                         done=beam.done | (bound <= beam.ranks[:, -1])), parents


def _rows(sequences: Tensor, index: Tensor) -> Tensor:
    """Returns (B, M, L): of (B, K, L) sequences those at (B, M) indices."""
    return sequences.gather(1, index[..., None].expand(-1, -1, sequences.shape[2]))


def _hypotheses(beam: _Beam, eos: int) -> list[list[Hypothesis]]:
    return [[Hypothesis(tokens[: tokens.index(eos)], rank)
             for tokens, rank in zip(*rows, strict=True) if rank > -torch.inf]
            for rows in zip(beam.finished.tolist(), beam.ranks.tolist(), strict=True)]


def select(state: State, rows: Tensor) -> State:
    """Returns the state of the hypotheses `rows`, (N,), in that order."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, list):
        return [state[row] for row in rows.tolist()]
    parts = [select(part, rows) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
