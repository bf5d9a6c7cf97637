"""Data workers that cannot deliver what they read: the run does without, or ends; it never waits for what was lost."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import CORPUS, ROOT
from test_data import data_module, same

from data import dataset
from data.dataset import SpeechDataset
from data.index import DataError
from utils.process import end_children

COMPARE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_data import CORPUS, data_module, same
cache = sys.argv[1]
alone, loader = (data_module(CORPUS, num_workers=workers, cache_dir=cache).train_dataloader() for workers in (0, 2))
for epoch in range(2):
    alone.batch_sampler.set_epoch(epoch), loader.batch_sampler.set_epoch(epoch)
    assert all(same(a, b) for a, b in zip(alone, loader, strict=True))
print("the same")
"""


def in_shared_memory_of(size: str, *command: str) -> subprocess.CompletedProcess:
    """Runs a command that sees only so much shared memory, as `docker run --shm-size` gives it."""
    mounted = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mounted]).returncode:
        pytest.skip("no file system can be mounted here (needs root)")
    return subprocess.run(["unshare", "-m", "sh", "-c", f'{mounted} && exec "$@"', "sh", *command], cwd=ROOT,
                          capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("size", ["200k", "64m"])
def test_batches_that_do_not_fit_shared_memory_are_copied(tmp_path, size):
    done = in_shared_memory_of(size, sys.executable, "-c", COMPARE, str(tmp_path))
    assert done.returncode == 0 and done.stdout.endswith("the same\n"), done.stderr
    assert done.stdout.count("shared memory is full, so batches are copied") == (size == "200k")


def test_a_batch_that_cannot_be_sent_ends_the_run(tmp_path, monkeypatch, capfd):
    """The thread that sends it would lose it, and the run would wait for ever."""
    whole = SpeechDataset.batch
    monkeypatch.setattr(SpeechDataset, "batch",
                        lambda self, refs: whole(self, refs)._replace(ids=[lambda: "no process takes a function"]))
    loader = data_module(CORPUS, num_workers=1, cache_dir=str(tmp_path)).train_dataloader()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader)
    assert "a data worker cannot deliver a batch" in capfd.readouterr().err


@pytest.mark.parametrize("error", [MemoryError("full"), OSError(errno.EMFILE, "Too many open files", "a.flac")],
                         ids=lambda error: type(error).__name__)
def test_errors_of_the_machine_arrive_as_they_were(tmp_path, monkeypatch, error):
    def fail(self, refs):
        raise error

    monkeypatch.setattr(SpeechDataset, "batch", fail)
    loader = data_module(CORPUS, num_workers=1, cache_dir=str(tmp_path)).train_dataloader()
    with pytest.raises(type(error)) as caught:
        list(loader)
    assert str(caught.value) == str(error)
    caught.value.with_traceback(None)


def test_a_worker_that_hangs_is_not_waited_for_without_end(tmp_path, monkeypatch):
    """One that is stopped, as one whose disk is gone."""
    monkeypatch.setattr(dataset, "TICK", 1)
    monkeypatch.setattr(dataset, "MOST_TICKS", 3)
    end_children()  # of the tests before
    batches = iter(data_module(CORPUS, num_workers=1, batch_size=1, cache_dir=str(tmp_path)).train_dataloader())
    next(batches)
    worker, = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="no batch has come for 0 minutes: the disk of the recordings hangs, or a"):
        list(batches)
    worker.join(10)
    assert not worker.is_alive()


def test_a_worker_that_is_gone_with_its_batch_is_named(tmp_path, monkeypatch):
    """Its socket, by which it hands tensors over, is gone as well."""
    loader = data_module(CORPUS, num_workers=1, cache_dir=str(tmp_path)).train_dataloader()
    for error in (ConnectionRefusedError(111, "Connection refused"), FileNotFoundError(2, "No such file"), EOFError()):
        monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_next_data",
                            lambda self, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(RuntimeError, match="DataLoader worker is gone"):
            list(loader)


def test_workers_are_killed_without_a_word(tmp_path):
    """torch's handler would raise an error for them wherever the program then is, at its very end too."""
    end_children()  # of the tests before
    batches = iter(data_module(CORPUS, num_workers=2, batch_size=1, cache_dir=str(tmp_path)).train_dataloader())
    next(batches)
    workers = multiprocessing.active_children()
    end_children()
    for worker in workers:
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


def test_shared_memory_is_used_where_there_is_room(tmp_path):
    loader = data_module(CORPUS, num_workers=1, cache_dir=str(tmp_path)).train_dataloader()
    batches = list(loader)
    assert all(batch.waveforms.is_shared() and batch.tokens.is_shared() for batch in batches)
    assert all(same(a, b) for a, b in zip(batches, data_module(CORPUS, cache_dir=str(tmp_path)).train_dataloader(),
                                          strict=True))
    assert isinstance(batches[0].waveforms, torch.Tensor)
