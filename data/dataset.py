"""Utterances to padded batches of waveforms, read by workers."""

import atexit
import math
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.epoch_progress import EpochProgress
from data.index import DataError
from data.sampler import SampleRef
from data.utterances import Utterance
from utils.audio import SAMPLE_RATE, AudioError, load_audio, resample
from utils.process import end_children, return_free_memory
from utils.tokenizer import Tokenizer
from utils.types import Batch

TICK, MOST_TICKS = 5, 120  # seconds, and how many times as long a batch is waited for


class SpeechDataset(Dataset):
    """Utterances to waveforms and tokens; stateless, so that any worker gives the same answer.

    Args:
        augment: changes a (S,) waveform by its seed, after the speed; None for no change.
        skip_bad_audio: leave a file that cannot be read out of its batch, instead of stopping the run.
    """

    def __init__(self, utterances: Sequence[Utterance], tokenizer: Tokenizer, *,
                 augment: Callable[[Tensor, int], Tensor] | None = None, skip_bad_audio: bool = False):
        self.utterances, self.tokenizer = utterances, tokenizer
        self.augment, self.skip_bad_audio = augment, skip_bad_audio

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, ref: SampleRef) -> tuple[Utterance, Tensor | None]:
        """Returns the utterance and its (S,) waveform; None where it was bad and may be skipped."""
        utterance = self.utterances[ref.index]
        try:
            waveform = change_speed(load_audio(utterance.audio, part=utterance.part), ref.speed)
        except AudioError:
            if not self.skip_bad_audio:
                raise
            return utterance, None
        return utterance, self.augment(waveform, ref.seed) if self.augment else waveform

    def __getitems__(self, refs: list[SampleRef]) -> Batch | Exception:
        """Returns a batch, or why there is none, for SpeechLoader to raise."""
        try:
            return self.batch(refs)
        except (AudioError, DataError, OSError, MemoryError) as error:
            return error.with_traceback(None)

    def batch(self, refs: list[SampleRef]) -> Batch:
        """Returns the utterances of `refs`, padded.

        Raises AudioError, and DataError where all files of a batch are bad.
        """
        longest = max(self.utterances[ref.index].seconds / ref.speed for ref in refs)
        rows, good, bad = PaddedRows(len(refs), round(SAMPLE_RATE * longest)), [], []
        for ref in refs:
            utterance, waveform = self[ref]
            if waveform is None:
                bad.append(utterance.audio)
            else:
                good.append(utterance)
                rows.append(waveform)
        if not good:
            raise DataError(f"none of the {len(bad)} files of a batch can be read: {', '.join(bad[:3])}; mend them, or "
                            "take them out of the corpus, or give a larger --batch_size or --batch_seconds")
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


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """Makes speech faster or slower by resampling, which moves the pitch along (Ko et al. 2015)."""
    return resample(waveform, round(SAMPLE_RATE * speed), SAMPLE_RATE)


class PaddedRows:
    """Waveforms as rows of one array, with zeros at their ends.

    Each is copied as soon as it is read, while the processor's cache holds it. numpy takes the memory, so that
    glibc can give out the last batch's again: torch aligns it, glibc cannot, and fresh pages cost a third of reading.

    Args:
        rows: most waveforms.
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
        """Returns the rows as (B, S), S being the samples of the longest."""
        return torch.from_numpy(np.ascontiguousarray(self._padded[: len(self.counts), : max(self.counts)]))


class SpeechLoader(DataLoader):
    """Batches of a SpeechDataset.

    Raises AudioError and DataError as they were, from workers too: torch would make another exception of
    them, with a traceback for its message.
    """

    forked = False  # whether the workers, which live as long as the loader, are there
    warned = False  # whether it was said that there is too little shared memory
    waited = 0.0  # seconds that batches were waited for, in all

    def __init__(self, dataset: SpeechDataset, batch_sampler: EpochProgress, **options):
        super().__init__(dataset, batch_sampler=batch_sampler, collate_fn=_share, worker_init_fn=_init_worker,
                         **options)

    def __iter__(self) -> Iterator[Batch]:
        progress = self.batch_sampler
        progress.given = progress.given_before
        first = self.num_workers and not self.forked
        if first:
            return_free_memory()
        batches = super().__iter__()
        if first:
            self.forked = True
            atexit.register(end_children)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises wherever the program then is
            self.watchdog = _Watchdog(batches._workers)
        while True:
            started = time.perf_counter()
            batch = self._next(batches)
            self.waited += time.perf_counter() - started
            if batch is None:
                break
            if isinstance(batch, Exception):
                try:
                    raise batch
                finally:
                    del batch  # its traceback would keep this frame, and with it the workers
            progress.given += 1
            yield batch if isinstance(batch.waveforms, Tensor) else self._from_arrays(batch)
        progress.given = 0

    def _next(self, batches: Iterator) -> Batch | Exception | None:
        """Returns the next batch, None at the end.

        Raises DataError where it does not come, and RuntimeError where the worker that has it is gone.
        """
        if not self.num_workers:
            return next(batches, None)
        self.watchdog.ticks = 0
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # OSError: of the socket by which it hands tensors over
            if self.watchdog.is_over():
                raise DataError(f"no batch has come for {TICK * MOST_TICKS // 60} minutes: the disk of the recordings "
                                "hangs, or a process that reads them") from None
            raise RuntimeError(f"DataLoader worker is gone: {error}") from None
        finally:
            self.watchdog.ticks = -math.inf

    def _from_arrays(self, batch: Batch) -> Batch:
        """Returns a batch that came without shared memory, and says so once."""
        if not self.warned:
            SpeechLoader.warned = True
            print("shared memory is full, so batches are copied between processes; more of it is faster "
                  "(`docker run --shm-size 8g`, or a smaller --num_workers)", flush=True)
        return Batch(*(torch.from_numpy(field) if isinstance(field, np.ndarray) else field for field in batch))


class _Watchdog(threading.Thread):
    """Kills the data workers that somebody waits for too long, such as those of a disk that hangs.

    It counts its own ticks: a clock would count the time for which a whole job was suspended.
    """

    def __init__(self, workers: list):
        super().__init__(daemon=True)
        self.workers, self.ticks = workers, -math.inf  # since when somebody waits; nobody does
        self.start()

    def run(self) -> None:
        """Waits."""
        while not self.is_over():
            time.sleep(TICK)
            self.ticks += 1
        for worker in self.workers:
            worker.kill()

    def is_over(self) -> bool:
        """Returns whether it has killed them."""
        return self.ticks >= MOST_TICKS


_has_room = True  # whether shared memory has taken all of this worker's batches


def _share(batch: Batch | Exception) -> Batch | Exception:
    """Puts a worker's tensors into shared memory, or where that has no room makes arrays of them, which are copied.

    Docker gives a container 64 MB of shared memory where it is not told otherwise. A queue would find that out in a
    thread of its own, lose the batch, and the training process would wait for it without end.
    """
    global _has_room
    if get_worker_info() is None or isinstance(batch, Exception):
        return batch
    try:
        for field in batch if _has_room else ():
            if isinstance(field, Tensor):
                field.share_memory_()
    except (RuntimeError, OSError):
        _has_room = False  # each failure leaves an empty file there
    return batch if _has_room else Batch(*(one.numpy() if isinstance(one, Tensor) else one for one in batch))


def _init_worker(_: int) -> None:
    """Makes a worker leave signals to the run, and end where it cannot deliver, so that nobody waits for it.

    A scheduler signals every process of a run; the one that trains decides when its data workers end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_die)


def _die(error: Exception, _) -> None:
    """Ends a worker whose queue could not send something; torch then ends the run."""
    if not isinstance(error, BrokenPipeError):  # which is to say that the run was killed
        print(f"a data worker cannot deliver a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)
