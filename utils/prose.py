"""Sentences of books and newspapers to transcripts: the words that a reader would say, where that is certain."""

import re
import unicodedata
from typing import NamedTuple

from utils.tokenizer import normalize

_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messers", "prof": "professor", "capt": "captain",
           "col": "colonel", "gen": "general", "lieut": "lieutenant", "rev": "reverend", "hon": "honorable",
           "esq": "esquire", "etc": "et cetera"}
_ABBREVIATION = re.compile(rf"\b({'|'.join(_TITLES)})\.", re.IGNORECASE)
_CUT_OFF = re.compile(rf"\b({'|'.join(_TITLES.keys() - {'esq', 'etc'})})\.\W*$", re.IGNORECASE)
_CHARACTERS = str.maketrans({
    "´": "'", "‘": "'", "’": "'", "`": "'", "“": '"', "”": '"', "_": None, "*": None, "\ufeff": None, "\u00ad": None,
    "‐": "-", "‑": "-", "æ": "ae", "œ": "oe", "Æ": "Ae", "Œ": "Oe"})
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
_DOTS = re.compile(r"\s*\.(?:\s*\.)+")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_PUNCTUATION = re.compile(r"[ '\".,;:!?()\[\]…—–-]")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")


class ProseError(ValueError):
    """Raised for a sentence whose words are not certain; the message is the kind of reason."""


class Sentence(NamedTuple):
    """A sentence to be said, with its punctuation, and the words of it in lower case."""

    spoken: str
    words: str


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph, each with its punctuation."""
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", "\0"), paragraph.translate(_CHARACTERS).strip())
    return [sentence.replace("\0", ".") for sentence in _cut(text) if sentence.strip()]


def _cut(text: str) -> list[str]:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def read_sentence(text: str) -> Sentence:
    """Returns what is said of one sentence, and its words: titles in full, accents dropped, no punctuation.

    Raises ProseError where the words are not certain: digits and symbols, words in capitals (which may be Roman
    numerals, or said letter by letter), letters of other alphabets, a title at the end, no word at all.
    """
    spoken = unicodedata.normalize("NFKD", text.translate(_CHARACTERS))
    spoken = " ".join("".join(char for char in spoken if not unicodedata.combining(char)).split())
    if _CUT_OFF.search(spoken):
        raise ProseError("that end after a title")
    if _CAPITALS.search(spoken):
        raise ProseError("with words in capitals")
    spoken = _ABBREVIATION.sub(lambda match: _TITLES[match[1].lower()].capitalize(), spoken)
    spoken = _DOTS.sub("…", spoken)
    letters = _PUNCTUATION.sub("", spoken)
    if not letters.isascii():
        raise ProseError("with other letters or symbols")
    if not letters.isalpha():
        raise ProseError("with digits or symbols" if letters else "without words")
    return Sentence(spoken, " ".join(_WORD.findall(normalize(spoken))))
