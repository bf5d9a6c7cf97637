"""How a text is chosen from what a network heard: the options that `inference.py` and `evaluate.py` share."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from torch import Tensor

from utils.decoding.ctc import greedy_decode
from utils.decoding.ctc_beam import CTCBeamSearch
from utils.lm.ngram import NGram
from utils.tokenizer import Tokenizer
from utils.types import Candidate


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Greedy decoding, or beam search with or without an n-gram.

    Args:
        decoder: the likeliest symbol at each step, or beam search.
        beam_size: hypotheses that beam search keeps.
        nbest: texts of each recording, best first.
        lm: n-gram language model for beam search, KenLM's ARPA or binary format, .gz too.
        alpha: weight of the n-gram's log-probabilities; with lm_fusion rescore 0.008 in Chan et al.
        beta: bonus for each word (CTC models).
        beam_prune_logp: hypotheses that are so much worse than the best one are dropped, natural log (CTC models).
        token_min_logp: characters less likely than this in a frame are not tried, natural log (CTC models).
        skip_blanks: of frames in a row whose blank is likelier than this one is searched; 1 for all (CTC models).
        hotwords: words or phrases to favour (CTC models).
        hotword_weight: bonus for them (CTC models).
        decoder_backend: C++ search, or the Python one that it reproduces (CTC models).
        length_power: scores are divided by the length to this power, 1 as in Chan et al. (attention models).
        coverage_weight: of the penalty on encoder frames that nothing attended to (attention models).
        ctc_score_weight: of CTC prefix scores against the speller's, where a model has both (attention models).
        lm_fusion: the n-gram steers the search, or orders what it found (attention models).
    """

    decoder: Literal["greedy", "beam"] = "greedy"
    beam_size: int = 32
    nbest: int = 1
    lm: str | None = None
    alpha: float = 0.5
    beta: float = 1.0
    beam_prune_logp: float = -10.0
    token_min_logp: float = -5.0
    skip_blanks: float = 1.0
    hotwords: list[str] = ()
    hotword_weight: float = 10.0
    decoder_backend: Literal["native", "pyctcdecode"] = "native"
    length_power: float = 1.0
    coverage_weight: float = 0.0
    ctc_score_weight: float = 0.0
    lm_fusion: Literal["shallow", "rescore"] = "shallow"

    @classmethod
    def of(cls, args) -> "DecodingOptions":
        """The options among the attributes of `args`, as a command line was parsed. Raises ValueError."""
        return cls(**{one.name: getattr(args, one.name) for one in fields(cls)})

    def __post_init__(self):
        """Raises ValueError that names the flag."""
        for name in ("beam_size", "nbest"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        for name in ("alpha", "coverage_weight", "length_power", "ctc_score_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 0")
        if not abs(self.beta) < float("inf"):
            raise ValueError(f"--beta {self.beta} must be finite")
        for name in ("beam_prune_logp", "token_min_logp"):
            if not getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} is a log-probability, below 0")
        if not 0.5 <= self.skip_blanks <= 1:
            raise ValueError(f"--skip_blanks {self.skip_blanks} is a probability, from 0.5 to 1")
        if self.ctc_score_weight > 1:
            raise ValueError(f"--ctc_score_weight {self.ctc_score_weight} must be at most 1")
        if self.decoder == "greedy" and (self.lm or self.nbest > 1 or self.hotwords):
            raise ValueError("--lm, --nbest and --hotwords need --decoder beam")
        if self.nbest > self.beam_size:
            raise ValueError(f"--nbest {self.nbest} needs --beam_size {self.nbest} or more")


class Decoder:
    """The options, and what they name, loaded when a network first asks for it. One for a whole run.

    A context manager: beam search may keep worker processes, which the end closes.
    Raises LanguageModelError where a network asks for an n-gram that cannot be used.
    """

    def __init__(self, options: DecodingOptions, tokenizer: Tokenizer, *, workers: int | None = None):
        self.options, self.tokenizer, self.workers = options, tokenizer, workers

    @cached_property
    def ngram(self) -> NGram | None:
        """The language model, for models that spell."""
        return NGram(self.options.lm, self.tokenizer) if self.options.lm else None

    @cached_property
    def ctc_beam(self) -> CTCBeamSearch:
        """The search over frames of CTC."""
        return CTCBeamSearch(self.options, self.tokenizer, self.workers)

    def search_ctc(self, log_probs: Tensor, lengths: Tensor) -> list[list[Candidate]]:
        """The best texts of (B, T, C) CTC log-probabilities with (B,) lengths, best first."""
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
