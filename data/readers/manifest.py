"""Any other corpus: a JSON-lines manifest, one utterance per line, packed by gzip or not.

    {"audio": "clips/a.wav", "text": "hello there", "speaker": "anna"}
    {"audio": "clips/long.wav", "text": "good morning", "offset": 12.5, "duration": 3.2}

`audio` is relative to the manifest's own folder, or else to the working directory; `speaker` and `id` are optional.
`offset` and `duration`, in seconds, make the utterance a part of its file; a duration beyond the end of a whole file is
not believed.
NeMo's manifests (`audio_filepath`) and Lhotse's cuts (`cuts.jsonl.gz`, of one supervision each) are read as well.

Corpora live anywhere, so `audio` may be an absolute path, lead out of the folder by `..`, or be a link: a
manifest can name whatever its reader may read. It must be a regular file (no device, pipe or address),
and of what is not audio nothing is kept but its path and that it is not.
"""

from pathlib import Path

from data.index import DataError, Entry
from data.readers.listing import locate, parse_lines
from utils.errors import printable
from utils.files.manifest import ManifestRow, parse_manifest

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
OTHERS = (".csv", ".tsv", ".manifest", ".txt", ".gz")  # which users give in place of one


def find_split(root: Path, name: str) -> Path | None:
    """Returns the path of a manifest, under `root` or as it is given; None for what is named otherwise.

    Raises DataError for tables of another kind.
    """
    path = next((path for path in (root / name, Path(name)) if path.is_file()), root / name)
    if name.lower().endswith(SUFFIXES):
        return path
    if name.lower().endswith(OTHERS) and path.is_file():
        raise DataError(f"{path}: a manifest is a .jsonl file with one JSON object per line: "
                        '{"audio": "a.wav", "text": "hello there"}')
    return None


def list_entries(manifest: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the manifest lists, in its own order, and its bad lines by kind.

    Raises DataError where the file cannot be read as text.
    """
    entries, bad = parse_lines(manifest, lambda line: build_entry(parse_manifest(line), manifest.parent),
                               "a JSON-lines manifest")
    return entries, {"with a bad manifest line": bad}


def build_entry(row: ManifestRow, folder: Path) -> Entry:
    """Returns the utterance of a row in a file of `folder`. Raises ValueError where the row names no audio."""
    if row.audio is None:
        raise ValueError("no 'audio' string")
    identity = printable(row.audio) if row.id is None else row.id
    if row.id is None and row.offset is not None:  # one of several parts of the file
        identity += f"@{row.offset:g}" + ("" if row.duration is None else f"+{row.duration:g}")
    return Entry(identity, locate(row.audio, folder), row.text, row.speaker or "", row.offset, row.duration)
