"""The process a run is in: allocator, messages of packages, code revision."""

import ctypes
import logging
import os
import platform
import subprocess
import warnings
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_large_blocks() -> None:
    """Tells glibc to keep large freed blocks for the next step, instead of returning them to Linux.

    Every training step frees and takes the same large tensors; on a CPU the page faults of fresh
    memory cost about a third of the step. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)  # blocks that come straight from Linux; glibc before 2.35 caps their threshold
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def keep_few_kernels() -> None:
    """Tells oneDNN to keep its kernels for the last few shapes alone, where the user says nothing else.

    It would keep 1,024, of a megabyte or more each, and batches of ever other lengths fill them: 3 GB after fifty
    steps of a small network on a CPU. Must come before the first convolution.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")


def return_free_memory() -> None:
    """Gives what is free back to Linux, so that a process that is forked now does not hold it for ever."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def quiet_packages() -> None:
    """Keeps what packages say of themselves off the screen; warnings about a user's run stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*overridden `on_before_batch_transfer`.*", ".*isinstance.treespec, LeafSpec.*",
                    ".*does not have many workers.*", ".*Checkpoint directory .* exists and is not empty.*",
                    ".*number of training batches .* is smaller than the logging interval.*",
                    ".*your dataloader is not resumable.*", ".*callbacks used to create the checkpoint need.*",
                    ".*recommended to use `self.log.*sync_dist=True.*", ".*Using `DistributedSampler`.*"):
        warnings.filterwarnings("ignore", message=message)


def is_first_process() -> bool:
    """Whether this is the run's first process, by what Lightning, torchrun or SLURM say in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def git_revision() -> str:
    """The commit of the code, with `-dirty` where files differ from it; `unknown` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
