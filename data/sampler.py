"""Batches of utterances of about one duration, by seconds of audio, for every process alike."""

import math
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

BUCKETS = 30  # durations per bucket differ little enough for about 3 % padding on LibriSpeech
EVALUATION, TRAINING = 0, 1  # what the random numbers are for


class SampleRef(NamedTuple):
    """Which utterance to read, and the seed of its own augmentation."""

    index: int
    seed: int


class BatchConfig(NamedTuple):
    """What an epoch's batches follow from, besides the utterances: their size, and the processes that share them."""

    batch_size: int  # utterances a batch, where batch_seconds is None
    batch_seconds: float | None = None  # most seconds of padded audio a batch
    processes: int = 1

    def __str__(self) -> str:
        size = f"--batch_seconds {self.batch_seconds:g}" if self.batch_seconds else f"--batch_size {self.batch_size}"
        return f"{self.processes} process{'es' if self.processes > 1 else ''} with {size}"


class EpochSegment(NamedTuple):
    """The beginning of an epoch, or its next piece: so many batches a process of one layout."""

    layout: BatchConfig
    batches: int


class DurationBatchSampler(Sampler[list[SampleRef]]):
    """Batches of utterances with similar durations, at most a budget of padded seconds each.

    Utterances are sorted by duration into buckets, and each bucket is cut into batches of nearly
    one size. The number of batches follows from the durations alone: it is the same in every
    epoch, for every process, and a multiple of the number of processes, so that nothing is
    repeated or dropped, and no process waits for a batch that another does not have. When shuffled,
    members change within buckets and batches change places, as a function of seed and epoch.
    Where every utterance is a batch already, a few of the shortest share one, over the budget.

    Args:
        seconds: duration of each utterance.
        layout: size of the batches, and the processes.
        shuffle: for training; else batches come sorted, longest first.
        rank: this process.
        resumed: an epoch, and the parts of it that a run had before it was stopped; that epoch goes on after them.

    Raises ValueError where the processes, or those that go on, are more than the utterances.
    """

    def __init__(self, seconds: list[float], layout: BatchConfig, *, shuffle: bool, seed: int = 0, rank: int = 0,
                 resumed: tuple[int, list[EpochSegment]] | None = None):
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`
        self.seconds = np.asarray(seconds)
        self.layout, self.rank = layout, rank
        self.shuffle, self.seed = shuffle, seed
        self.batches_per_epoch = self._count(np.arange(len(seconds)))  # of this process, in a whole epoch
        self.resumed_epoch, self.parts = resumed or (0, [])
        self.set_epoch(self.resumed_epoch)
        if self.parts:
            self.left = self._left()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    @property
    def done(self) -> int:
        """Batches of the chosen epoch that this process had before the run was stopped."""
        return sum(part.batches for part in self.parts) if self.epoch == self.resumed_epoch else 0

    def __len__(self) -> int:
        """Batches of this process in the chosen epoch, with those before the run was stopped."""
        return self.done + (len(self.left) if self.done else self.batches_per_epoch)

    def __iter__(self):
        for batch in self.left if self.done else self._share(np.arange(len(self.seconds)), self.layout, 0):
            yield [SampleRef(int(i), self._draw_seed(int(i))) for i in batch]

    def padding(self) -> float:
        """Share of padded audio that is padding, in the present epoch of this process."""
        batches = [self.seconds[[draw.index for draw in batch]] for batch in self]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    def _left(self) -> list[np.ndarray]:
        """What is left of the resumed epoch: the rest of its batches, or its utterances in other batches."""
        pool = np.arange(len(self.seconds))
        *earlier, last = self.parts
        for number, (layout, count) in enumerate(earlier):
            pool = self._without(pool, layout, count, number)
        if last.layout == self.layout:
            return self._share(pool, self.layout, len(earlier))[last.batches :]
        pool = self._without(pool, last.layout, last.batches, len(earlier))
        return self._share(pool, self.layout, len(self.parts))

    def _without(self, pool: np.ndarray, layout: BatchConfig, count: int, number: int) -> np.ndarray:
        """The utterances of `pool` that are not in the first `count` batches of each process."""
        given = self._plan(pool, layout, number)[: count * layout.processes]
        return np.setdiff1d(pool, np.concatenate(given)) if given else pool

    def _share(self, pool: np.ndarray, layout: BatchConfig, number: int) -> list[np.ndarray]:
        """This process's batches."""
        return self._plan(pool, layout, number)[self.rank :: layout.processes]

    def _plan(self, pool: np.ndarray, layout: BatchConfig, number: int) -> list[np.ndarray]:
        """The batches of all processes, in turn; `number` counts the parts of the epoch before this one."""
        purpose = TRAINING if self.shuffle else EVALUATION
        random = np.random.default_rng((self.seed, self.epoch, purpose, *([number] if number else [])))
        buckets = self._buckets(pool)
        batches = []
        for bucket, count in zip(buckets, self._batch_counts(buckets, layout), strict=True):
            members = random.permutation(bucket) if self.shuffle else bucket
            batches += np.array_split(members, count)
        return [batches[i] for i in random.permutation(len(batches))] if self.shuffle else batches

    def _buckets(self, pool: np.ndarray) -> list[np.ndarray]:
        order = pool[np.argsort(-self.seconds[pool], kind="stable")]
        return np.array_split(order, min(BUCKETS, max(1, len(order) // 8)))

    def _count(self, pool: np.ndarray) -> int:
        return sum(self._batch_counts(self._buckets(pool), self.layout)) // self.layout.processes

    def _batch_counts(self, buckets: list[np.ndarray], layout: BatchConfig) -> list[int]:
        """Batches in each bucket: the fewest that keep the budget, made a multiple of the processes."""
        lengths = np.array([len(bucket) for bucket in buckets])
        if sum(lengths) < layout.processes:
            raise ValueError(f"{sum(lengths)} utterances cannot be shared by {layout.processes} processes")
        counts = np.array([self._least_batches(bucket, layout) for bucket in buckets])
        while sum(counts) % layout.processes and sum(counts) < sum(lengths):
            counts[np.argmax(lengths / counts)] += 1  # one more batch where batches are largest
        while sum(counts) % layout.processes:
            counts[np.flatnonzero(counts > 1)[-1]] -= 1  # one fewer where utterances are shortest
        return counts.tolist()

    def _least_batches(self, bucket: np.ndarray, layout: BatchConfig) -> int:
        size = layout.batch_size
        if layout.batch_seconds:
            size = max(1, int(layout.batch_seconds / self.seconds[bucket[0]]))
        return math.ceil(len(bucket) / size)

    def _draw_seed(self, index: int) -> int:
        return int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0])
