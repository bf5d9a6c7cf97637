"""The index of a corpus: which utterances can be used, how long they are, and what was left out."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data.utterances import Utterances
from utils.audio import AudioError, probe_seconds
from utils.errors import UserError, printable
from utils.files.atomic import atomic_write
from utils.files.members import parse_member
from utils.tokenizer import Tokenizer, normalize

SHOWN = 3  # examples of each kind of fault in a report
LONGEST = 3600.0  # seconds of an utterance; what a header states beyond is no utterance, or not true
LONGEST_FILE = 1e7  # seconds
CHECKS = 2  # raise it whenever files that had a duration may now be refused: cached durations are then read again
SHORTEST_PART = 0.01  # seconds; less may round to no samples
CLOSE = 0.05  # seconds by which a stated duration may differ from the file's through rounding
BEYOND = 0.5  # seconds that a stated part may reach beyond the end of its file


class DataError(UserError):
    """Data that cannot be used; one line that names the file or flag and the mend."""


class Entry(NamedTuple):
    """One utterance as a corpus states it, not yet looked at."""

    id: str
    audio: str  # path
    text: str
    speaker: str
    offset: float | None = None  # seconds at which it begins in the file; the beginning where it is not stated
    duration: float | None = None  # seconds; to the end of the file where it is not stated
    probed: float | str | None = None  # seconds of the file, or what is wrong with it, where an index knows that


@dataclass
class Index:
    """A split: its utterances, and by kind of fault the ids or files that were left out."""

    name: str
    utterances: Utterances
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        hours = self.utterances.seconds.sum() / 3600
        line = f"{printable(self.name)}: {len(self.utterances):,} utterances, {hours:.2f} h"
        return line + describe_faults(self.left_out)


def describe_faults(left_out: dict[str, list[str]]) -> str:
    """Returns what was left out, by kind of fault with some examples, to follow the count of what was not."""
    kinds = [f"{len(rows)} {kind} ({', '.join(printable(row, 300) for row in rows[:SHOWN])}"
             f"{', ...' if len(rows) > SHOWN else ''})" for kind, rows in left_out.items() if rows]
    return f"; left out: {'; '.join(kinds)}" if kinds else ""


def build_index(name: str, entries: Iterable[Entry], faults: dict[str, list[str]], tokenizer: Tokenizer,
                cache_dir: Path, *, normalizer: Callable[[str], str] = normalize) -> Index:
    """Keeps the entries with an id of their own, a text that the tokenizer can encode, and readable audio.

    Args:
        name: of the split, for messages.
        entries: what the corpus lists.
        faults: by kind, what the listing itself found; kept in the report.
        tokenizer: encodes the texts.
        cache_dir: holds durations from one run to the next.
        normalizer: gives texts the form in which the tokenizer encodes them.

    Raises DataError where nothing is left.
    """
    left_out, utterances = defaultdict(list), Utterances(tokenizer)
    usable = _encodable((entry._replace(text=normalizer(entry.text)) for entry in entries), tokenizer, left_out)
    for entry, found in _measured(name, usable, cache_dir):
        try:
            part, seconds = _find_part(entry, found)
        except ValueError as error:
            left_out[f"with bad audio: {error}"].append(entry.audio)
        else:
            utterances.append(id=entry.id, audio=entry.audio, text=entry.text, seconds=seconds, speaker=entry.speaker,
                              part=part)
    all_faults = {kind: [*faults.get(kind, ()), *left_out.get(kind, ())] for kind in {**faults, **left_out}}
    index = Index(name, utterances, {kind: rows for kind, rows in all_faults.items() if rows})
    if not utterances:
        raise DataError(f"nothing to use in {index}")
    return index


def _measured(name: str, entries: Iterator[Entry], cache_dir: Path) -> Iterator[tuple[Entry, float | str]]:
    """Yields each entry with the seconds of its file, or what is wrong with it; one by one where an index knows that.

    A split's entries are all of one kind.
    """
    for entry in entries:
        if entry.probed is None:
            rest = [entry, *entries]
            yield from zip(rest, probe_all(name, [one.audio for one in rest], cache_dir), strict=True)
        else:
            yield entry, entry.probed


def _find_part(entry: Entry, found: float | str) -> tuple[tuple[float, float] | None, float]:
    """Returns the part of its file that an entry states, None for all of it, and the part's seconds.

    Args:
        found: the file's duration in seconds, or what is wrong with it.

    Raises ValueError that says what is wrong.
    """
    if isinstance(found, str):
        raise ValueError(found)
    begin, end = entry.offset or 0.0, found if entry.duration is None else (entry.offset or 0.0) + entry.duration
    whole = begin == 0 and end >= found - CLOSE
    if not whole and (end <= begin or begin >= found or end > found + BEYOND):
        raise ValueError("a part that is not in it")
    seconds = found if whole else min(end, found) - begin
    if not whole and seconds < SHORTEST_PART:
        raise ValueError(f"a part of less than {SHORTEST_PART} s")
    if seconds > LONGEST:
        raise ValueError("longer than an hour: cut it into utterances")
    return None if whole else (begin, seconds), seconds


def _encodable(entries: Iterable[Entry], tokenizer: Tokenizer, left_out: dict[str, list[str]]) -> Iterator[Entry]:
    """Yields the entries whose normalised text can be encoded; the others go to `left_out`."""
    seen = set()
    for entry in entries:
        if entry.id in seen:
            left_out["with an id that came before"].append(entry.id)
        elif not entry.text:
            left_out["with an empty transcript"].append(entry.id)
        elif missing := tokenizer.unknown(entry.text):
            left_out["with characters outside the alphabet"].append(f"{entry.id}: {' '.join(sorted(missing))}")
        else:
            seen.add(entry.id)
            yield entry


def probe_all(name: str, paths: list[str], cache_dir: Path) -> list[float | str]:
    """Returns the seconds of each file, or what is wrong with it; seconds are cached by path, size and time of change.

    An entry of the cache can thus never be stale, a run that is interrupted loses only what it
    had not stored yet, and processes that write at the same time replace one good file by another.
    Bad files are looked at again: what is wrong (permissions, a network) may not change the file.
    """
    cache_file = cache_dir / f"{_slug(name, paths)}.json"
    cache = _read_cache(cache_file)
    keys = [_file_key(path) for path in paths]
    new = {key: path for path, key in zip(paths, keys, strict=True) if key not in cache}
    if new:
        with ThreadPoolExecutor() as pool:  # libsndfile works outside the interpreter's lock
            found = pool.map(probe, new.values(), chunksize=16)
            progress = tqdm(found, total=len(new), desc=f"indexing {name}", unit=" files", disable=len(new) < 1000)
            cache.update(zip(new, progress, strict=True))
        _write_cache(cache_file, {key: cache[key] for key in keys if isinstance(cache[key], float)})
    return [cache[key] for key in keys]


def probe(path: str) -> float | str:
    """Returns the seconds of a file, or what is wrong with it."""
    try:
        return probe_seconds(path)
    except AudioError as error:
        return error.reason


def _file_key(path: str) -> str:
    try:
        member = parse_member(path)
        status = os.stat(member.tar if member else path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return f"{path}|absent"
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


def _slug(name: str, paths: list[str]) -> str:
    folder = os.path.dirname(os.path.commonpath(map(os.path.abspath, paths))) if paths else ""
    digest = hashlib.sha256(os.fsencode(f"{CHECKS}{folder}")).hexdigest()
    return f"{Path(name).stem}-{digest[:12]}"


def _read_cache(path: Path) -> dict:
    try:
        cache = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # absent, unreadable or cut off: the files are probed again
        return {}
    if not isinstance(cache, dict):
        return {}
    return {key: value for key, value in cache.items() if isinstance(value, float) and 0 < value <= LONGEST_FILE}


def _write_cache(path: Path, cache: dict) -> None:
    """Writes the cache in one step; where it cannot be kept, that costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(cache))
    except OSError as error:
        print(f"note: durations are not kept, {path.parent} cannot be written ({error.strerror})")
