"""A folder of tar shards in WebDataset's layout, as `python -m data.shard` and other programs write them.

    FOLDER/shard-000000.tar          KEY.flac and KEY.json ({"text": ..., "speaker": ..., "id": ...}) or KEY.txt
    FOLDER/shard-000000.index.json   where each utterance lies in it, its text and its duration

Reading an utterance is one seek. An index that is missing or damaged, or is of another tar, is made anew.
"""

import json
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from data.index import CHECKS, DataError, Entry, probe
from utils.audio import EXTENSIONS
from utils.errors import printable
from utils.files.atomic import atomic_write
from utils.files.manifest import TEXTS
from utils.files.members import Member
from utils.files.text import LONGEST_LINE

INDEX = ".index.json"
MARK = 4096  # bytes at the beginning of a tar, which tell it from another


def find_split(root: Path, name: str) -> Path | None:
    """Returns the folder with tar files, under `root` or as it is given; None where there is none."""
    return next((folder for folder in (root / name, Path(name)) if any(folder.glob("*.tar"))), None)


def list_entries(folder: Path) -> tuple[Iterator[Entry], dict[str, list[str]]]:
    """Returns the utterances of all shards, in the order of their names, and the faults by kind.

    One index is read at a time, as the utterances are asked for, and the faults come along. Both raise DataError.
    """
    faults = defaultdict(list)
    return _read(folder, faults), faults


def _read(folder: Path, faults: dict[str, list[str]]) -> Iterator[Entry]:
    tars = sorted(folder.glob("*.tar"))
    for tar in tqdm(tars, desc=f"reading {folder.name}", unit=" shards", disable=len(tars) < 100):
        index = read_index(tar)
        for kind, rows in index["left_out"].items():
            faults[kind] += rows
        for key, text, speaker, begin, size, seconds in index["utterances"]:
            name = key.encode("utf-8", "backslashreplace").decode()  # names in a tar need not be UTF-8; reports are
            yield Entry(name, str(Member(str(tar), begin, size)), text, speaker, probed=seconds)


def read_index(tar: Path) -> dict:
    """Returns the index of a shard, which is made and kept next to it where there is none. Raises DataError."""
    path = tar.with_suffix(INDEX)
    try:
        state, index = state_of(tar), _read_kept(path)
        if index.get("state") == state:
            return index
        index = {"state": state, **_scan(tar)}
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{tar}: not a tar of utterances that can be read ({printable(error, 200)})") from None
    try:
        atomic_write(path, json.dumps(index))
    except OSError as error:
        print(f"note: {path} is not kept ({error.strerror})")
    return index


def _read_kept(path: Path) -> dict:
    """Returns the index that is kept in a file; an empty one where it is absent or damaged."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def state_of(tar: Path) -> list[int]:
    """Returns what changes with a tar: the version of the checks, its size, a sum of its beginning."""
    with open(tar, "rb") as file:
        return [CHECKS, tar.stat().st_size, zlib.crc32(file.read(MARK))]


def _scan(tar: Path) -> dict:
    """Returns the utterances in a tar and the faults by kind. Raises TarError, OSError and ValueError."""
    sounds, texts, bad = {}, {}, {}
    with tarfile.open(tar, "r:") as archive:
        for member in iter(archive.next, None):
            archive.members.clear()  # which it keeps to find links by
            if not member.isreg() or member.issparse() or member.size < 0:
                continue
            folder, _, name = member.name.rpartition("/")
            key = f"{folder}/{name.split('.')[0]}".lstrip("/")
            if name.lower().endswith(EXTENSIONS):
                sounds[key] = Member(str(tar), member.offset_data, member.size)
            elif name.endswith((".txt", ".json")) and member.size <= LONGEST_LINE:
                try:
                    texts[key] = _parse(key, name, archive.extractfile(member).read())
                except (ValueError, RecursionError) as error:
                    bad[key] = f"{tar.name}: {member.name} ({printable(error, 200)})"
    paired = [key for key in sounds if key in texts]
    with ThreadPoolExecutor() as pool:
        durations = pool.map(probe, [str(sounds[key]) for key in paired], chunksize=16)
        rows = [[*texts[key], sounds[key].begin, sounds[key].size, seconds]
                for key, seconds in zip(paired, durations, strict=True)]
    return {"utterances": rows, "left_out": {
        "with a bad transcript": list(bad.values()),
        "without a transcript": [f"{tar.name}: {key}" for key in sounds if key not in texts and key not in bad],
        "without audio": [f"{tar.name}: {key}" for key in texts if key not in sounds]}}


def _parse(key: str, name: str, content: bytes) -> tuple[str, str, str]:
    """Returns id, text and speaker. Raises ValueError."""
    if name.endswith(".txt"):
        return key, content.decode().strip(), ""
    row = json.loads(content)
    text = next((row[one] for one in TEXTS if isinstance(row.get(one), str)), "") if isinstance(row, dict) else None
    if text is None:
        raise ValueError("not a JSON object")
    identity, speaker = (str(row.get(one) or "") for one in ("id", "speaker"))
    f"{identity}{text}{speaker}".encode()  # JSON can state halves of characters, which nothing can write again
    return identity or key, text, speaker
