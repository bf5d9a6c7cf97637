"""Comet's archives of what was logged offline, and what of a run's messages its server has not confirmed.

Comet writes every message to `messages.json`, and those that it still has to deliver to a database, by number.
"""

import io
import json
import shutil
import sqlite3
import time
import uuid
import zipfile
from pathlib import Path

from utils.files.atomic import atomic_write

APPENDED = {"resume_strategy": "get_or_create", "user_provided_experiment_key": True, "comet_start_sourced": True}


def open_records(folder: Path) -> list[sqlite3.Connection]:
    """The databases of undelivered messages below `folder`; open, they outlast their files, which Comet deletes."""
    records = [sqlite3.connect(path) for path in folder.glob("*/comet_messages.db")]
    unsent_messages(records)  # opens their files
    return records


def unsent_messages(records: list[sqlite3.Connection]) -> dict[int, dict]:
    """The messages, by number, that the server has not confirmed."""
    rows = [row for record in records for row in record.execute("SELECT message_id, message_json FROM messages")]
    return {number: json.loads(message) for number, message in rows}


def keep_archive(archive: Path, folder: Path, unsent: dict[int, dict] | None) -> Path | None:
    """Packs Comet's archive into `folder`, under a name of its own; of an online run the messages of `unsent` alone.

    Comet's own name is the same for every process of one seed, and its archive of an online run would have to be an
    experiment anew. Returns the archive; None where there was nothing unsent, or where Comet could not finish its own.
    """
    if not zipfile.is_zipfile(archive):
        return None
    with zipfile.ZipFile(archive) as content:
        files = {name: content.read(name) for name in content.namelist()}
    if "experiment.json" not in files:
        return None
    metadata = json.loads(files.pop("experiment.json"))
    return _pack(folder, files if unsent is None else _reduce(files, unsent), metadata | APPENDED)


def keep_leftovers(folder: Path, key: str, project: str, workspace: str | None) -> list[Path]:
    """Packs what a process of experiment `key` left in `folder/unsent`, most often killed. Returns the archives."""
    unsent, archives = folder / "unsent", []
    records = open_records(unsent)  # of an online run
    for log in sorted(unsent.glob("*/messages.json")):
        files = {path.name: path.read_bytes() for path in log.parent.iterdir() if path.is_file()}
        stopped = int(1000 * log.stat().st_mtime)
        started = min((message["local_timestamp"] for _, message in _messages(files) if "local_timestamp" in message),
                      default=stopped)
        metadata = {"offline_id": key, "project_name": project, "workspace": workspace, "tags": [],
                    "start_time": started, "stop_time": stopped, **APPENDED}
        archives.append(_pack(folder, _reduce(files, unsent_messages(records)) if records else files, metadata))
    shutil.rmtree(unsent, ignore_errors=True)
    return [archive for archive in archives if archive]


def _reduce(files: dict[str, bytes], unsent: dict[int, dict]) -> dict[str, bytes]:
    """The lines of `messages.json` that are in `unsent`, and the files that they name."""
    messages = _messages(files)
    last = {message["param"]["paramName"]: message["message_id"] for _, message in messages if "param" in message}
    kept, lines = {}, []
    for line, message in messages:
        number = message["message_id"]
        if number not in unsent or ("param" in message and number < last[message["param"]["paramName"]]):
            continue  # of a parameter's values Comet sends the last one
        lines.append(line)
        if name := message.get("file_path"):
            original = Path(unsent[number]["file_path"])  # Comet makes an empty copy of a file that it does not own
            kept[name] = files.get(name) or (original.read_bytes() if original.is_file() else b"")
    return kept | {"messages.json": b"".join(lines)}


def _messages(files: dict[str, bytes]) -> list[tuple[bytes, dict]]:
    lines = files["messages.json"].splitlines(keepends=True)
    return [(line, json.loads(line)["payload"]) for line in lines if line.endswith(b"}\n")]  # a kill cuts the last one


def _pack(folder: Path, files: dict[str, bytes], metadata: dict) -> Path | None:
    if not files["messages.json"]:
        return None
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in {**files, "experiment.json": json.dumps(metadata).encode()}.items():
            pack.writestr(name, data)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(metadata["stop_time"] / 1000))
    archive = folder / f"{metadata['offline_id']}-{stamp}-{uuid.uuid4().hex[:4]}.zip"
    atomic_write(archive, content.getvalue())
    return archive
