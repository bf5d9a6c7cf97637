"""The lines of JSON-lines manifests: this project's own, and those of NeMo, Lhotse and Hugging Face's audiofolder."""

import json
import os
from typing import NamedTuple

TEXTS = ("transcription", "text", "sentence", "transcript")  # columns of an audiofolder that hold the text


class ManifestRow(NamedTuple):
    """One line of a manifest, with its keys named as here."""

    audio: str | None  # path
    text: str
    id: str | None
    speaker: str | None
    offset: float | None  # seconds at which the utterance begins in the file
    duration: float | None  # seconds


def parse_manifest(line: str) -> ManifestRow:
    """Returns what a line of a JSON-lines manifest states.

    Raises ValueError that says what is missing or of a wrong type, and RecursionError.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return build_row(row)


def build_row(row: dict) -> ManifestRow:
    """Returns what a row states in the keys of this project, of NeMo, of Lhotse's cuts or of an audiofolder.

    Raises ValueError that says what is missing or of a wrong type.
    """
    if str(row.get("type")).endswith("Cut") or "supervisions" in row:
        row = _from_cut(row)
    elif "file_name" in row:
        row = _from_audiofolder(row)
    audio = row.get("audio", row.get("audio_filepath"))
    if not isinstance(audio, str | None):
        raise ValueError("'audio' is no string")
    if not isinstance(row.get("text"), str):
        raise ValueError("no 'text' string")
    identity, speaker = (None if row.get(key) is None else str(row[key]) for key in ("id", "speaker"))
    parsed = ManifestRow(audio, row["text"], identity, speaker, _seconds(row, "offset"), _seconds(row, "duration"))
    os.fsencode(audio or "")  # JSON can state halves of characters, which are in no name and nothing can write again
    for value in (parsed.text, parsed.id or "", parsed.speaker or ""):
        value.encode()
    return parsed


def _seconds(row: dict, key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{key!r} is no number of seconds")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError(f"{key!r} is no number of seconds") from None


def _from_audiofolder(row: dict) -> dict:
    """Returns the row that a line of `metadata.jsonl` or `metadata.csv` stands for; a file's name is its id."""
    text = next((row[column] for column in TEXTS if column in row), None)
    if text is None:
        raise ValueError(f"none of the columns {', '.join(TEXTS)}")
    return {"audio": row["file_name"], "text": text, "speaker": row.get("speaker_id", row.get("speaker"))}


def _from_cut(cut: dict) -> dict:
    """Returns the row that a Lhotse cut stands for: the span of its one supervision in its recording."""
    if cut.get("type", "MonoCut") != "MonoCut":
        raise ValueError(f"a Lhotse {cut['type']}: MonoCuts alone are read")
    try:
        supervisions, recording = cut["supervisions"], cut.get("recording")
        if len(supervisions) != 1:
            raise ValueError(f"a Lhotse cut of {len(supervisions)} supervisions, not one")
        if recording is None:
            raise ValueError("a Lhotse cut without a recording")
        if changes := {one["name"] for one in recording.get("transforms") or ()} - {"Resample"}:
            raise ValueError(f"a Lhotse recording that is to be changed ({', '.join(sorted(changes))})")
        sources = recording["sources"]
        if [source["type"] for source in sources] != ["file"] or len(sources[0]["channels"]) != 1:
            raise ValueError("a Lhotse recording that is not one file of one channel")
        supervision, = supervisions
        begin = round(cut["start"] + supervision["start"], 9)  # a sum of two roundings, which may fall below 0
        return {"audio": sources[0]["source"], "text": supervision.get("text"), "id": supervision["id"],
                "speaker": supervision.get("speaker"), "offset": begin, "duration": supervision["duration"]}
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise ValueError("not a Lhotse cut") from None
