"""A folder as Hugging Face's `audiofolder` has it: recordings, and a table of their texts.

    FOLDER/metadata.csv      file_name,transcription
    FOLDER/clips/a.wav       which the table names, relative to its own folder

The table may be `metadata.jsonl`; the text may be called `text`, `sentence` or `transcript`.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.index import DataError, Entry
from data.readers import manifest
from data.readers.listing import check_columns
from utils.errors import printable
from utils.files.manifest import build_row
from utils.files.text import TextError, read_pieces

TABLES = ("metadata.csv", "metadata.jsonl")
LONGEST_FIELD = 1 << 17  # characters; the csv module's own limit


def find_split(root: Path, name: str) -> Path | None:
    """Returns the table of a folder, under `root` or as it is given; None where there is none."""
    tables = [folder / table for folder in (root / name, Path(name)) for table in TABLES]
    return next((table for table in tables if table.is_file()), None)


def list_entries(table: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the table lists, in its own order, and its bad lines by kind. Raises DataError."""
    if table.suffix == ".jsonl":
        return manifest.list_entries(table)
    try:
        return _read_csv(table)
    except TextError as error:
        raise DataError(f"{table}: cannot be read as a table ({error.reason})") from None


def _read_csv(table: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns the entries and the bad lines of a table with quotation marks as spreadsheets write them."""
    rows = csv.DictReader(read_pieces(table, LONGEST_FIELD))
    check_columns(table, _columns(table, rows), ["file_name"])
    entries, bad = [], []
    for row in _good_rows(rows, bad):
        try:
            entries.append(manifest.build_entry(build_row(row), table.parent))
        except ValueError as error:
            bad.append(f"line {rows.line_num}: {printable(error, 200)}")
    return entries, {"with a bad line in the table": bad}


def _columns(table: Path, rows: csv.DictReader) -> Sequence[str]:
    """Returns the names in the first line. Raises DataError where that has no end."""
    try:
        columns = rows.fieldnames or ()
        if rows.reader.line_num > 1:
            raise csv.Error("it goes on in the next one")
    except csv.Error as error:
        raise DataError(f"{table}: its first line cannot be read ({printable(error, 200)}): end its quotation mark"
                        ) from None
    return columns


def _good_rows(rows: csv.DictReader, bad: list[str]) -> Iterator[dict]:
    """Yields the rows of one line with all columns; the others go to `bad`.

    A quotation mark without an end makes one field of all lines that follow, so a field of several lines is bad.
    """
    while True:
        first = rows.reader.line_num + 1
        try:
            row = next(rows)
            if any("\n" in str(value) for value in row.values()):
                raise csv.Error("a line end within a field: end its quotation mark")
            if None in row or None in row.values():
                raise csv.Error(f"not {len(rows.fieldnames)} columns")
            yield row
        except StopIteration:
            return
        except csv.Error as error:
            last = rows.reader.line_num
            bad.append(f"line{f's {first} to' if last > first else ''} {last}: {printable(error, 200)}")
