"""What an epoch holds: how often each training set's utterances come, and each one's speed, before batches are made."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SPEEDS = 2  # what the random numbers are for; the sampler has those before


class SetShare(NamedTuple):
    """One of the sets that an epoch is made of."""

    utterances: int
    factor: float = 1.0  # times that an epoch has each of them, on average

    @property
    def occurrences(self) -> int:
        """Returns how many of the set's utterances each epoch has: a share of one counts as one."""
        return max(1, math.ceil(round(self.factor * self.utterances, 6))) if self.utterances else 0


class Occurrences(NamedTuple):
    """The utterances of an epoch: an utterance that comes twice has two entries."""

    indices: np.ndarray  # (N,) of the utterances
    speeds: np.ndarray  # (N,)
    seconds: np.ndarray  # (N,) durations at these speeds


class EpochContents:
    """Draws the utterances and speeds of each epoch, as a function of seed and epoch.

    Every epoch has as many utterances, and nearly the same durations:

    - A set is sorted by duration, and a factor takes utterances from it at even steps, which move on in each epoch. Of
      any epochs in a row that have `x` occurrences of each utterance on average, each has `x` rounded up or down.
    - As many neighbours in duration as there are speeds share these out by chance, so that each speed is given
      to the same share of short and of long utterances.

    Args:
        seconds: duration of each utterance, one set after the other.
        sets: how many utterances each set has, and how often they come; by default all of them once.
        speeds: factors of speed perturbation (Ko et al. 2015); none by default.
    """

    def __init__(self, seconds: Sequence[float], sets: Sequence[SetShare] = (), *, speeds: Sequence[float] = (),
                 seed: int = 0):
        self.seconds, self.speeds, self.seed = np.asarray(seconds), np.sort(speeds), seed
        self.sets = list(sets) or [SetShare(len(seconds))]
        self.size = sum(one.occurrences for one in self.sets)

    def draw(self, epoch: int) -> Occurrences:
        """Returns what the epoch holds, sorted by index."""
        indices = self._choose([-epoch * one.occurrences for one in self.sets])
        seconds, speeds = self.seconds[indices], np.ones(self.size)
        if len(self.speeds):
            groups = math.ceil(self.size / len(self.speeds))
            random = np.random.default_rng((self.seed, epoch, SPEEDS))
            shared_out = random.permuted(np.tile(self.speeds, (groups, 1)), axis=1).ravel()
            speeds[np.argsort(-seconds, kind="stable")] = shared_out[: self.size]
        return Occurrences(indices, speeds, seconds / speeds)

    def longest_seconds(self) -> np.ndarray:
        """Returns (N,) durations, longest first, of which the i-th is at least the i-th longest of every epoch."""
        seconds = -np.sort(-self.seconds[self._choose([0] * len(self.sets))])
        if len(self.speeds):  # neighbours that share the speeds out are at most as long as the first of them
            seconds = (seconds[:: len(self.speeds), None] / self.speeds).ravel()[: self.size]
        return -np.sort(-seconds)

    def _choose(self, phases: list[int]) -> np.ndarray:
        """Returns the indices of an epoch's utterances; a phase of 0 takes the longest that any phase takes."""
        chosen, first = [], 0
        for one, phase in zip(self.sets, phases, strict=True):
            count, taken = one.utterances, one.occurrences
            by_duration = first + np.argsort(-self.seconds[first : first + count], kind="stable")
            chosen.append(np.sort(by_duration[(np.arange(taken) * count + phase % count) // taken]))
            first += count
        return np.concatenate(chosen)
