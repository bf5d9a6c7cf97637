"""Any other corpus: a JSON-lines manifest, one utterance per line.

    {"audio": "clips/a.wav", "text": "hello there", "speaker": "anna"}
    {"audio": "clips/long.wav", "text": "good morning", "offset": 12.5, "duration": 3.2}

`audio` is relative to the manifest's own folder; `speaker` and `id` are optional. `offset` and `duration`, in
seconds, make the utterance a part of its file; a duration beyond the end of a whole file is not believed.
NeMo's `audio_filepath` is read as `audio`, and Lhotse's cuts with one supervision each are read as well.

Corpora live anywhere, so `audio` may be an absolute path, lead out of the folder by `..`, or be a link: a
manifest can name whatever its reader may read. It must be a regular file (no device, pipe or address),
and of what is not audio nothing is kept but its path and that it is not.
"""

from pathlib import Path

from data.index import DataError, Entry
from utils.errors import printable
from utils.files.text import LONGEST_LINE, ManifestRow, TextError, parse_manifest, read_lines

SUFFIXES = (".json", ".jsonl")
OTHERS = (".csv", ".tsv", ".manifest", ".txt", ".gz")  # which users give in place of one


def find_split(root: Path, name: str) -> Path | None:
    """Returns the path of a manifest, as it is given or under `root`; None for what is named otherwise.

    Raises DataError for tables of another kind.
    """
    path = Path(name) if Path(name).is_file() else root / name
    if name.endswith(OTHERS) and path.is_file():
        raise DataError(f"{path}: a manifest is a .jsonl file with one JSON object per line: "
                        '{"audio": "a.wav", "text": "hello there"}')
    return path if name.endswith(SUFFIXES) else None


def list_entries(manifest: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the manifest lists, in its own order, and its bad lines by kind.

    Raises DataError where the file cannot be read as text, or not one line of it is JSON.
    """
    entries, faults = [], {"with a bad manifest line": []}
    try:
        for number, line in enumerate(read_lines(manifest), start=1):
            try:
                if line is None:
                    raise ValueError(f"longer than {LONGEST_LINE >> 20} MB")
                if not line.isspace():
                    entries.append(_build_entry(parse_manifest(line), manifest.parent))
            except (ValueError, RecursionError) as error:
                faults["with a bad manifest line"].append(f"line {number}: {printable(error, 200)}")
    except TextError as error:
        raise DataError(f"{manifest}: cannot be read as a JSON-lines manifest ({error.reason})") from None
    return entries, faults


def _build_entry(row: ManifestRow, folder: Path) -> Entry:
    if row.audio is None:
        raise ValueError("no 'audio' string")
    identity = printable(row.audio) if row.id is None else row.id
    if row.id is None and row.offset is not None:  # one of several parts of the file
        identity += f"@{row.offset:g}" + ("" if row.duration is None else f"+{row.duration:g}")
    return Entry(identity, str(folder / row.audio), row.text, row.speaker or "", row.offset, row.duration)
