"""Text for language models: sentences from transcripts, manifests and prose, in the form that networks write."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from utils.errors import UsageError, printable
from utils.files.compressed import LARGEST_READ
from utils.files.folders import walk
from utils.files.manifest import parse_manifest
from utils.files.text import TextError, read_pieces, split_transcript
from utils.lm.ngram import SPACE, SYMBOLS
from utils.tokenizer import ENGLISH, Tokenizer, normalize

TRANSCRIPTS = (".trans.txt", ".trans.txt.gz")
MANIFESTS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
NUMBER = re.compile(r"([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)(st|nd|rd|th)?")
ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "dr": "doctor"}  # as LibriSpeech's transcripts have them
WRITTEN_OUT = {"&": " and ", "%": " percent ", "æ": "ae", "œ": "oe", "ø": "o", "ß": "ss"}
ELISIONS = {"'em", "'tis", "'twas", "'twere", "'twill", "'twould", "'cause", "'pon"}  # begin with no quotation mark


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
            found = [parent / name for parent, names in walk(path) for name in names if name.endswith(TRANSCRIPTS)]
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
    number = 0
    try:
        for line in read_pieces(path, LARGEST_READ):
            number += 1
            if path.name.endswith(TRANSCRIPTS):
                yield split_transcript(line)[1]
            elif not path.name.endswith(MANIFESTS):
                yield line
            elif not line.isspace():
                yield parse_manifest(line).text
    except TextError as error:
        raise UsageError(f"--text {error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--text {path}: line {number}: {printable(error, 200)}") from None


class ProseCleaner:
    """Brings prose into the form of transcripts: words that a network can write, with single spaces.

    Punctuation goes, letters lose the accents that the alphabet lacks, quotation marks are told from apostrophes,
    and with the English alphabet numbers and a few abbreviations are written out. Words in other scripts stay as
    they are. A text without foreign characters is not changed.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.english = tokenizer.characters == frozenset(ENGLISH)
        self.replacements = _Replacements(tokenizer.characters)

    def __call__(self, text: str) -> str:
        """Returns the clean form of a normalised text."""
        if not self.tokenizer.unknown(text):
            return text
        if self.english:
            text = NUMBER.sub(lambda match: f" {spell_number(*match.groups())} ", text)
        words = text.translate(self.replacements).split()
        if self.english:
            words = [ABBREVIATIONS.get(word, word) for word in words]
        return " ".join(_without_quotes(words))


class _Replacements(dict):
    """A table for `str.translate`, filled as characters come up."""

    def __init__(self, characters: frozenset[str]):
        super().__init__({ord(char): char for char in characters})
        self.characters = characters

    def __missing__(self, code: int) -> str:
        char = chr(code)
        base = WRITTEN_OUT.get(char) or "".join(
            one for one in unicodedata.normalize("NFKD", char) if not unicodedata.combining(one))
        is_text = unicodedata.category(char)[0] in "LN" or char in WRITTEN_OUT
        self[code] = "" if not base else " " if not is_text else base if self.characters.issuperset(base) else char
        return self[code]


def _without_quotes(words: list[str]) -> Iterator[str]:
    """Yields words without apostrophes that open a quotation, and that close one which was opened."""
    opened = False
    for word in words:
        if word.startswith("'") and word not in ELISIONS:
            word, opened = word.lstrip("'"), True
        if word.endswith("'") and opened:
            word, opened = word.rstrip("'"), False
        if word:
            yield word


@lru_cache(maxsize=1 << 16)
def spell_number(digits: str, ordinal: str | None = None) -> str:
    """Returns a number such as `1,000` or `3.5` in English words; four digits from 1100 to 1999 are a year."""
    try:
        from num2words import num2words
    except ImportError:
        raise ImportError("numbers in a text need num2words; pip install -r requirements.txt installs it") from None

    if len(digits) > 15:
        return " ".join(num2words(int(digit)) for digit in digits if digit.isdigit())
    if ordinal:
        return num2words(round(float(digits.replace(",", ""))), to="ordinal")
    if re.fullmatch("1[1-9][0-9]{2}", digits):
        return num2words(int(digits), to="year")
    return num2words(digits.replace(",", ""))
