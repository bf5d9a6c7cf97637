"""Files that are whole or not there."""

import os
from pathlib import Path


def write_whole(path, content: bytes | str) -> None:
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
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
