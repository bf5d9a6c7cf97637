"""The folder of a corpus that this package makes, most in LibriSpeech's layout: it appears when it is complete.

    OUTPUT/corpus.json                                  settings and counts
    OUTPUT/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac
    OUTPUT/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt
"""

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from data.index import DataError
from utils.audio import SAMPLE_RATE
from utils.files.atomic import atomic_write
from utils.files.folders import remove_abandoned
from utils.files.locks import exclusive_folder

DESCRIPTION = "corpus.json"
SETTINGS = ".settings.json"  # in a folder that is not complete


def read_description(output: Path, settings: dict) -> dict | None:
    """Returns the description of the complete corpus in `output`, or None where there is nothing yet.

    Raises DataError where `output` holds a corpus of other settings or a damaged one, or something else.
    """
    if (output / DESCRIPTION).is_file():
        try:
            description = json.loads((output / DESCRIPTION).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            description = None
        if not isinstance(description, dict):
            raise DataError(f"{output / DESCRIPTION} is damaged: delete {output} or choose another --output")
        if description.get("settings") == settings:
            return description
        raise DataError(f"{output} was built with other settings: delete it or choose another --output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} holds something that is no corpus of this command: choose another --output")
    return None


@contextmanager
def new_corpus(output: Path, settings: dict) -> Iterator[Path]:
    """Yields the folder `OUTPUT.partial`, which becomes `output` at the end of the block.

    After an error or a kill it stays, and the next build with the same settings finds what is in it; a build with
    other settings empties it. On a file system without locks each build has a folder of its own, which does not stay.
    Raises DataError where another process builds the same corpus.
    """
    partial = output.with_name(f"{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive_folder(partial) as locked, nullcontext(partial) if locked else _own_folder(partial) as folder:
            _keep_or_empty(folder, settings)
            yield folder
            _move_into_place(folder, output, settings)
    except BlockingIOError:
        raise DataError(f"{partial} is in use by another process: wait for it, or choose another --output") from None


@contextmanager
def _own_folder(partial: Path) -> Iterator[Path]:
    """Yields a new folder next to `partial` that no other process knows, and removes what is left of it."""
    prefix = f"{partial.name}-"
    remove_abandoned(partial.parent, prefix)
    folder = partial.with_name(f"{prefix}{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            (partial / ".lock").unlink()
            partial.rmdir()


def _move_into_place(folder: Path, output: Path, settings: dict) -> None:
    """Gives the folder its name, with its lock: nobody may take it for one to go on with before it has that.

    Does nothing where another process was first with the same corpus.
    """
    try:
        folder.rename(output)  # it is not there, or empty
    except OSError:
        if read_description(output, settings) is None:
            raise
    for name in (SETTINGS, ".lock"):
        (output / name).unlink(missing_ok=True)


def _keep_or_empty(partial: Path, settings: dict) -> None:
    text = json.dumps(settings)
    if (partial / SETTINGS).is_file() and (partial / SETTINGS).read_text() == text:
        return
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
    atomic_write(partial / SETTINGS, text)


def write_transcripts(folder: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Writes the ids and texts of one chapter, whose folder is `SPEAKER/CHAPTER`."""
    lines = "".join(f"{utterance} {text}\n" for utterance, text in sorted(rows))
    atomic_write(folder / f"{folder.parent.name}-{folder.name}.trans.txt", lines)


def write_description(folder: Path, settings: dict, parts: Iterable[tuple[str, str, int, int]]) -> dict:
    """Writes corpus.json and returns its content: the settings, and hours, utterances and speakers of its splits.

    Args:
        parts: split, speaker, utterances and samples at 16 kHz of each part of the corpus.
    """
    splits = {"train": [], "dev": [], "test": []}
    for split, *part in parts:
        splits[split].append(part)
    counts = {}
    for split, rows in ((split, rows) for split, rows in splits.items() if rows):
        speakers, utterances, samples = zip(*rows, strict=True)
        counts[split] = {"hours": round(sum(samples) / SAMPLE_RATE / 3600, 4), "utterances": sum(utterances),
                         "speakers": len(set(speakers))}
    description = {"settings": settings, "splits": counts}
    atomic_write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return description
