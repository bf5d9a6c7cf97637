"""Kinds of corpora, one file each.

A reader is a module with two functions:

    find_split(root, name) -> Path | None      where the split of that name is, None where it is not of this kind
    list_entries(path) -> (entries, faults)    what is written there, and by kind of fault what is not usable

A further kind of corpus is one such file and its name in READERS.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from data.index import DataError, Entry
from data.librispeech import SHA256, download_subset
from data.readers import audiofolder, common_voice, kaldi, librispeech, manifest, shards
from utils.tokenizer import normalize

READERS = (common_voice, manifest, kaldi, audiofolder, shards, librispeech)  # asked in this order


def is_there(root: Path, name: str) -> bool:
    """Returns whether any reader finds a split of this name."""
    return bool(name) and any(reader.find_split(root, name) for reader in READERS)


def list_split(root: Path, name: str) -> tuple[Iterable[Entry], dict[str, list[str]]]:
    """Returns what is listed of a split, and by kind of fault what is not usable. Raises DataError."""
    for reader in READERS if name else ():  # no name would mean all that is there, test sets among it
        if path := reader.find_split(root, name):
            return reader.list_entries(path)
    raise DataError(f"no split {name!r} under {root}: --data_root or the working directory must hold a folder of that "
                    "name in the layout of LibriSpeech, Kaldi or audiofolder, or with tar shards; a manifest ends in "
                    ".json or .jsonl, a table of Common Voice in .tsv or .csv; subsets that can be downloaded are "
                    f"{', '.join(SHA256)}")


def download_missing(root: Path, names: Iterable[str], *, url: str) -> None:
    """Downloads those of the splits that are not there. Raises DataError, also where one is no LibriSpeech subset."""
    missing = [name for name in names if not is_there(root, name)]
    for name in missing:
        if name not in SHA256:
            list_split(root, name)  # says so before hours of download
    for name in missing:
        download_subset(name, root, url=url)


def read_transcripts(root: Path, names: Iterable[str], *, normalizer: Callable[[str], str] = normalize) -> list[str]:
    """Returns the normalised text of every utterance that splits list. Raises DataError."""
    return [normalizer(entry.text) for name in names for entry in list_split(root, name)[0]]
