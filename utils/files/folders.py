"""What stands in folders, linked ones included."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path


def walk(folder) -> Iterator[tuple[Path, list[str]]]:
    """Yields every folder below `folder`, itself first, with the sorted names of all that it holds.

    Links to folders are followed, each real folder is visited once, and a link to a folder around it is passed
    over: it would bring in everything else that is there. The `._NAME` files of macOS hold no sound or text.
    Raises OSError for a folder that cannot be listed.
    """
    visited = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        yield Path(parent), sorted(name for name in [*folders, *files] if not name.startswith("._"))
        folders[:] = [name for name in sorted(folders) if _leads_on(parent, name, visited)]


def _refuse(error: OSError) -> None:
    raise error


def _leads_on(parent: str, name: str, visited: set[str]) -> bool:
    real = os.path.realpath(os.path.join(parent, name))
    around = os.path.commonpath([os.path.realpath(parent), real]) == real
    if around or real in visited:
        return False
    visited.add(real)
    return True


def describe_kinds(names: Iterable[str]) -> str:
    """Returns how many files there are of each kind, such as `3 .m4a, 1 .csv`; of the most frequent five."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(5)) or "nothing"
