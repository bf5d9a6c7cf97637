"""The process: its memory, its messages, its device, its standard input, and its revision of the code."""

import ctypes
import io
import logging
import math
import multiprocessing
import os
import platform
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from utils.errors import UsageError, printable

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_large_blocks() -> None:
    """Has glibc keep large freed blocks for the next step instead of returning them to Linux.

    Every training step frees and allocates the same large tensors; on a CPU the page faults of fresh
    memory cost about a third of the step. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)  # blocks that come straight from Linux; glibc before 2.35 caps their threshold
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def keep_few_kernels() -> None:
    """Has oneDNN keep its kernels for the last 32 shapes only, unless the environment says otherwise.

    It would keep 1,024 of them, each of a megabyte or more, and batches of varying lengths fill that cache: 3 GB after
    fifty steps of a small network on a CPU. Must be called before the first convolution.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")


def return_free_memory() -> None:
    """Returns free memory to Linux, so that a process that is forked now does not keep it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def draw_to_files() -> None:
    """Makes matplotlib draw to files, whatever MPLBACKEND a notebook or another program has left.

    Must come before Lightning is imported: it imports matplotlib, which raises for a backend that is not there.
    """
    os.environ["MPLBACKEND"] = "agg"


def quiet_packages() -> None:
    """Hides what packages say about themselves; warnings about the user's run stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*overridden `on_before_batch_transfer`.*", ".*isinstance.treespec, LeafSpec.*",
                    ".*does not have many workers.*", ".*Checkpoint directory .* exists and is not empty.*",
                    ".*number of training batches .* is smaller than the logging interval.*",
                    ".*your dataloader is not resumable.*", ".*callbacks used to create the checkpoint need.*",
                    ".*recommended to use `self.log.*sync_dist=True.*", ".*Using `DistributedSampler`.*",
                    ".*suggested max number of worker.*", ".*not created with WeightAveraging.*"):
        warnings.filterwarnings("ignore", message=f"(?s){message}")  # a path in it may have a line end


def is_first_process() -> bool:
    """Returns whether this is the run's first process, by the variables that Lightning, torchrun or SLURM set."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def say(text: str) -> None:
    """Prints a line of the run, once however many processes it has."""
    if is_first_process():
        print(text, flush=True)


def git_revision() -> str:
    """Returns the commit of the code, with `-dirty` where files differ from it; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def end_children() -> None:
    """Kills child processes that are left, such as a data worker that waits for a disk that is gone.

    Python would send data workers a signal that they ignore, and wait for them.
    """
    for process in multiprocessing.active_children():
        process.kill()


@contextmanager
def importing() -> Iterator[None]:
    """Makes Ctrl-C end the process at once: some packages take KeyboardInterrupt for another one that is missing."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def children_ignore_sigint() -> Iterator[None]:
    """Makes the processes that are started meanwhile leave Ctrl-C to this one, which decides when they end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def keep_float32() -> None:
    """Has cuDNN compute float32 convolutions and recurrent layers in float32.

    By default it rounds their factors to the 10 bits of TF32, and an utterance's output then depends on the padding by
    more than the 1e-4 that the contracts of the networks allow.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False


def find_device(name: str) -> "torch.device":
    """Returns the torch device of this name, such as cpu or cuda:1, on which float32 is float32 (`keep_float32`).

    Raises UsageError where it cannot be used.
    """
    import torch

    keep_float32()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"--device {name}: {printable(str(error).splitlines()[0], 200)}") from None
    return device


@contextmanager
def interruptible_input() -> Iterator[BinaryIO]:
    """Yields standard input, which Ctrl-C ends; what was sent until then can still be read.

    Raises KeyboardInterrupt at the end of the block, when its caller is done with that, or where Ctrl-C is pressed
    again; UsageError where standard input is closed.
    """
    if sys.stdin is None:
        raise UsageError("--stream: standard input is closed")
    source = _InterruptibleInput(sys.stdin.buffer)
    before = signal.signal(signal.SIGINT, source.interrupt)
    try:
        yield io.BufferedReader(source)
    finally:
        signal.signal(signal.SIGINT, before)
    if source.interrupted:
        raise KeyboardInterrupt


class _InterruptibleInput(io.RawIOBase):
    """A pipe that ends a second after `interrupt`, if whoever writes to it does not end it before."""

    def __init__(self, pipe: BinaryIO):
        self.pipe, self.deadline = pipe, math.inf

    @property
    def interrupted(self) -> bool:
        return self.deadline < math.inf

    def interrupt(self, *_) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.deadline = time.monotonic() + 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while time.monotonic() < self.deadline:
            if select.select([self.pipe], [], [], 0.1)[0]:
                return os.readv(self.pipe.fileno(), [buffer])
        return 0
