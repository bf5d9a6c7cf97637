"""Word and character error rates as sums over a corpus, never means of utterances."""

from typing import NamedTuple

import jiwer
import torch
from torch import Tensor


class ErrorCounts(NamedTuple):
    """Errors (substitutions + deletions + insertions) and reference lengths; they add up."""

    word_errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0
    utterances: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def wer(self) -> float:
        """Word errors over reference words, a fraction."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character errors over reference characters, spaces counted, a fraction."""
        return self.char_errors / max(self.chars, 1)

    def to_tensor(self, device=None) -> Tensor:
        """(5,) int64, for a sum over processes."""
        return torch.tensor(self, dtype=torch.int64, device=device)


def count_errors(references: list[str], hypotheses: list[str]) -> ErrorCounts:
    """Counts by minimum edit distance; texts are compared as they are given.

    An empty reference has no words, and every word heard there is an error.
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
