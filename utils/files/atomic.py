"""Files that are whole or not there, and folders that one process holds."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path, content: bytes | str) -> None:
    """Writes beside `path`, to the disk, and then into place: a kill or a full disk leaves the file as it was.

    Raises OSError.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


@contextmanager
def exclusive_lock(folder) -> Iterator[None]:
    """Keeps other processes that ask the same from a folder, until the end; however that comes.

    A record lock: Linux takes it away with the process, after a kill too, and no child inherits it.
    Raises BlockingIOError where another process holds the folder, OSError where it cannot be written.
    """
    with Path(folder, ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
