"""Batches of utterances of about one duration, by seconds of audio, for every process alike."""

import math
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

BUCKETS = 30  # durations per bucket differ little enough for about 3 % padding on LibriSpeech
EVALUATION, TRAINING = 0, 1  # what the random numbers are for


class Draw(NamedTuple):
    """Which utterance to read, and the seed of its own augmentation."""

    index: int
    seed: int


class DurationBatchSampler(Sampler[list[Draw]]):
    """Batches of utterances with similar durations, at most a budget of padded seconds each.

    Utterances are sorted by duration into buckets, and each bucket is cut into batches of nearly
    one size. The number of batches follows from the durations alone: it is the same in every
    epoch, for every process, and a multiple of the number of processes, so that nothing is
    repeated or dropped, and no process waits for a batch that another does not have. When shuffled,
    members change within buckets and batches change places, as a function of seed and epoch.
    Where every utterance is a batch already, a few of the shortest share one, over the budget.

    Args:
        seconds: duration of each utterance.
        batch_seconds: most seconds of padded audio a batch; wins over `batch_size`.
        batch_size: utterances a batch, where `batch_seconds` is None.
        shuffle: for training; else batches come sorted, longest first.
        rank, world_size: this process and the number of them.
    """

    def __init__(self, seconds: list[float], *, batch_size: int, batch_seconds: float | None = None,
                 shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1):
        if len(seconds) < world_size:
            raise ValueError(f"{len(seconds)} utterances cannot be shared by {world_size} processes")
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`
        self.seconds = np.asarray(seconds)
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.rank, self.world_size = rank, world_size
        self.skip = 0  # batches that the next iteration leaves out: a resumed epoch has seen them
        order = np.argsort(-self.seconds, kind="stable")
        self.buckets = np.array_split(order, min(BUCKETS, max(1, len(order) // 8)))
        self.counts = self._batch_counts(batch_size, batch_seconds)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of this process, in any epoch."""
        return sum(self.counts) // self.world_size

    def __iter__(self):
        random = np.random.default_rng((self.seed, self.epoch, TRAINING if self.shuffle else EVALUATION))
        batches = []
        for bucket, count in zip(self.buckets, self.counts, strict=True):
            members = random.permutation(bucket) if self.shuffle else bucket
            batches += np.array_split(members, count)
        if self.shuffle:
            batches = [batches[i] for i in random.permutation(len(batches))]
        skip, self.skip = self.skip, 0
        for batch in batches[self.rank :: self.world_size][skip:]:
            yield [Draw(int(i), self._draw_seed(int(i))) for i in batch]

    def padding(self) -> float:
        """Share of padded audio that is padding, in the present epoch of this process."""
        batches = [self.seconds[[draw.index for draw in batch]] for batch in self]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    def _batch_counts(self, batch_size: int, batch_seconds: float | None) -> list[int]:
        """Batches in each bucket: the fewest that keep the budget, made a multiple of the processes."""
        counts = []
        for bucket in self.buckets:
            size = max(1, int(batch_seconds / self.seconds[bucket[0]])) if batch_seconds else batch_size
            counts.append(math.ceil(len(bucket) / size))
        lengths, counts = np.array([len(bucket) for bucket in self.buckets]), np.array(counts)
        while sum(counts) % self.world_size and sum(counts) < sum(lengths):
            counts[np.argmax(lengths / counts)] += 1  # one more batch where batches are largest
        while sum(counts) % self.world_size:
            counts[np.flatnonzero(counts > 1)[-1]] -= 1  # one fewer where utterances are shortest
        return counts.tolist()

    def _draw_seed(self, index: int) -> int:
        return int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0])
