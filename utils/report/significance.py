"""Confidence intervals of error rates and of their differences, by the bootstrap over utterances.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (2004). Many corpora
are drawn from the utterances of a split, with replacement; the spread of their error rates is that of the
measurement. Utterances are taken as independent of each other, so with few speakers the intervals are too narrow
for other speakers.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000  # corpora drawn
LEVEL = 0.95
_BLOCK = 2_000_000  # utterances drawn at a time, to bound the memory


class Interval(NamedTuple):
    """The bounds between which the share LEVEL of the drawn corpora lies."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Difference of a second system from a first one, on the same utterances."""

    difference: float  # error rate of the second minus that of the first, a fraction
    low: float  # interval of the difference
    high: float
    p_value: float  # two-sided, of no difference

    @property
    def p_text(self) -> str:
        """Returns the p-value for people to read, never 0."""
        return "< 0.001" if self.p_value < 0.001 else f"{self.p_value:.3f}"

    @property
    def verdict(self) -> str:
        """Returns the conclusion at the level of the interval."""
        if self.p_value >= 1 - LEVEL:
            return "no significant difference"
        return "significantly better" if self.difference < 0 else "significantly worse"

    def __str__(self) -> str:
        return (f"{100 * self.difference:+.2f} points ({100 * self.low:+.2f} to {100 * self.high:+.2f}), "
                f"p {self.p_text}: {self.verdict}")


def bootstrap_interval(errors: list[int], words: list[int], *, seed: int = 0) -> Interval:
    """Returns the interval of the error rate of N utterances, of their errors and reference words.

    Raises ValueError where the lists are empty or differ in length.
    """
    rates = _drawn_rates(np.array([errors]), np.array(words), seed)[0]
    return _interval(rates)


def compare_systems(errors_a: list[int], errors_b: list[int], words: list[int], *, seed: int = 0) -> Comparison:
    """Compares two systems by the matched-pairs bootstrap: both are measured on the same drawn corpora.

    How hard the utterances are cancels out, so it shows differences that two separate intervals would hide.
    The p-value is twice the share of corpora on which the difference is zero or has the other sign.
    Raises ValueError where the lists are empty or differ in length.
    """
    rates = _drawn_rates(np.array([errors_a, errors_b]), np.array(words), seed)
    drawn = rates[1] - rates[0]
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (beyond + 1) / (DRAWS + 1))  # + 1: no number of draws can show that p is 0
    return Comparison((sum(errors_b) - sum(errors_a)) / max(sum(words), 1), *_interval(drawn), p_value)


def _drawn_rates(errors: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    """Returns (K, DRAWS) error rates on the same drawn corpora, of (K, N) errors of K systems and (N,) words."""
    count = len(words)
    if not count or errors.shape[1] != count:
        raise ValueError(f"errors of {errors.shape[1]} utterances, and words of {count}")
    generator, rates, left = np.random.default_rng(seed), [], DRAWS
    while left:
        size = min(left, max(1, _BLOCK // count))
        drawn = generator.integers(count, size=(size, count))
        rates.append(errors[:, drawn].sum(axis=2) / np.maximum(words[drawn].sum(axis=1), 1))
        left -= size
    return np.concatenate(rates, axis=1)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
