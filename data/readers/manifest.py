"""Any other corpus: a JSON-lines manifest, one utterance a line.

    {"audio": "clips/a.wav", "text": "hello there", "speaker": "anna"}

`audio` is relative to the manifest's own folder; `speaker` and `id` are optional. A stated
`duration` is not believed: it is read from the file.

Corpora live anywhere, so `audio` may be an absolute path, lead out of the folder by `..`, or be a link: a
manifest can name whatever its reader may read. It must be a regular file (no device, pipe or address),
and of what is not audio nothing is kept but its path and that it is not.
"""

import json
from pathlib import Path

from data.index import LONGEST_LINE, DataError, Entry, read_lines
from utils.errors import printable


def list_entries(manifest: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """What the manifest lists, in its own order, and its bad lines by kind.

    Raises DataError where the file cannot be read as text.
    """
    entries, faults = [], {"with a bad manifest line": []}
    try:
        for number, line in enumerate(read_lines(manifest), start=1):
            try:
                entries += _entries(line, manifest.parent)
            except (ValueError, RecursionError) as error:
                faults["with a bad manifest line"].append(f"line {number}: {printable(error, 200)}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read as a JSON-lines manifest ({error})") from None
    return entries, faults


def _entries(line: str | None, folder: Path) -> list[Entry]:
    """The entry of a line, none of an empty one."""
    if line is None:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MB")
    if not line.strip():
        return []
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key in ("audio", "text"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"no {key!r} string")
    audio = folder / row["audio"]
    identity, speaker = row.get("id"), row.get("speaker")  # null is as good as none
    entry = Entry(row["audio"] if identity is None else str(identity), str(audio), row["text"],
                  "" if speaker is None else str(speaker))
    for value in entry:
        value.encode()  # JSON can state halves of characters, which nothing can write again
    return [entry]
