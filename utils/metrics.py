"""Word and character error rates: sums over a corpus, never means over utterances."""

from itertools import zip_longest
from typing import NamedTuple

import jiwer
import torch
from torch import Tensor


class ErrorCounts(NamedTuple):
    """Numbers of errors (substitutions + deletions + insertions) and reference lengths, which can be added."""

    word_errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0
    utterances: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def wer(self) -> float:
        """Word error rate, a fraction."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate, a fraction; spaces are characters."""
        return self.char_errors / max(self.chars, 1)

    def to_tensor(self, device=None) -> Tensor:
        """Returns the counts as a (5,) int64 tensor, for a sum over processes."""
        return torch.tensor(self, dtype=torch.int64, device=device)


def count_errors(references: list[str], hypotheses: list[str]) -> ErrorCounts:
    """Counts errors by minimum edit distance; texts are compared as they are given.

    An empty reference has no words, and every word of its hypothesis is an error.
    Raises ValueError where the lists differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        return ErrorCounts()
    words = jiwer.process_words(references, hypotheses)
    chars = jiwer.process_characters(references, hypotheses)
    return ErrorCounts(
        word_errors=words.substitutions + words.deletions + words.insertions,
        words=words.hits + words.substitutions + words.deletions,
        char_errors=chars.substitutions + chars.deletions + chars.insertions,
        chars=chars.hits + chars.substitutions + chars.deletions,
        utterances=len(references),
    )


class Edit(NamedTuple):
    """One step of an alignment: a word of the reference and a word of the hypothesis."""

    reference: str  # empty where a word was inserted
    hypothesis: str  # empty where a word was deleted

    @property
    def kind(self) -> str:
        """Kind of the edit: `hit`, `substitution`, `insertion` or `deletion`."""
        if self.reference and self.hypothesis:
            return "hit" if self.reference == self.hypothesis else "substitution"
        return "deletion" if self.reference else "insertion"


def align_words(references: list[str], hypotheses: list[str]) -> list[list[Edit]]:
    """Aligns the words of each pair of texts by minimum edit distance; their edits are what `count_errors` counts.

    Raises ValueError where the lists differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        return []
    output = jiwer.process_words(references, hypotheses)
    aligned = zip(output.alignments, output.references, output.hypotheses, strict=True)
    return [[edit for chunk in chunks for edit in _edits(chunk, reference, hypothesis)]
            for chunks, reference, hypothesis in aligned]


def _edits(chunk, reference: list[str], hypothesis: list[str]) -> list[Edit]:
    pairs = zip_longest(reference[chunk.ref_start_idx : chunk.ref_end_idx],
                        hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx], fillvalue="")
    return [Edit(*pair) for pair in pairs]
