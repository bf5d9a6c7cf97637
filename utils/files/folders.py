"""What stands in folders, linked ones included, and what killed processes have left there."""

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

ABANDONED = 6 * 3600  # seconds without a change after which nobody works on a file or a folder any more


def walk(folder) -> Iterator[tuple[Path, list[str]]]:
    """Yields every folder below `folder`, itself first, with the sorted names of all that it holds.

    Links to folders are followed, each real folder is visited once, and a link to a folder around it is passed
    over: it would bring in everything else that is there. Hidden names are passed over too, such as a wastebasket's
    `.Trash-1000` and the `._NAME` of macOS. Raises OSError for a folder that cannot be listed.
    """
    visited = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent), sorted([*folders, *(name for name in files if not name.startswith("."))])
        folders[:] = [name for name in folders if _leads_on(parent, name, visited)]


def _refuse(error: OSError) -> None:
    raise error


def _leads_on(parent: str, name: str, visited: set[str]) -> bool:
    real = os.path.realpath(os.path.join(parent, name))
    around = os.path.commonpath([os.path.realpath(parent), real]) == real
    if around or real in visited:
        return False
    visited.add(real)
    return True


def make_writable(folder: Path) -> None:
    """Makes a folder to write to, unless it is there. Raises OSError that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))


def leads_nowhere(path) -> bool:
    """Returns whether this is a link to something that is not there, such as a folder of a disk that is not mounted."""
    return os.path.islink(path) and not os.path.exists(path)


def describe_kinds(names: Iterable[str]) -> str:
    """Returns how many files there are of each kind, such as `3 .m4a, 1 .csv`; of the most frequent five."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(5)) or "nothing"


def remove_abandoned(folder: Path, prefix: str, *, at_once: bool = False) -> None:
    """Removes the files and folders in `folder` whose names begin so, as killed processes leave them.

    Args:
        at_once: whether a lock shows that nobody works on them; else they go once nothing has changed for hours.
    """
    for path in [path for path in folder.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):
            changed = max(os.lstat(parent).st_ctime for parent in [path, *(parent for parent, _, _ in os.walk(path))])
            if at_once or time.time() - changed > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
