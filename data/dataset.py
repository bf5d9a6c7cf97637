"""Utterances to padded batches of waveforms, read by workers; and how far an epoch has come."""

import signal
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from data.index import DataError, Utterance
from data.sampler import EpochSegment, SampleRef
from utils.audio import SAMPLE_RATE, AudioError, load_audio, resample
from utils.process import return_free_memory
from utils.tokenizer import Tokenizer
from utils.types import Batch


class SpeechDataset(Dataset):
    """Utterances to waveforms and tokens; stateless, so that any worker gives the same answer.

    Args:
        speeds: factors of speed perturbation (Ko et al. 2015), one drawn for each reading; none by default.
        skip_bad_audio: leave a file that cannot be read out of its batch, instead of stopping the run.
    """

    def __init__(self, utterances: list[Utterance], tokenizer: Tokenizer, *, speeds: list[float] = (),
                 skip_bad_audio: bool = False):
        self.utterances, self.tokenizer = utterances, tokenizer
        self.speeds, self.skip_bad_audio = tuple(speeds), skip_bad_audio

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, draw: SampleRef) -> tuple[Utterance, Tensor | None]:
        """The utterance and its (S,) waveform; None where it was bad and may be skipped."""
        utterance = self.utterances[draw.index]
        try:
            return utterance, self._perturb(load_audio(utterance.audio), draw.seed)
        except AudioError:
            if not self.skip_bad_audio:
                raise
            return utterance, None

    def __getitems__(self, draws: list[SampleRef]) -> Batch | AudioError | DataError:
        """A batch, or why there is none, for SpeechLoader to raise."""
        try:
            return self.batch(draws)
        except (AudioError, DataError) as error:
            return error

    def batch(self, draws: list[SampleRef]) -> Batch:
        """The utterances of `draws`, padded. Raises AudioError, and DataError where all files of a batch are bad."""
        longest = max(self.utterances[draw.index].seconds / self._speed(draw.seed) for draw in draws)
        rows, good, bad = PaddedRows(len(draws), round(SAMPLE_RATE * longest)), [], []
        for draw in draws:
            utterance, waveform = self[draw]
            if waveform is None:
                bad.append(utterance.audio)
            else:
                good.append(utterance)
                rows.append(waveform)
        if not good:
            raise DataError(f"none of the {len(bad)} files of a batch can be read: {', '.join(bad[:3])}")
        tokens = [torch.tensor(utterance.tokens) for utterance in good]
        return Batch(
            waveforms=rows.tensor(),
            sample_counts=torch.tensor(rows.counts),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.blank),
            token_counts=torch.tensor([len(t) for t in tokens]),
            texts=[utterance.text for utterance in good],
            ids=[utterance.id for utterance in good],
            skipped=bad,
        )

    def _speed(self, seed: int) -> float:
        return self.speeds[seed % len(self.speeds)] if self.speeds else 1.0

    def _perturb(self, waveform: Tensor, seed: int) -> Tensor:
        """Faster or slower by resampling, which moves the pitch along."""
        return resample(waveform, round(SAMPLE_RATE * self._speed(seed)), SAMPLE_RATE)


class PaddedRows:
    """Waveforms as rows of one array, with zeros at their ends.

    Each is copied as soon as it is read, while the processor's cache holds it. numpy takes the memory, so that
    glibc can give out the last batch's again: torch aligns it, glibc cannot, and fresh pages cost a third of reading.

    Args:
        rows: waveforms, at most.
        samples: of the longest; where one turns out longer, all rows are copied.
    """

    def __init__(self, rows: int, samples: int):
        self.counts: list[int] = []  # samples of each row
        self._padded = np.empty((rows, samples), dtype=np.float32)

    def append(self, waveform: Tensor) -> None:
        """Adds a (S,) waveform."""
        count, width = len(waveform), self._padded.shape[1]
        if count > width:
            self._padded = np.pad(self._padded, ((0, 0), (0, count - width)))
        row = self._padded[len(self.counts)]
        row[:count], row[count:] = waveform.numpy(), 0.0
        self.counts.append(count)

    def tensor(self) -> Tensor:
        """(B, S) of the longest's length."""
        return torch.from_numpy(np.ascontiguousarray(self._padded[: len(self.counts), : max(self.counts)]))


class SpeechLoader(DataLoader):
    """Batches of a SpeechDataset, and how many of the epoch under way were given out.

    Raises AudioError and DataError as they were, from workers too: torch would make another exception of
    them, with a traceback for its message.
    """

    forked = False  # whether the workers, which live as long as the loader, are there
    done = 0  # batches of the epoch under way that were given out, by this run and by those it goes on from
    waited = 0.0  # seconds that batches were waited for, in all

    def __init__(self, dataset: SpeechDataset, **options):
        super().__init__(dataset, collate_fn=_as_is, worker_init_fn=_leave_signals_to_the_run, **options)

    def __iter__(self):
        self.done = self.batch_sampler.done
        if self.num_workers and not self.forked:
            self.forked = True
            return_free_memory()
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                break
            if isinstance(batch, Exception):
                try:
                    raise batch
                finally:
                    del batch  # its traceback would keep this frame, and with it the workers
            self.done += 1
            yield batch
        self.done = 0

    @property
    def parts(self) -> list[EpochSegment]:
        """The epoch under way so far; nothing between epochs."""
        sampler = self.batch_sampler
        if not self.done or self.done == len(sampler):
            return []
        earlier = sampler.parts if sampler.done else []
        if earlier and earlier[-1].layout == sampler.layout:
            earlier = earlier[:-1]
        return [*earlier, EpochSegment(sampler.layout, self.done - sum(part.batches for part in earlier))]


def _as_is(batch):
    """The dataset collates."""
    return batch


def _leave_signals_to_the_run(_) -> None:
    """A scheduler signals every process of a run; the one that trains decides when its data workers end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
