"""Any folder in LibriSpeech's layout (Panayotov et al. 2015).

    ROOT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac      one utterance
    ROOT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt           a line each: id, space, text

Folders may be nested in any other way, as long as transcripts stand next to their recordings.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data.index import DataError, Entry
from utils.audio import EXTENSIONS
from utils.files.folders import describe_kinds, leads_nowhere, walk
from utils.files.text import TextError, read_lines, split_transcript

TRANSCRIPT = ".trans.txt"


def find_split(root: Path, name: str) -> Path | None:
    """Returns the folder of a split: under `root` where LibriSpeech's archives unpack it, directly there, or as given.

    Returns None where there is none. Raises DataError for a folder that all splits are in.
    """
    splits = root / "LibriSpeech"
    folder = next((path for path in (splits / name, root / name, Path(name)) if path.is_dir()), None)
    if folder and splits.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{name}: all that is under --data_root {root}, test sets among it: name a folder of one split")
    return folder


def list_entries(folder: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns what the transcripts under `folder` list, in the order of their files, and the faults by kind.

    Raises DataError where there is neither a transcript nor a recording, OSError where a folder cannot be listed.
    """
    entries, faults, files = [], defaultdict(list), []
    for parent, names in walk(folder):
        files += [name for name in names if not (parent / name).is_dir()]
        lost = [name for name in names if not name.lower().endswith(EXTENSIONS) and leads_nowhere(parent / name)]
        if lost:
            faults["of links to nothing"] += [str(parent / name) for name in lost]
        entries += _read_folder(parent, [name for name in names if name not in lost], faults)
    if not entries and not faults:
        raise DataError(f"{folder}: no *{TRANSCRIPT}, wav.scp, metadata.csv or *.tar in this folder, which "
                        f"holds {describe_kinds(files)}; other corpora can be listed in a JSON-lines manifest")
    return entries, dict(faults)


def _read_folder(parent: Path, names: list[str], faults: dict[str, list[str]]) -> list[Entry]:
    """Returns what the transcripts in one folder list, however many there are, and adds to `faults`."""
    audio = {Path(name).stem: str(parent / name) for name in names if name.lower().endswith(EXTENSIONS)}
    transcripts = [name for name in names if name.lower().endswith(TRANSCRIPT)]
    others = {Path(name).stem: str(parent / name) for name in names if name not in transcripts}
    entries, listed, readable = [], set(), True
    for transcript in transcripts:
        try:
            lines = list(_read_transcript(parent / transcript))
        except TextError as error:
            faults["in an unreadable transcript"].append(str(error))
            readable = False
            continue
        for identity, text in lines:
            listed.add(identity)
            if identity in audio:
                entries.append(Entry(identity, audio[identity], text, identity.split("-")[0]))
            elif identity in others:
                faults[f"with audio that is none of {', '.join(EXTENSIONS)}"].append(others[identity])
            else:
                faults["without audio"].append(identity)
    if readable and (untold := sorted(audio.keys() - listed)):
        faults["without a transcript"] += untold if transcripts else [audio[name] for name in untold]
    return entries


def _read_transcript(path: Path) -> Iterator[tuple[str, str]]:
    """Yields ids and texts. Raises TextError."""
    for line in read_lines(path):
        if line is None:
            raise TextError(path, "a line longer than 1 MB")
        if not line.isspace():
            yield split_transcript(line)
