"""A language of Mozilla's Common Voice (Ardila et al. 2020): a table of each split, next to all clips.

    FOLDER/train.tsv, dev.tsv, test.tsv, validated.tsv, ...     client_id, path, sentence and more, in columns
    FOLDER/clips/common_voice_en_1.mp3

and its first release, in English alone, whose tables have commas, and whose clips lie in a folder for each split:

    FOLDER/cv-valid-train.csv, cv-valid-dev.csv, ...            filename, text and more
    FOLDER/cv-valid-dev/sample-000000.mp3                       which the table names with its folder

A split is named by its table.
"""

import csv
from pathlib import Path

from data.index import Entry
from data.readers.listing import check_columns, lines_of, parse_lines

CLIPS = "clips"
OF_FIRST = ("filename", "text")  # columns of the first release
KIND = "a table of Common Voice"


def find_split(root: Path, name: str) -> Path | None:
    """Returns a table with clips next to it, under `root` or as it is given; None for anything else."""
    tables = (root / name, Path(name)) if name.endswith((".tsv", ".csv")) else ()
    return next((table for table in tables if table.is_file() and _has_clips(table)), None)


def list_entries(table: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the table lists, in its own order, and its bad lines by kind. Raises DataError."""
    of_first = table.suffix == ".csv"
    split, audio, text = (_split_commas, *OF_FIRST) if of_first else (_split, "path", "sentence")
    folder = table.parent if of_first else table.parent / CLIPS
    columns = split(next(lines_of(table, KIND), None) or "")
    check_columns(table, columns, [audio, text])

    def build_entry(line: str) -> Entry:
        fields = split(line)
        if len(fields) != len(columns):
            raise ValueError(f"{len(fields)} columns, not {len(columns)}")
        row = dict(zip(columns, fields, strict=True))
        return Entry(row[audio], str(folder / row[audio]), row[text], row.get("client_id", ""))

    entries, bad = parse_lines(table, build_entry, KIND, skip=1)
    return entries, {"with a bad line in the table": bad}


def _has_clips(table: Path) -> bool:
    """Returns whether clips lie where tables of that kind have them; other tables end in .csv too."""
    if table.suffix == ".tsv":
        return (table.parent / CLIPS).is_dir()
    return table.with_suffix("").is_dir() and {*OF_FIRST} <= {*_split_commas(next(lines_of(table, KIND), None) or "")}


def _split_commas(line: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")]), [])


def _split(line: str) -> list[str]:
    return [_unquote(field) for field in line.rstrip("\r\n").split("\t")]


def _unquote(field: str) -> str:
    """Returns a field without the quotation marks that early releases put around fields that hold some."""
    inside = field[1:-1].replace('""', "")
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inside
    return field[1:-1].replace('""', '"') if quoted else field
