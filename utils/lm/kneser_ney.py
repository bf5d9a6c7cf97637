"""Back-off n-gram models in arrays: Kneser-Ney estimation, entropy pruning, and ARPA files.

The n-grams of each order are the rows of a table, sorted by history and word. A row refers to two rows of the table
below: its history, which is its words but the last, and its suffix, its words but the first. So one pass over an
array does for all n-grams what the papers state for one.

The library for this, kaldingram 0.1, holds n-grams as Python objects: 1.3 GB for a million words of text, where arrays
take 0.1, so that a text of 15 million words does not fit. KenLM's own `lmplz` comes with no package.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BEGIN, END, UNKNOWN = range(3)  # the ids of <s>, </s> and <unk>
FALLBACK_DISCOUNT = 0.5  # where too few n-grams were seen once or twice for an estimate
CHUNK = 1 << 20  # n-grams written at a time


class Corpus(NamedTuple):
    """A text in numbers."""

    ids: np.ndarray  # (N,) int32, each sentence between BEGIN and END
    words: list[str]  # by id, or other units

    @property
    def counts(self) -> np.ndarray:
        """Number of times that each word occurs; BEGIN and END occur once per sentence."""
        return np.bincount(self.ids, minlength=len(self.words))


def number_words(sentences: Iterable[list[str]]) -> Corpus:
    """Numbers the words of a text in the order in which they first come."""
    numbers: defaultdict[str, int] = defaultdict(None, {"<s>": BEGIN, "</s>": END, "<unk>": UNKNOWN})
    numbers.default_factory = numbers.__len__
    ids = array("i")
    for sentence in sentences:
        ids.append(BEGIN)
        ids.extend([numbers[word] for word in sentence])
        ids.append(END)
    return Corpus(np.array(ids, dtype=np.int32), list(numbers))


@dataclass
class Table:
    """The N n-grams of one order.

    Args:
        history: row of the first words in the table below.
        suffix: row of the last words in the table below.
        word: id of the last word.
        count: how often it was seen.
    """

    history: np.ndarray  # (N,) int32
    suffix: np.ndarray  # (N,) int32
    word: np.ndarray  # (N,) int32
    count: np.ndarray  # (N,) int64
    prob: np.ndarray = field(init=False)  # (N,) P(word | history)
    backoff: np.ndarray = field(init=False)  # (N,) weight of the order below after this n-gram
    kept: np.ndarray = field(init=False)  # (N,) bool: not pruned

    def __post_init__(self):
        self.backoff, self.kept = np.ones(len(self.word)), np.ones(len(self.word), dtype=bool)


class BackoffModel:
    """A back-off n-gram model with one Kneser-Ney discount per order (Chen and Goodman 1998, section 2.7).

    Unigrams are interpolated with the uniform distribution over all words and `<unk>`. Memory and time grow with the
    text: see docs/performance.md.

    Args:
        corpus: a text of at least one sentence.
        order: most words of an n-gram.
    """

    def __init__(self, corpus: Corpus, order: int):
        self.words = corpus.words
        self.tables = _count(corpus, order)
        self.fallbacks = []  # orders without a discount of their own
        _count_continuations(self.tables)
        for number, table in enumerate(self.tables, start=1):
            self._discount(number, table)
        self._interpolate_unigrams()
        self._set_backoffs()

    def _discount(self, number: int, table: Table) -> None:
        """Sets P(word | history) = (c - D) / c(history) with D = n1 / (n1 + 2 n2), n_k n-grams having the count k."""
        once, twice = (np.count_nonzero(table.count == seen) for seen in (1, 2))
        if not once or not twice:
            self.fallbacks.append(number)
        discount = once / (once + 2 * twice) if once and twice else FALLBACK_DISCOUNT
        total = np.bincount(table.history, table.count)
        table.prob = np.maximum(table.count - discount, 0) / total[table.history]

    def _interpolate_unigrams(self) -> None:
        """Shares what the discount left among all words and `<unk>`; `<s>` is never predicted."""
        unigrams = self.tables[0].prob
        unigrams += (1 - unigrams.sum()) / (len(unigrams) - 1)
        unigrams[BEGIN] = 0.0

    def _set_backoffs(self) -> None:
        """Sets the back-off weights with which the probabilities after each history add up to 1."""
        lower = self.tables[0].prob
        for shorter, table in pairwise(self.tables):
            below, size = lower[table.suffix], len(shorter.word)
            history, kept = table.history[table.kept], table.kept
            unseen = 1 - np.bincount(history, table.prob[kept], size)
            unseen_below = 1 - np.bincount(history, below[kept], size)
            extended = np.bincount(history, minlength=size) > 0
            shorter.backoff = np.divide(unseen, unseen_below, out=np.ones(size), where=extended)
            lower = np.where(kept, table.prob, shorter.backoff[table.history] * below)

    def prune(self, threshold: float) -> None:
        """Drops n-grams without which the perplexity grows by a smaller share than `threshold` (Stolcke 1998).

        Words stay, and so do the histories of n-grams that stay.
        """
        joint = [self.tables[0].prob.copy()]  # P(history)
        joint[0][BEGIN] = joint[0][END]  # as often as sentences end
        for table in self.tables[1:-1]:
            joint.append(joint[-1][table.history] * table.prob)
        needed = np.zeros(len(self.tables[-1].word), dtype=bool)
        for number in range(len(self.tables) - 1, 0, -1):
            table, shorter = self.tables[number], self.tables[number - 1]
            history, below = table.history, shorter.prob[table.suffix]
            unseen = (1 - np.bincount(history, table.prob))[history]
            unseen_below = (1 - np.bincount(history, below))[history]
            backoff = (unseen + table.prob) / (unseen_below + below)  # after the history, without this n-gram
            change = -joint[number - 1][history] * (table.prob * np.log(below * backoff / table.prob)
                                                    + unseen * np.log(backoff / shorter.backoff[history]))
            table.kept = (np.expm1(change) >= threshold) | needed
            needed = np.bincount(history[table.kept], minlength=len(shorter.word)) > 0
        self._set_backoffs()

    @property
    def sizes(self) -> list[int]:
        """Number of n-grams of each order."""
        return [int(table.kept.sum()) for table in self.tables]

    def write(self, path) -> None:
        """Writes an ARPA file. Raises OSError."""
        names, ids = np.array(self.words, dtype=object), np.arange(len(self.words))[:, None]  # (N, order)
        with open(path, "w", encoding="utf-8") as file:
            file.write("\\data\\\n" + "".join(f"ngram {n}={size}\n" for n, size in enumerate(self.sizes, start=1)))
            for number, table in enumerate(self.tables, start=1):
                if number > 1:
                    ids = np.concatenate([ids[table.history], table.word[:, None]], axis=1)
                file.write(f"\n\\{number}-grams:\n")
                for start in range(0, len(ids), CHUNK):
                    chunk = slice(start, start + CHUNK)
                    kept = table.kept[chunk]
                    texts = map(" ".join, names[ids[chunk][kept]])
                    logs = (np.log10(np.maximum(part[chunk][kept], 1e-99)) for part in (table.prob, table.backoff))
                    file.writelines(f"{prob:.7f}\t{text}\t{backoff:.7f}\n" if backoff else f"{prob:.7f}\t{text}\n"
                                    for text, prob, backoff in zip(texts, *map(np.ndarray.tolist, logs), strict=True))
            file.write("\n\\end\\\n")


def _count(corpus: Corpus, order: int) -> list[Table]:
    """Returns the n-grams of each order in a text, none across sentences."""
    ids, vocabulary = corpus.ids, len(corpus.words)
    nothing = np.zeros(vocabulary, dtype=np.int32)
    tables = [Table(nothing, nothing, np.arange(vocabulary, dtype=np.int32), corpus.counts)]
    rows = ids  # of the n-gram that ends at each place; -1 where the sentence is shorter
    for _ in range(1, order):
        places = np.flatnonzero((rows[:-1] >= 0) & (ids[1:] != BEGIN)) + 1
        keys = rows[places - 1].astype(np.int64) * vocabulary + ids[places]
        keys, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
        inverse = inverse.astype(np.int32)
        suffix = np.empty(len(keys), dtype=np.int32)
        suffix[inverse] = rows[places]
        tables.append(Table((keys // vocabulary).astype(np.int32), suffix, (keys % vocabulary).astype(np.int32), count))
        rows = np.full_like(ids, -1)
        rows[places] = inverse
    return tables


def _count_continuations(tables: list[Table]) -> None:
    """Replaces the counts below the highest order by the number of different words that stand before an n-gram.

    Nothing stands before those that begin with `<s>`, which keep their counts; `<s>` itself is not predicted.
    """
    begins = tables[0].word == BEGIN
    for shorter, table in pairwise(tables):
        before = np.bincount(table.suffix, minlength=len(shorter.word))
        shorter.count = np.where(begins, shorter.count, before)
        begins = begins[table.history]
    tables[0].count[BEGIN] = 0
