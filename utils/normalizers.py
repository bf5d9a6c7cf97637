"""Normalisers of text by name, which bring transcripts into the form in which networks write them."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

from utils.tokenizer import ENGLISH, CharTokenizer, Tokenizer, normalize

NUMBER = re.compile(r"([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)(st|nd|rd|th)?")
ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "dr": "doctor"}  # as LibriSpeech's transcripts have them
WRITTEN_OUT = {"&": " and ", "%": " percent ", "æ": "ae", "œ": "oe", "ø": "o", "ß": "ss"}
ELISIONS = {"'em", "'tis", "'twas", "'twere", "'twill", "'twould", "'cause", "'pon"}  # begin with no quotation mark
_ALONE = re.compile(rf"(?<![\w.,:/'-]){NUMBER.pattern}(?![\w:/'-]|[.,][0-9])")  # no time, date, range, score or "3d"
_CERTAIN = re.compile(r"(?:[^\W\d_]|[\s'.,;:!?\"“”„«»()…—–&%-])*")
_ADDRESS = re.compile(r"[^\W\d_]\.[^\W\d_]{2}")  # such as example.com


def english(text: str) -> str:
    """Returns what a reader says of a sentence: lower case, no punctuation, numbers and a few abbreviations in words.

    A text of which that is not certain keeps its digits and symbols, for which it is left out and counted: amounts of
    money, times, dates, ranges, addresses, marks such as `<noise>` or `[laughter]`. Raises ImportError without
    num2words.
    """
    text = normalize(text)
    words = _ALONE.sub(lambda match: f" {spell_number(*match.groups())} ", text)
    if not _CERTAIN.fullmatch(words) or _ADDRESS.search(words):
        return text
    return _clean_english(" ".join(words.split()))


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


_clean_english = ProseCleaner(CharTokenizer(alphabet=ENGLISH))
NORMALIZERS: dict[str, Callable[[str], str]] = {"basic": normalize, "english": english}
NormalizerType = Literal["basic", "english"]
