"""The index of a corpus: which utterances can be used, how long they are, and what was left out."""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils.audio import AudioError, probe_seconds
from utils.errors import UserError, printable
from utils.tokenizer import Tokenizer, normalize

SHOWN = 3  # examples of each kind of fault in a report
LONGEST = 3600.0  # seconds of an utterance; what a header states beyond is no utterance, or not true
LONGEST_LINE = 1 << 20  # bytes of a line in a transcript or a manifest


class DataError(UserError):
    """Data that cannot be used; one line that names the file or flag and the mend."""


class Entry(NamedTuple):
    """One utterance as a corpus states it, not yet looked at."""

    id: str
    audio: str
    text: str
    speaker: str


class Utterance(NamedTuple):
    """One utterance that can be used."""

    id: str
    audio: str  # path
    text: str  # normalised
    tokens: list[int]
    seconds: float
    speaker: str


@dataclass
class Index:
    """A split: its utterances, and by kind of fault the ids or files that were left out."""

    name: str
    utterances: list[Utterance]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        hours = sum(utterance.seconds for utterance in self.utterances) / 3600
        line = f"{self.name}: {len(self.utterances):,} utterances, {hours:.2f} h"
        faults = [f"{len(rows)} {kind} ({', '.join(printable(row, 300) for row in rows[:SHOWN])}"
                  f"{', ...' if len(rows) > SHOWN else ''})" for kind, rows in self.left_out.items()]
        return "; left out: ".join([line, "; ".join(faults)]) if faults else line


def read_lines(path: Path) -> Iterator[str | None]:
    """The lines of a UTF-8 file, None for one of more than 1 MB, which is passed over in bounded memory.

    Raises OSError, also for what is no regular file (a pipe would make it wait), and UnicodeDecodeError.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "not a file", str(path))
    encoding = "utf-8-sig"
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            whole = line
            while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                whole, line = None, file.readline(LONGEST_LINE)
            yield None if whole is None else whole.decode(encoding)
            encoding = "utf-8"


def build_index(name: str, entries: Iterable[Entry], faults: dict[str, list[str]], tokenizer: Tokenizer,
                cache_dir: Path) -> Index:
    """Keeps the entries with one id, a text that the alphabet spells, and readable audio.

    Args:
        name: of the split, for messages.
        entries: what the corpus lists.
        faults: by kind, what the listing itself found; kept in the report.
        tokenizer: spells the texts.
        cache_dir: holds durations from one run to the next.

    Raises DataError where nothing is left.
    """
    left_out = defaultdict(list, faults)
    spelled = list(_spell(entries, tokenizer, left_out))
    durations = probe_all(name, [entry.audio for entry, _ in spelled], cache_dir)
    utterances = []
    for (entry, text), found in zip(spelled, durations, strict=True):
        if isinstance(found, str):
            left_out[f"with bad audio: {found}"].append(entry.audio)
        else:
            utterances.append(Utterance(entry.id, entry.audio, text, tokenizer.encode(text), found,
                                        entry.speaker))
    index = Index(name, utterances, {kind: rows for kind, rows in left_out.items() if rows})
    if not utterances:
        raise DataError(f"nothing to use in {index}")
    return index


def _spell(entries: Iterable[Entry], tokenizer: Tokenizer, left_out: dict[str, list[str]]):
    seen = set()
    for entry in entries:
        text = normalize(entry.text)
        if entry.id in seen:
            left_out["with an id that came before"].append(entry.id)
        elif not text:
            left_out["with an empty transcript"].append(entry.id)
        elif missing := tokenizer.unknown(text):
            left_out["with characters outside the alphabet"].append(f"{entry.id}: {' '.join(sorted(missing))}")
        else:
            seen.add(entry.id)
            yield entry, text


def probe_all(name: str, paths: list[str], cache_dir: Path) -> list[float | str]:
    """Seconds of each file, or what is wrong with it; seconds are remembered by path, size and modification time.

    An entry of the cache can thus never be stale, a run that is interrupted loses only what it
    had not stored yet, and processes that write at the same time replace one good file by another.
    Bad files are looked at again: what is wrong (permissions, a network) may not change the file.
    """
    cache_file = cache_dir / f"{_slug(name, paths)}.json"
    cache = _read_cache(cache_file)
    keys = [_file_key(path) for path in paths]
    new = [(path, key) for path, key in zip(paths, keys, strict=True) if key not in cache]
    if new:
        with ThreadPoolExecutor() as pool:  # libsndfile works outside the interpreter's lock
            found = pool.map(_probe, [path for path, _ in new], chunksize=16)
            progress = tqdm(found, total=len(new), desc=f"indexing {name}", unit=" files", disable=len(new) < 1000)
            cache.update(zip([key for _, key in new], progress, strict=True))
        _write_cache(cache_file, {key: cache[key] for key in keys if isinstance(cache[key], float)})
    return [cache[key] for key in keys]


def _probe(path: str) -> float | str:
    try:
        seconds = probe_seconds(path)
    except AudioError as error:
        return error.reason
    return seconds if seconds <= LONGEST else "longer than an hour: cut it into utterances"


def _file_key(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return f"{path}|absent"
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


def _slug(name: str, paths: list[str]) -> str:
    folder = os.path.dirname(os.path.commonpath(map(os.path.abspath, paths))) if paths else ""
    return f"{Path(name).stem}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"


def _read_cache(path: Path) -> dict:
    try:
        cache = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # absent, unreadable or cut off: the files are probed again
        return {}
    if not isinstance(cache, dict):
        return {}
    return {key: seconds for key, seconds in cache.items() if isinstance(seconds, float) and 0 < seconds <= LONGEST}


def _write_cache(path: Path, cache: dict) -> None:
    """Written beside and moved into place; a cache that cannot be kept costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(cache, file)
        os.replace(file.name, path)
    except OSError as error:
        print(f"note: durations are not kept, {path.parent} cannot be written ({error.strerror})")
