"""How far an epoch has come, so that a run that was stopped goes on with what is left of it, in any batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.index import DataError
from data.sampler import BatchConfig, DurationBatchSampler, SampleRef


class EpochSegment(NamedTuple):
    """A run's piece of an epoch: how many batches each process had, and what they followed from."""

    config: BatchConfig
    batches: int


class EpochProgress:
    """A batch sampler whose first epoch may be the rest of one that other runs began.

    That epoch goes on after its segments, in the same batches or in others; nothing that it had comes again, and
    nothing is dropped. All further epochs are whole. `given` is set by whoever hands the batches out, since data
    workers ask for some of them in advance.

    Args:
        batches: makes the batches.
        epoch: the epoch that was begun.
        segments: what earlier runs had of it.

    Raises ValueError where the processes are more than the utterances that are left.
    """

    def __init__(self, batches: DurationBatchSampler, epoch: int = 0, segments: list[EpochSegment] = ()):
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`
        self.batches, self.resumed_epoch, self.segments = batches, epoch, list(segments)
        self.given = 0  # batches of the epoch under way, with those of earlier runs
        self.set_epoch(epoch)
        self._left = self._plan_rest() if self.segments else []

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration gives."""
        self.batches.set_epoch(epoch)

    @property
    def epoch(self) -> int:
        """Returns the chosen epoch."""
        return self.batches.epoch

    @property
    def batches_per_epoch(self) -> int:
        """Returns the batches of this process in a whole epoch."""
        return len(self.batches)

    @property
    def given_before(self) -> int:
        """Batches of the chosen epoch that this process had in earlier runs."""
        return sum(segment.batches for segment in self.segments) if self.epoch == self.resumed_epoch else 0

    def __len__(self) -> int:
        """Returns the batches of this process in the chosen epoch, with those of earlier runs."""
        if not self.given_before:
            return self.batches_per_epoch
        return self.given_before + len(self._left) // self.batches.config.processes

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return self.batches.share(self._left) if self.given_before else iter(self.batches)

    def segments_so_far(self) -> list[EpochSegment]:
        """Returns the segments of the epoch under way, this run's as the last; none between epochs."""
        if not self.given or self.given == len(self):
            return []
        config, earlier = self.batches.config, self.segments if self.given_before else []
        if earlier and earlier[-1].config == config:
            earlier = earlier[:-1]
        return [*earlier, EpochSegment(config, self.given - sum(segment.batches for segment in earlier))]

    def _plan_rest(self) -> list[np.ndarray]:
        """Returns what is left of the resumed epoch: the rest of its batches, or its utterances in other batches."""
        config, pool = self.batches.config, None
        for number, segment in enumerate(self.segments):
            plan = self.batches.plan(segment.config, pool, number)
            count = segment.batches * segment.config.processes
            if segment is self.segments[-1] and segment.config == config:
                return plan[count:]
            pool = np.sort(np.concatenate([np.arange(0), *plan[count:]]))
        return self.batches.plan(config, pool, len(self.segments))


class EpochState(NamedTuple):
    """The place within an epoch, as a checkpoint stores it."""

    epoch: int
    segments: list[EpochSegment]  # of the epoch under way; none between epochs
    config: BatchConfig
    seed: int
    utterances: str  # fingerprint of the training utterances, their factors, speeds and windows
    text_normalizer: str = "basic"

    @classmethod
    def load(cls, state: dict) -> "EpochState":
        """Returns what `plain` wrote."""
        segments = [EpochSegment(BatchConfig(*config), count) for *config, count in state["segments"]]
        return cls(**{**state, "segments": segments, "config": BatchConfig(*state["config"])})

    def plain(self) -> dict:
        """Returns plain values for a checkpoint."""
        segments = [(*segment.config, segment.batches) for segment in self.segments]
        return {**self._asdict(), "segments": segments, "config": tuple(self.config)}

    def check(self, now: "EpochState", *, cut_short: bool) -> None:
        """Raises DataError where a run that is as `now` cannot tell what is left of the epoch.

        Args:
            cut_short: whether an epoch ends before its last batch.
        """
        if self.text_normalizer != now.text_normalizer:
            raise DataError(f"--text_normalizer was {self.text_normalizer}, is {now.text_normalizer}: the texts would "
                            "be others, and error rates could not be compared; a new run may begin with --init_from")
        if not self.segments:
            return
        remedy = "or go on from a checkpoint at the end of an epoch (last.ckpt)"
        if self.seed != now.seed:
            raise DataError(f"the checkpoint stands within an epoch that --seed {self.seed} shuffled, not "
                            f"--seed {now.seed}: give that one, {remedy}")
        if self.utterances != now.utterances:
            raise DataError("the checkpoint stands within an epoch of other training utterances, of other factors of "
                            "--train_sets, of another --shard_window, or of another --speed_perturb: give those, "
                            f"{remedy}")
        if self.config != now.config and cut_short:
            raise DataError("within an epoch that --limit_train_batches or --overfit_batches cuts short, a run goes on "
                            f"with its own --batch_size, --batch_seconds and processes only: give those, {remedy}")
