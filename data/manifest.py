"""Any other corpus: a JSON-lines manifest, one utterance a line.

    {"audio": "clips/a.wav", "text": "hello there", "speaker": "anna"}

`audio` is relative to the manifest's own folder; `speaker` and `id` are optional. A stated
`duration` is not believed: it is read from the file.
"""

import json
from pathlib import Path

from data.index import DataError, Entry


def list_entries(manifest: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """What the manifest lists, in its own order, and its bad lines by kind.

    Raises DataError where the file cannot be read as text.
    """
    try:
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold what splitlines() splits at
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read as a JSON-lines manifest ({error})") from None
    entries, faults = [], {"with a bad manifest line": []}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(json.loads(line), manifest.parent))
        except (ValueError, RecursionError) as error:
            faults["with a bad manifest line"].append(f"line {number}: {error}")
    return entries, faults


def _entry(row, folder: Path) -> Entry:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key in ("audio", "text"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"no {key!r} string")
    audio = folder / row["audio"]
    identity, speaker = row.get("id"), row.get("speaker")  # null is as good as none
    return Entry(row["audio"] if identity is None else str(identity), str(audio), row["text"],
                 "" if speaker is None else str(speaker))
