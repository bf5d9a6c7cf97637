"""Atomic writes: a file is there with its whole content, or as it was before."""

import os
from pathlib import Path


def atomic_write(path, content: bytes | str) -> None:
    """Writes a file next to `path` and moves it into place, so that a kill or a full disk leaves `path` as it was.

    Raises OSError that names `path`.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
