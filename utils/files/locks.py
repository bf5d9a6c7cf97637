"""Locks between the processes of one machine or, on a shared file system, of several."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # what file systems without them answer


def lock(file: IO, *, wait: bool) -> bool:
    """Locks an open, writable file against other processes, until this process closes the file or ends.

    It is a record lock, which Linux takes away with the process, after a kill too, and which no child inherits.
    Closing any other handle of this process on the same file takes it away as well.
    Returns False where the file system has no locks. Raises BlockingIOError where another process holds it and `wait`
    is False, and any other OSError with the file's name.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = file.name
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


@contextmanager
def waiting_lock(path: Path, what: str) -> Iterator[bool]:
    """Lets one process at a time do what others wait for; the file at `path` is there for as long as anybody needs it.

    Yields False, and lets several processes in, where the file system has no locks or `path` cannot be written: what
    is done under the lock must be right for several at once all the same.

    Args:
        what: what is being done, for the line that a process prints when it waits.
    """
    file = _wait_for(path, what)
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is locked: see _wait_for
            file.close()


def _wait_for(path: Path, what: str) -> IO | None:
    while True:
        try:
            file = path.open("a+")
            if not _locked(file, what):
                path.unlink(missing_ok=True)
                file.close()
                return None
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.write(f"process {os.getpid()} of {socket.gethostname()}")  # for the others' message
                file.flush()
                return file
        except FileNotFoundError:  # the holder before has deleted it, and others may lock a new one
            if not path.parent.is_dir():
                return None
        except OSError:
            return None
        file.close()


def _locked(file: IO, what: str) -> bool:
    try:
        return lock(file, wait=False)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "another process"
        print(f"waiting for {holder}, which holds {file.name}: {what}", flush=True)
        return lock(file, wait=True)
