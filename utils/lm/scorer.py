"""An n-gram as a scorer of the attention beam search (shallow fusion)."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.decoding.scorers import Scorer
from utils.lm.ngram import LN10, SPACE, LanguageModelError, NGram


class _Context(NamedTuple):
    """The context of a hypothesis: KenLM's state and, for an n-gram over words, the beginning of the current word."""

    state: object  # kenlm.State
    word: str


class NGramScorer(Scorer):
    """Natural log P(next unit) where a token completes a unit of the n-gram, 0 elsewhere.

    An n-gram over words rates a word at the space or the piece that begins the next word, or at the end.

    Args:
        ngram: over words, or over characters.
        size: hypotheses N.

    Raises LanguageModelError for characters where the network's tokens are subwords.
    """

    def __init__(self, ngram: NGram, size: int):
        if ngram.over_characters and ngram.tokenizer.mark:
            raise LanguageModelError(ngram.path, "an n-gram over characters cannot predict the pieces of this network's"
                                                 " words; build one with --unit word, or add --lm_fusion rescore")
        self.ngram, self.tokenizer, self.size = ngram, ngram.tokenizer, size

    def initial(self) -> list[_Context]:
        """Returns N times the beginning of a sentence."""
        import kenlm

        begin = kenlm.State()
        self.ngram.model.BeginSentenceWrite(begin)
        return [_Context(begin, "")] * self.size

    def score(self, tokens: Tensor, state: list[_Context]) -> tuple[Tensor, list[_Context]]:
        """Returns (N, V) log-probabilities of the units that the next tokens complete, and the contexts after."""
        after = [self._advance(context, token) for context, token in zip(state, tokens.tolist(), strict=True)]
        scores = torch.zeros(len(after), self.tokenizer.size, dtype=torch.float64)
        score = self._score_characters if self.ngram.over_characters else self._score_words
        for row, context in zip(scores, after, strict=True):
            score(row, context)
        return scores.to(tokens.device), after

    def _advance(self, context: _Context, token: int) -> _Context:
        text = self.tokenizer.decode([token])
        if self.ngram.over_characters:
            return self._append(context, SPACE if text == " " else text)[0] if text else context
        if text.startswith(" ") and context.word:
            context, _ = self._append(context, context.word)
        return context._replace(word=context.word + text.removeprefix(" "))

    def _append(self, context: _Context, unit: str) -> tuple[_Context, float]:
        """Returns the context after one more unit, and natural log P(unit)."""
        import kenlm

        state = kenlm.State()
        return _Context(state, ""), LN10 * self.ngram.model.BaseScore(context.state, unit, state)

    def _score_characters(self, row: Tensor, context: _Context) -> None:
        for token, char in enumerate(self.tokenizer.labels[1:], start=1):
            row[token] = self._append(context, SPACE if char == " " else char)[1]
        row[self.tokenizer.eos] = self._append(context, "</s>")[1]

    def _score_words(self, row: Tensor, context: _Context) -> None:
        closed, score = self._append(context, context.word) if context.word else (context, 0.0)
        row[self.tokenizer.boundaries] = score
        row[self.tokenizer.eos] = score + self._append(closed, "</s>")[1]
