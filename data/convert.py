"""Writes a split of any kind that has a reader as a JSON-lines manifest.

    python -m data.convert data/kaldi/train --output train.jsonl

Texts are as the corpus has them: --text_normalizer applies when the manifest is read. Paths below the manifest's own
folder are relative to it, so that both can be moved together.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import json
import os
from pathlib import Path

from data import readers
from data.index import DataError, Entry, describe_faults
from utils.cli.parser import OneLineParser
from utils.errors import one_line_errors
from utils.files.atomic import atomic_write


def convert(name: str, output: Path, *, data_root: Path = Path("data")) -> tuple[int, dict[str, list[str]]]:
    """Writes what is listed of a split; returns the number of utterances, and what is left out by kind of fault.

    Raises DataError and OSError.
    """
    if not output.name.endswith(readers.manifest.SUFFIXES[:2]):
        raise DataError(f"--output {output}: the name of a manifest ends in .jsonl")
    entries, faults = readers.list_split(data_root, name)
    entries = list(entries)
    if not entries:
        raise DataError(f"{name}: 0 utterances{describe_faults(faults)}")
    folder = Path(os.path.abspath(output)).parent
    atomic_write(output, "".join(f"{json.dumps(build_row(entry, folder))}\n" for entry in entries))
    return len(entries), faults


def build_row(entry: Entry, folder: Path) -> dict:
    """Returns the row of an utterance in a manifest of `folder`, without what is not stated."""
    audio = Path(os.path.abspath(entry.audio))
    row = {"audio": str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio), "text": entry.text,
           "id": entry.id, "speaker": entry.speaker or None, "offset": entry.offset, "duration": entry.duration}
    return {key: value for key, value in row.items() if value is not None}


def main(arguments: list[str] | None = None) -> None:
    """Writes the manifest that the flags name, and prints what it holds."""
    parser = OneLineParser(prog="python -m data.convert", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="split, as for --train_sets")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write, such as train.jsonl")
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="folder of the corpora (default: data)")
    with one_line_errors(parser.prog):
        args = parser.parse_args(arguments)
        count, faults = convert(args.name, args.output, data_root=args.data_root.expanduser())
        print(f"{args.output}: {count:,} utterances{describe_faults(faults)}")


if __name__ == "__main__":
    main()
