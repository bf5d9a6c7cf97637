"""Text to integers and back: the normaliser and the tokenizers."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'"})


def normalize(text: str) -> str:
    """Returns the form in which texts are compared: lower case, straight apostrophes, single spaces."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).lower()
    return " ".join(text.split())


class WordSpan(NamedTuple):
    """A word of a token sequence, from its first to its last token."""

    word: str
    first: int  # place of its first token in the sequence
    last: int  # place of its last one


class Tokenizer(ABC):
    """Tokens are integers: 0 is the CTC blank, then come the labels, then `<sos>` and `<eos>`.

    The blank comes first and the two sentence symbols last, so that neither ever collides with a
    label, and a CTC output layer is the first `len(labels)` classes.

    Args:
        labels: what each class of CTC but the blank stands for, for figures and for beam search.
        texts: what it adds to a text; a word ends before each that begins with a space.
    """

    blank = 0

    def __init__(self, labels: Sequence[str], texts: Sequence[str]):
        self.labels, self._texts = ["", *labels], ["", *texts]
        self.ctc_size = len(self.labels)  # blank and labels
        self.sos = self.ctc_size
        self.eos = self.ctc_size + 1
        self.size = self.ctc_size + 2
        self.boundaries = [token for token, text in enumerate(self._texts) if text.startswith(" ")]
        self.characters = frozenset("".join(self._texts))  # of the texts that can be encoded

    @property
    @abstractmethod
    def config(self) -> dict[str, str | list[str]]:
        """The plain values from which `build_tokenizer` makes this tokenizer again."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Returns the tokens of a text that holds no unknown character."""

    def unknown(self, text: str) -> set[str]:
        """Returns the characters of a normalised text that cannot be encoded."""
        return set(text) - self.characters

    def encode(self, text: str) -> list[int]:
        """Returns tokens in 1..ctc_size - 1. Raises ValueError that names the characters outside the alphabet."""
        if missing := self.unknown(text):
            raise ValueError(f"characters outside the alphabet: {' '.join(sorted(missing))}")
        return self._encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the characters of `tokens`, spaces as they come; blank and sentence symbols stand for nothing."""
        return "".join(self._texts[token] for token in tokens if token < self.ctc_size)

    def text(self, tokens: Iterable[int]) -> str:
        """Returns the words of `tokens` with single spaces."""
        return " ".join(self.decode(tokens).split())

    def words(self, tokens: Iterable[int]) -> list[WordSpan]:
        """Returns the words of `tokens`, each with its first and last token that holds a letter of it."""
        spans, inside = [], False
        for place, token in enumerate(tokens):
            text = self.decode([token])
            inside = inside and not text.startswith(" ")
            if letters := text.strip():
                word, first, _ = spans.pop() if inside else WordSpan("", place, place)
                spans.append(WordSpan(word + letters, first, place))
                inside = True
        return spans


class CharTokenizer(Tokenizer):
    """One token per character of an alphabet."""

    def __init__(self, *, alphabet: str = ENGLISH):
        if len(set(alphabet)) != len(alphabet) or not alphabet:
            raise ValueError(f"alphabet {alphabet!r} must name each character once")
        super().__init__(alphabet, alphabet)
        self._index = {char: i for i, char in enumerate(alphabet, start=1)}

    @property
    def config(self) -> dict[str, str | list[str]]:
        """The alphabet."""
        return {"tokenizer": "char", "alphabet": "".join(self.labels)}

    def _encode(self, text: str) -> list[int]:
        return [self._index[char] for char in text]


TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer}


def build_tokenizer(tokenizer: str, **options) -> Tokenizer:
    """Returns the tokenizer of a `config`. Raises ValueError where there is none of that name."""
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer {tokenizer!r} is none of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[tokenizer](**options)


def ctc_frames_needed(tokens: list[int]) -> int:
    """Returns the fewest frames in which CTC can write `tokens`: repeats need a blank between them."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
