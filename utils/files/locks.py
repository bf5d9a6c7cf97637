"""Locks between the processes of one machine or, on a shared file system, of several."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what file systems without them answer


def lock(file: IO, *, wait: bool) -> bool:
    """Locks an open, writable file against other processes, until this process closes the file or ends.

    It is a record lock, which Linux takes away with the process, after a kill too, and which no child inherits.
    Closing any other handle of this process on the same file takes it away as well.
    Returns False where the file system has no locks. Raises BlockingIOError where another process holds it and `wait`
    is False.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def exclusive_folder(folder) -> Iterator[bool]:
    """Holds a folder against other processes that ask for the same; yields whether its file system has locks.

    Raises BlockingIOError where another process holds it, and OSError where it cannot be written.
    """
    with Path(folder, ".lock").open("w") as file:
        yield lock(file, wait=False)
