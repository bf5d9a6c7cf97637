"""What readers share: lines that are read one by one, and the places of the files that they name."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from data.index import DataError
from utils.errors import printable
from utils.files.text import LONGEST_LINE, TextError, read_lines

Parsed = TypeVar("Parsed")


def parse_lines(path: Path, parse: Callable[[str], Parsed], kind: str, *,
                skip: int = 0) -> tuple[list[Parsed], list[str]]:
    """Returns what `parse` makes of each line that is not blank, and for each for which it raises ValueError, why.

    Args:
        kind: of file, for messages.
        skip: lines at the top, such as a header.

    Raises DataError where the file cannot be read as text.
    """
    parsed, bad = [], []
    for number, line in enumerate(lines_of(path, kind), start=1):
        try:
            if line is None:
                raise ValueError(f"longer than {LONGEST_LINE >> 20} MB")
            if number > skip and not line.isspace():
                parsed.append(parse(line))
        except (ValueError, RecursionError) as error:
            bad.append(f"line {number}: {printable(error, 200)}")
    return parsed, bad


def lines_of(path: Path, kind: str) -> Iterator[str | None]:
    """Yields the lines of a file, None for one that is too long. Raises DataError where it cannot be read as text."""
    try:
        yield from read_lines(path)
    except TextError as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error.reason})") from None


def check_columns(path: Path, columns: Iterable[str], needed: Iterable[str]) -> None:
    """Raises DataError that names the columns that a table lacks."""
    columns = list(columns)
    if missing := [column for column in needed if column not in columns]:
        raise DataError(f"{path}: no column {', '.join(missing)} in its first line, which has "
                        f"{printable(', '.join(columns), 200)}")


def locate(audio: str, folder: Path) -> str:
    """Returns the path of a file that is listed in `folder`, relative to it or else to the working directory.

    Recipes of Kaldi, Lhotse and NeMo write paths as seen from where they run.
    """
    here = str(folder / audio)
    return audio if not os.path.isfile(here) and os.path.isfile(audio) else here
