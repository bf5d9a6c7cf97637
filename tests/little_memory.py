"""Work in a process of its own that may take little memory and time: what takes more fails, and harms nothing."""

import resource
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path


def in_little_memory(work: Callable[[], None], *, megabytes: int = 300, seconds: float = 20) -> None:
    """Does `work` in a process that may take so much memory more, and so long. Raises AssertionError."""
    process = get_context("fork").Process(target=_limited, args=(work, megabytes))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    process.kill()
    assert not late and process.exitcode == 0, "it hung" if late else f"status {process.exitcode}"


def _limited(work: Callable[[], None], megabytes: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    work()
