"""Text for language models: sentences from transcripts, manifests and prose, in the form that networks write."""

from collections.abc import Iterator
from pathlib import Path

from utils.errors import UsageError, printable
from utils.files.compressed import LARGEST_READ
from utils.files.folders import walk
from utils.files.manifest import parse_manifest
from utils.files.text import TextError, read_pieces, split_transcript
from utils.lm.ngram import SPACE, SYMBOLS
from utils.normalizers import ProseCleaner
from utils.tokenizer import Tokenizer, normalize

TRANSCRIPTS = (".trans.txt", ".trans.txt.gz")
MANIFESTS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_sentences(arguments: list[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the normalised text of each line of plain text, `*.trans.txt` and manifests (`*.jsonl`).

    Any of them may be packed by gzip, and a folder stands for its `*.trans.txt`. Lines with characters that the
    tokenizer lacks are cleaned as prose; words that an n-gram has for symbols, such as `<s>`, are left out.
    Raises UsageError that names the file.
    """
    prose = ProseCleaner(tokenizer)
    for path in find_texts(arguments):
        for text in _read_texts(path):
            words = [word for word in normalize(text).split() if word not in (SPACE, *SYMBOLS)]
            if sentence := prose(" ".join(words)):
                yield sentence


def find_texts(arguments: list[str]) -> list[Path]:
    """Returns files as they are given, and the transcripts in folders, sorted. Raises UsageError."""
    paths = []
    for path in map(Path, arguments):
        if path.is_dir():
            found = [parent / name for parent, names in walk(path) for name in names
                     if name.lower().endswith(TRANSCRIPTS)]
            if not found:
                raise UsageError(f"--text {path}: no *.trans.txt in this folder; name its files")
            paths += sorted(found)
        elif path.is_file():
            paths.append(path)
        else:
            raise UsageError(f"--text {path}: no such file or folder")
    return paths


def _read_texts(path: Path) -> Iterator[str]:
    """Yields the text in each line, which the file's name tells how to find. Raises UsageError."""
    number, name = 0, path.name.lower()
    try:
        for line in read_pieces(path, LARGEST_READ):
            number += 1
            if name.endswith(TRANSCRIPTS):
                yield split_transcript(line)[1]
            elif not name.endswith(MANIFESTS):
                yield line
            elif not line.isspace():
                yield parse_manifest(line).text
    except TextError as error:
        raise UsageError(f"--text {error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--text {path}: line {number}: {printable(error, 200)}") from None
