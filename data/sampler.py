"""Batches of utterances of about one duration, by seconds of audio, for all processes alike."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from data.epoch_contents import EpochContents

BUCKETS = 30  # durations per bucket differ little enough for about 3 % padding on LibriSpeech
EVALUATION, TRAINING = 0, 1  # what the random numbers are for


class SampleRef(NamedTuple):
    """Which utterance to read, the seed of its own augmentation, and its speed."""

    index: int
    seed: int
    speed: float = 1.0


class BatchConfig(NamedTuple):
    """The size of the batches of an epoch, and the number of processes that share them."""

    batch_size: int  # utterances per batch, where batch_seconds is None
    batch_seconds: float | None = None  # most seconds of padded audio per batch
    processes: int = 1

    def __str__(self) -> str:
        size = f"--batch_seconds {self.batch_seconds:g}" if self.batch_seconds else f"--batch_size {self.batch_size}"
        return f"{self.processes} process{'es' if self.processes > 1 else ''} with {size}"


class DurationBatchSampler(Sampler[list[SampleRef]]):
    """Batches of utterances with similar durations, at most a budget of padded seconds each.

    An epoch's utterances are sorted by duration, at the speeds drawn for them, into buckets, and each bucket is cut
    into batches of nearly one size. The number of batches follows from the longest durations that any epoch can have
    there: it is the same in every epoch, for every process, and a multiple of the number of processes, so that no
    process waits for a batch that another does not have, nothing is dropped, and the budget holds. When shuffled,
    members change within buckets and batches change places, as a function of seed and epoch. Where an epoch has
    windows, each bucket gives those of one after the other, and a batch comes in the window of its last member.
    Where every utterance is a batch already, a few of the shortest share one, over the budget.

    Args:
        contents: the utterances of each epoch, with their speeds.
        config: size of the batches, and the processes.
        shuffle: for training; else batches come sorted, longest first.
        rank: this process.

    Raises ValueError where the processes are more than the utterances.
    """

    def __init__(self, contents: EpochContents, config: BatchConfig, *, shuffle: bool, rank: int = 0):
        self.contents, self.config, self.rank = contents, config, rank
        self.shuffle, self.epoch = shuffle, 0
        self._longest = _split_buckets(contents.longest_seconds())
        self._batches = sum(_batch_counts(self._longest, config)) // config.processes

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the batches of this process in an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return self.share(self.plan(self.config))

    def share(self, plan: list[np.ndarray]) -> Iterator[list[SampleRef]]:
        """Yields this process's batches of a plan."""
        drawn = self.contents.draw(self.epoch)
        for batch in plan[self.rank :: self.config.processes]:
            yield [SampleRef(int(drawn.indices[i]), self._augmentation_seed(int(i)), float(drawn.speeds[i]))
                   for i in batch]

    def plan(self, config: BatchConfig, pool: np.ndarray | None = None, segment: int = 0) -> list[np.ndarray]:
        """Returns the batches of all processes, one of each process in turn, as arrays of places in the epoch's draw.

        Args:
            pool: the places to share out; the whole epoch by default.
            segment: how often the epoch went on with other batches before.

        Raises ValueError where the processes are more than the utterances.
        """
        purpose = TRAINING if self.shuffle else EVALUATION
        random = np.random.default_rng((self.contents.seed, self.epoch, purpose, *([segment] if segment else [])))
        _, _, seconds, windows = self.contents.draw(self.epoch)
        whole = pool is None
        pool = np.arange(len(seconds)) if whole else pool
        buckets = _split_buckets(pool[np.argsort(-seconds[pool], kind="stable")])
        counts = _batch_counts(self._longest if whole else [seconds[bucket] for bucket in buckets], config)
        batches = []
        for bucket, count in zip(buckets, counts, strict=True):
            members = _by_window(random.permutation(bucket), windows) if self.shuffle else bucket
            batches += np.array_split(members, count)
        if not self.shuffle:
            return batches
        last = np.array([windows[batch[-1]] for batch in batches])
        return [batches[i] for i in _by_window(random.permutation(len(batches)), last)]

    def padding(self) -> float:
        """Returns the share of padded audio that is padding, in the present epoch of this process."""
        batches = [np.array([self.contents.seconds[ref.index] / ref.speed for ref in batch]) for batch in self]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    def _augmentation_seed(self, place: int) -> int:
        return int(np.random.SeedSequence((self.contents.seed, self.epoch, place)).generate_state(1)[0])


def _by_window(places: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Returns the places in the order of their windows; those of one window stay in the order that they have."""
    return places[np.argsort(windows[places], kind="stable")]


def _split_buckets(longest_first: np.ndarray) -> list[np.ndarray]:
    return np.array_split(longest_first, min(BUCKETS, max(1, len(longest_first) // 8)))


def _batch_counts(buckets: list[np.ndarray], config: BatchConfig) -> list[int]:
    """Returns the batches of each bucket of durations: the fewest in the budget, made a multiple of the processes."""
    lengths = np.array([len(bucket) for bucket in buckets])
    if sum(lengths) < config.processes:
        raise ValueError(f"{sum(lengths)} utterances cannot be shared by {config.processes} processes")
    counts = np.array([_least_batches(bucket, config) for bucket in buckets])
    while sum(counts) % config.processes and sum(counts) < sum(lengths):
        counts[np.argmax(lengths / counts)] += 1  # one more batch where batches are largest
    while sum(counts) % config.processes:
        counts[np.flatnonzero(counts > 1)[-1]] -= 1  # one fewer where utterances are shortest
    return counts.tolist()


def _least_batches(bucket: np.ndarray, config: BatchConfig) -> int:
    size = config.batch_size
    if config.batch_seconds:
        size = max(1, int(config.batch_seconds / bucket[0]))
    return math.ceil(len(bucket) / size)
