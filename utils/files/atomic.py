"""Atomic writes: a file is there with its whole content, or as it was before."""

import os
import secrets
from pathlib import Path

PARTS = ".*.part"  # of which a kill may leave some


def atomic_write(path, content: bytes | str) -> None:
    """Writes a file next to `path` and moves it into place, so that a kill or a full disk leaves `path` as it was.

    Of several processes that write the same file one wins. Raises OSError that names `path`.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # `path` may have the longest name that there can be
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
