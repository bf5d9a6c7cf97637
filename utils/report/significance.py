"""How sure an error rate is, and a difference of two: the bootstrap over utterances.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (2004). A
corpus is drawn anew from its own utterances, with replacement, many times; the spread of its error
rates is that of the measurement. It takes utterances as independent of each other, so where few
people speak, intervals are too narrow for people who do not speak here.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000  # corpora
LEVEL = 0.95
_BLOCK = 2_000_000  # utterances drawn at a time, which bounds the memory


class Interval(NamedTuple):
    """LEVEL of the drawn corpora lie inside."""

    low: float
    high: float


class Comparison(NamedTuple):
    """The second system against the first, on the same utterances."""

    difference: float  # error rate of the second minus that of the first, a fraction
    low: float  # interval of the difference
    high: float
    p_value: float  # two-sided, of no difference

    @property
    def p_text(self) -> str:
        """The p-value as it is printed, never as 0."""
        return "< 0.001" if self.p_value < 0.001 else f"{self.p_value:.3f}"

    @property
    def verdict(self) -> str:
        """At the level of the interval."""
        if self.p_value >= 1 - LEVEL:
            return "no significant difference"
        return "significantly better" if self.difference < 0 else "significantly worse"

    def __str__(self) -> str:
        return (f"{100 * self.difference:+.2f} points ({100 * self.low:+.2f} to {100 * self.high:+.2f}), "
                f"p {self.p_text}: {self.verdict}")


def bootstrap_interval(errors: list[int], words: list[int], *, seed: int = 0) -> Interval:
    """The interval of the error rate of N utterances with so many errors and reference words each.

    Raises ValueError where the lists are empty or differ in length.
    """
    rates = _drawn_rates(np.array([errors]), np.array(words), seed)[0]
    return _interval(rates)


def compare_systems(errors_a: list[int], errors_b: list[int], words: list[int], *, seed: int = 0) -> Comparison:
    """The matched-pairs bootstrap: both systems are measured on the same drawn corpora.

    Which utterances are hard cancels out, so a difference shows that two separate intervals would hide.
    The p-value is twice the share of corpora on which the difference is zero or has the other sign.
    Raises ValueError where the lists are empty or differ in length.
    """
    rates = _drawn_rates(np.array([errors_a, errors_b]), np.array(words), seed)
    drawn = rates[1] - rates[0]
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (beyond + 1) / (DRAWS + 1))  # + 1: no number of draws can show that p is 0
    return Comparison((sum(errors_b) - sum(errors_a)) / max(sum(words), 1), *_interval(drawn), p_value)


def _drawn_rates(errors: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    """(K, N) errors of K systems and (N,) words to (K, DRAWS) error rates of the same drawn corpora."""
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
