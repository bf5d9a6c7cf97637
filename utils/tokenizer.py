"""Turns text into integers and back: the normaliser, and tokenizers by name."""

import io
import operator
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"
LONGEST_WORD = 100  # letters that byte-pair encoding looks at together; its time grows with their square
PRIVATE_USE = 0xF0000  # first of the characters that Unicode leaves to programs
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
    """Encodes text as integers: 0 is the CTC blank, then come the labels, then `<sos>` and `<eos>`.

    The blank comes first and the two sentence symbols last, so that neither ever collides with a label,
    and the outputs of CTC are the first `ctc_size` tokens.

    Args:
        labels: names of the tokens between blank and `<sos>`, for figures and for beam search.
        texts: what each of them adds to a text; one that begins with a space ends the word before it.
    """

    blank = 0
    mark = ""  # what a label begins with where it begins a word

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
        """Returns the plain values from which `build_tokenizer` makes this tokenizer again."""

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
    """Encodes each character of an alphabet as one token."""

    def __init__(self, *, alphabet: str = ENGLISH):
        if len(set(alphabet)) != len(alphabet) or not alphabet:
            raise ValueError(f"alphabet {alphabet!r} must name each character once")
        super().__init__(alphabet, alphabet)
        self._index = {char: i for i, char in enumerate(alphabet, start=1)}

    @property
    def config(self) -> dict[str, str | list[str]]:
        """Returns the alphabet."""
        return {"tokenizer": "char", "alphabet": "".join(self.labels)}

    def _encode(self, text: str) -> list[int]:
        return [self._index[char] for char in text]


class BPETokenizer(Tokenizer):
    """Encodes subwords as tokens, by byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909, section 3.2).

    The mark ▁ at the front of a piece says that it begins a word. It is no piece by itself: each letter is
    two, with the mark and without. So every text can be encoded, and each word has exactly one mark, which
    is what beam search with an n-gram over words needs.

    Args:
        alphabet: characters that a text may have, each once.
        vocabulary: pieces of several letters, in the order in which they were learnt.
    """

    mark = "▁"

    def __init__(self, *, alphabet: str = ENGLISH, vocabulary: Sequence[str] = ()):
        letters = [char for char in CharTokenizer(alphabet=alphabet).labels[1:] if char != " "]
        known = set(letters)
        if self.mark in known:
            raise ValueError(f"alphabet must not hold {self.mark}, which marks the beginning of a word")
        for piece in vocabulary:
            inside = piece.removeprefix(self.mark) if isinstance(piece, str) else ""
            if len(inside) < 2 or not set(inside) <= known:
                raise ValueError(f"vocabulary: {str(piece)[:40]!r} is not made of several letters of the alphabet")
        labels = [*(self.mark + letter for letter in letters), *letters, *vocabulary]
        if len(set(labels)) < len(labels):
            raise ValueError("vocabulary must hold each piece once")
        super().__init__(labels, [label.replace(self.mark, " ") for label in labels])
        self._config = {"tokenizer": "bpe", "alphabet": alphabet, "vocabulary": list(vocabulary)}
        self._index = {label: token for token, label in enumerate(labels, start=1)}
        self._encoded: dict[str, list[int]] = {}  # tokens of each word that came before

    @property
    def config(self) -> dict[str, str | list[str]]:
        """Returns the alphabet and the pieces of several letters."""
        return self._config

    def _encode(self, text: str) -> list[int]:
        words = text.split()
        for word in words:
            if word not in self._encoded:
                self._encoded[word] = self._encode_word(word)
        return [token for word in words for token in self._encoded[word]]

    def _encode_word(self, word: str) -> list[int]:
        """Joins the two neighbours whose piece was learnt first, as long as there are any."""
        letters, tokens = [self.mark + word[0], *word[1:]], []
        for begin in range(0, len(letters), LONGEST_WORD):
            pieces = letters[begin : begin + LONGEST_WORD]
            while True:
                joined = [(self._index[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in self._index]
                if not joined:
                    break
                token, place = min(joined)
                pieces[place : place + 2] = [self.labels[token]]
            tokens += [self._index[piece] for piece in pieces]
        return tokens


TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer, "bpe": BPETokenizer}
TokenizerType = Literal["char", "bpe"]


def build_tokenizer(tokenizer: str, *, alphabet: str = ENGLISH, vocabulary: Sequence[str] | None = None) -> Tokenizer:
    """Returns the tokenizer of a `config`. Raises ValueError where there is none of that name, or with such pieces."""
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer {tokenizer!r} is none of {', '.join(TOKENIZERS)}")
    learnt = {} if vocabulary is None else {"vocabulary": vocabulary}
    return TOKENIZERS[tokenizer](alphabet=alphabet, **learnt)


def learn_vocabulary(texts: Iterable[str], *, alphabet: str, vocab_size: int) -> list[str]:
    """Learns from normalised texts the vocabulary with which a BPETokenizer has `vocab_size` pieces.

    It depends on nothing but how often each word occurs, so all processes of a run learn the same. Texts
    with characters outside the alphabet are passed over. Raises ValueError where no vocabulary has that size.
    """
    letters = BPETokenizer(alphabet=alphabet)
    least = letters.ctc_size - 1
    if vocab_size <= least:
        raise ValueError(f"--vocab_size {vocab_size} must be above {least}, two pieces for each letter of the alphabet")
    counts = Counter(word for text in texts if not letters.unknown(text) for word in text.split())
    # SentencePiece joins a mark and its letter as late as any two; as one character they are together from the start.
    words = {"".join(chr(PRIVATE_USE + token) for token in letters.encode(word)): count
             for word, count in sorted(counts.items())}
    learnt = ["".join(letters.labels[ord(char) - PRIVATE_USE] for char in piece)
              for piece in (_learn_pieces(words, vocab_size) if words else [])]
    vocabulary = [piece for piece in learnt if len(piece.removeprefix(letters.mark)) > 1][: vocab_size - least]
    if (most := least + len(vocabulary)) < vocab_size:
        raise ValueError(f"--vocab_size {vocab_size} must be at most {most}, all pieces of the training transcripts")
    return vocabulary


def _learn_pieces(words: dict[str, int], vocab_size: int) -> list[str]:
    """Returns at most `vocab_size` subwords with counts, in the order in which byte-pair encoding joins them."""
    try:
        import sentencepiece
    except ImportError:
        raise ImportError("--tokenizer bpe needs sentencepiece; pip install -r requirements.txt installs it") from None
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in words.items()), input_format="tsv",
        model_writer=model, model_type="bpe", vocab_size=vocab_size + 1, hard_vocab_limit=False, unk_id=0, bos_id=-1,
        eos_id=-1, character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False,
        split_by_unicode_script=False, minloglevel=3)
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [learnt.id_to_piece(i) for i in range(1, learnt.get_piece_size())]


def ctc_frames_needed(tokens: list[int]) -> int:
    """Returns the fewest frames in which CTC can write `tokens`: repeats need a blank between them."""
    return len(tokens) + sum(map(operator.eq, tokens, tokens[1:]))
