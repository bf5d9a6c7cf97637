"""What an epoch holds: how often each training set's utterances come, and each one's speed, before batches are made."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SPEEDS, TARS = 2, 3  # what the random numbers are for; the sampler has those before


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
    windows: np.ndarray  # (N,) numbers of the parts of the epoch in which they come


class EpochContents:
    """Draws the utterances and speeds of each epoch, as a function of seed and epoch.

    Every epoch has as many utterances, and nearly the same durations:

    - A set is sorted by duration, and a factor takes utterances from it at even steps, which move on in each epoch. Of
      any epochs in a row that have `x` occurrences of each utterance on average, each has `x` rounded up or down.
    - As many neighbours in duration as there are speeds share these out by chance, so that each speed is given
      to the same share of short and of long utterances.
    - Tar shards come one after the other, in an order of their own: an epoch is cut into windows of a few shards. Where
      some sets are of shards, the files of the others are shared out to the windows by chance.

    Args:
        seconds: duration of each utterance, one set after the other.
        sets: how many utterances each set has, and how often they come; by default all of them once.
        speeds: factors of speed perturbation (Ko et al. 2015); none by default.
        tars: number of each utterance's tar, -1 for a file of its own; by default all are.
        window: utterances per window, about.
    """

    def __init__(self, seconds: Sequence[float], sets: Sequence[SetShare] = (), *, speeds: Sequence[float] = (),
                 seed: int = 0, tars: Sequence[int] = (), window: int = 1):
        self.seconds, self.speeds, self.seed = np.asarray(seconds), np.sort(speeds), seed
        self.sets = list(sets) or [SetShare(len(seconds))]
        self.size = sum(one.occurrences for one in self.sets)
        self.tars = np.asarray(tars)
        self.windows = max(1, round(self.size / window)) if (self.tars >= 0).any() else 1

    def draw(self, epoch: int) -> Occurrences:
        """Returns what the epoch holds, sorted by index."""
        indices = self._choose([-epoch * one.occurrences for one in self.sets])
        seconds, speeds = self.seconds[indices], np.ones(self.size)
        if len(self.speeds):
            groups = math.ceil(self.size / len(self.speeds))
            random = np.random.default_rng((self.seed, epoch, SPEEDS))
            shared_out = random.permuted(np.tile(self.speeds, (groups, 1)), axis=1).ravel()
            speeds[np.argsort(-seconds, kind="stable")] = shared_out[: self.size]
        return Occurrences(indices, speeds, seconds / speeds, self._draw_windows(indices, epoch))

    def longest_seconds(self) -> np.ndarray:
        """Returns (N,) durations, longest first, of which the i-th is at least the i-th longest of every epoch."""
        seconds = -np.sort(-self.seconds[self._choose([0] * len(self.sets))])
        if len(self.speeds):  # neighbours that share the speeds out are at most as long as the first of them
            seconds = (seconds[:: len(self.speeds), None] / self.speeds).ravel()[: self.size]
        return -np.sort(-seconds)

    def _draw_windows(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        if self.windows == 1:
            return np.zeros(self.size, dtype=int)
        random, tars = np.random.default_rng((self.seed, epoch, TARS)), self.tars[indices]
        sizes = np.bincount(tars[tars >= 0], minlength=self.tars.max() + 1)
        order = random.permutation(len(sizes))
        begins = np.empty(len(sizes))  # of each tar, as a share of the epoch
        begins[order] = (np.cumsum(sizes[order]) - sizes[order]) / max(1, sizes.sum())
        places = np.where(tars >= 0, begins[tars], random.random(self.size))
        return (places * self.windows).astype(int)

    def _choose(self, phases: list[int]) -> np.ndarray:
        """Returns the indices of an epoch's utterances; a phase of 0 takes the longest that any phase takes."""
        chosen, first = [], 0
        for one, phase in zip(self.sets, phases, strict=True):
            count, taken = one.utterances, one.occurrences
            by_duration = first + np.argsort(-self.seconds[first : first + count], kind="stable")
            chosen.append(np.sort(by_duration[(np.arange(taken) * count + phase % count) // taken]))
            first += count
        return np.concatenate(chosen)
