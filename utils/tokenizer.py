"""Text to integers and back: the normaliser and the character tokenizer."""

import unicodedata

ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'"})


def normalize(text: str) -> str:
    """Lower case, straight apostrophes, single spaces: the form in which texts are compared."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).lower()
    return " ".join(text.split())


class CharTokenizer:
    """One integer a character. 0 is the CTC blank, then the alphabet, then `<sos>` and `<eos>`.

    The blank comes first and the two sentence symbols last, so that neither ever collides with
    a character, and a CTC output layer is the first `len(alphabet) + 1` classes.
    """

    blank = 0

    def __init__(self, *, alphabet: str = ENGLISH):
        if len(set(alphabet)) != len(alphabet) or not alphabet:
            raise ValueError(f"alphabet {alphabet!r} must name each character once")
        self.alphabet = alphabet
        self._index = {char: i for i, char in enumerate(alphabet, start=1)}
        self.ctc_size = len(alphabet) + 1  # blank and characters
        self.sos = self.ctc_size
        self.eos = self.ctc_size + 1
        self.size = self.ctc_size + 2

    def unknown(self, text: str) -> set[str]:
        """The characters of a normalised text that the alphabet lacks."""
        return set(text) - self._index.keys()

    def encode(self, text: str) -> list[int]:
        """Integers in 1..len(alphabet). Raises ValueError that names the characters it lacks."""
        if missing := self.unknown(text):
            raise ValueError(f"characters outside the alphabet: {' '.join(sorted(missing))}")
        return [self._index[char] for char in text]

    def decode(self, tokens: list[int]) -> str:
        """The characters of `tokens`; blank and sentence symbols stand for nothing."""
        return "".join(self.alphabet[t - 1] for t in tokens if 0 < t < self.ctc_size)

    def text(self, tokens: list[int]) -> str:
        """The words of `tokens` with single spaces."""
        return " ".join(self.decode(tokens).split())


def ctc_frames_needed(tokens: list[int]) -> int:
    """Fewest output frames that CTC can spell `tokens` in: repeats need a blank between them."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
