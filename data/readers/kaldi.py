"""A data folder of Kaldi (Povey et al. 2011).

    FOLDER/wav.scp      RECORDING PATH
    FOLDER/text         UTTERANCE words of it
    FOLDER/segments     UTTERANCE RECORDING BEGIN END, in seconds; without it, utterances are whole recordings
    FOLDER/utt2spk      UTTERANCE SPEAKER, optional

No command in `wav.scp` is run.
"""

import re
from collections import defaultdict
from pathlib import Path

from data.index import Entry
from data.readers.listing import locate, parse_lines
from utils.files.text import split_transcript

ARCHIVED = re.compile(r":[0-9]+$")  # a byte in an archive, after its path


def find_split(root: Path, name: str) -> Path | None:
    """Returns the folder with a wav.scp, under `root` or as it is given; None where there is none."""
    return next((folder for folder in (root / name, Path(name)) if (folder / "wav.scp").is_file()), None)


def list_entries(folder: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """Returns the utterances in the order of `text`, and the faults by kind.

    Raises DataError where a file cannot be read.
    """
    faults = defaultdict(list)
    audio, texts = _read_table(folder / "wav.scp", faults), _read_table(folder / "text", faults)
    speakers = _read_table(folder / "utt2spk", faults) if (folder / "utt2spk").exists() else {}
    cut = (folder / "segments").exists()
    spans = _read_spans(folder / "segments", faults) if cut else {name: (name, None, None) for name in audio}
    entries = []
    for utterance, text in texts.items():
        recording, offset, duration = spans.get(utterance, ("", None, None))
        path = audio.get(recording, "")
        if fault := _fault(path):
            faults[fault].append(utterance)
        else:
            entries.append(Entry(utterance, locate(path, folder), text, speakers.get(utterance, ""), offset, duration))
    faults["without a transcript"] = [utterance for utterance in spans if utterance not in texts]
    return entries, dict(faults)


def _fault(path: str) -> str:
    """Returns the kind of fault of an entry in wav.scp, or nothing."""
    if not path:
        return "without audio"
    if path.endswith("|") or path.startswith("|"):
        return "with a command in wav.scp, which is not run: write its output to files"
    return "with audio in an archive of Kaldi: copy it to files by wav-copy" if ARCHIVED.search(path) else ""


def _read_table(path: Path, faults: dict[str, list[str]]) -> dict[str, str]:
    """Returns the rest of each line by its first word; a second line of one word counts as a fault."""
    table = {}

    def add(line: str) -> None:
        key, value = split_transcript(line)
        if key in table:
            raise ValueError(f"{key} came before")
        table[key] = value

    faults[f"with a bad line in {path.name}"] = parse_lines(path, add, "a file of Kaldi's")[1]
    return table


def _read_spans(path: Path, faults: dict[str, list[str]]) -> dict[str, tuple[str, float, float | None]]:
    """Returns recording, begin and duration of each utterance; no duration where it ends with its recording."""
    spans = {}
    for utterance, line in _read_table(path, faults).items():
        try:
            recording, begin, end = line.split()
            begin, end = float(begin), float(end)
            if not 0 <= begin < float("inf") or not (end == -1 or begin < end < float("inf")):
                raise ValueError
            spans[utterance] = recording, begin, None if end == -1 else end - begin
        except ValueError:
            faults[f"with a bad line in {path.name}"].append(f"{utterance} {line}")
    return spans
