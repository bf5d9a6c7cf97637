"""The decoder of a run: options, and the n-gram and the beam search that they name."""

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from utils.decoding.ctc import greedy_decode
from utils.decoding.ctc_beam import CTCBeamSearch
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError, printable
from utils.lm.ngram import NGram
from utils.tokenizer import Tokenizer, normalize
from utils.types import Candidate


class Decoder:
    """Holds decoding options and what they name, which is loaded when a network first asks for it.

    One serves a whole run, as a context manager: beam search may keep worker processes, which its end closes.

    Args:
        options: hot words among them are normalised as transcripts are.
        tokenizer: the network's.
        workers: utterances that CTC beam search decodes at a time; as many as there are cores by default.

    Raises UsageError where the network cannot write a hot word; a network that asks for an n-gram which cannot be
    used gets LanguageModelError.
    """

    def __init__(self, options: DecodingOptions, tokenizer: Tokenizer, *, workers: int | None = None):
        hotwords = [_normalize_hotword(text, tokenizer) for text in options.hotwords]
        self.options, self.tokenizer, self.workers = replace(options, hotwords=hotwords), tokenizer, workers

    @cached_property
    def ngram(self) -> NGram | None:
        """N-gram for attention models; None without --lm."""
        return NGram(self.options.lm, self.tokenizer) if self.options.lm else None

    @cached_property
    def ctc_beam(self) -> CTCBeamSearch:
        """Beam search for CTC models."""
        return CTCBeamSearch(self.options, self.tokenizer, self.workers)

    def with_options(self, options: DecodingOptions) -> "Decoder":
        """Returns a decoder with other options, which shares the n-gram of attention models if it is the same."""
        other = Decoder(options, self.tokenizer, workers=self.workers)
        if options.lm == self.options.lm and "ngram" in self.__dict__:
            other.__dict__["ngram"] = self.ngram
        return other

    def search_ctc(self, log_probs: Tensor, lengths: Tensor) -> list[list[Candidate]]:
        """Returns the best texts of (B, T, C) CTC log-probabilities with (B,) lengths, best first."""
        if self.options.decoder == "beam":
            return [[Candidate(*pair) for pair in found] for found in self.ctc_beam(log_probs, lengths)]
        paths = greedy_decode(log_probs, lengths, blank=self.tokenizer.blank)
        scores = [float(one[:length].amax(dim=1).sum()) for one, length in zip(log_probs, lengths, strict=True)]
        return [[Candidate(self.tokenizer.text(path), score)] for path, score in zip(paths, scores, strict=True)]

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        if "ctc_beam" in self.__dict__:
            self.ctc_beam.close()


def _normalize_hotword(text: str, tokenizer: Tokenizer) -> str:
    hotword = normalize(text)
    if not hotword:
        raise UsageError(f"--hotwords {printable(repr(text))}: has no word")
    if missing := tokenizer.unknown(hotword):
        characters = " ".join(sorted(missing))
        raise UsageError(f"--hotwords {printable(text)}: the network cannot write {printable(characters)}")
    return hotword
