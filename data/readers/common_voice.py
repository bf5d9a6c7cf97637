"""A language of Mozilla's Common Voice (Ardila et al. 2020): a table of each split, next to all clips.

    FOLDER/train.tsv, dev.tsv, test.tsv, validated.tsv, ...     client_id, path, sentence and more, in columns
    FOLDER/clips/common_voice_en_1.mp3

A split is named by its table.
"""

from pathlib import Path

from data.index import Entry
from data.readers.listing import check_columns, lines_of, parse_lines

CLIPS = "clips"
KIND = "a table of Common Voice"


def find_split(root: Path, name: str) -> Path | None:
    """Returns a table with clips next to it, as it is given or under `root`; None for anything else."""
    tables = (Path(name), root / name) if name.endswith(".tsv") else ()
    return next((table for table in tables if table.is_file() and (table.parent / CLIPS).is_dir()), None)


def list_entries(table: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the table lists, in its own order, and its bad lines by kind. Raises DataError."""
    columns = _split(next(lines_of(table, KIND), None) or "")
    check_columns(table, columns, ["path", "sentence"])

    def build_entry(line: str) -> Entry:
        fields = _split(line)
        if len(fields) != len(columns):
            raise ValueError(f"{len(fields)} columns, not {len(columns)}")
        row = dict(zip(columns, fields, strict=True))
        return Entry(row["path"], str(table.parent / CLIPS / row["path"]), row["sentence"], row.get("client_id", ""))

    entries, bad = parse_lines(table, build_entry, KIND, skip=1)
    return entries, {"with a bad line in the table": bad}


def _split(line: str) -> list[str]:
    return [_unquote(field) for field in line.rstrip("\r\n").split("\t")]


def _unquote(field: str) -> str:
    """Returns a field without the quotation marks that early releases put around fields that hold some."""
    inside = field[1:-1].replace('""', "")
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inside
    return field[1:-1].replace('""', '"') if quoted else field
