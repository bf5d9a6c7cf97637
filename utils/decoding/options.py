"""How texts are chosen from a network's outputs: the options that `inference.py` and `evaluate.py` share."""

import math
import sys
from dataclasses import dataclass, fields
from typing import Literal

from utils.errors import UsageError

LIMITS = {"beam_size": (1, math.inf), "nbest": (1, math.inf), "alpha": (0, math.inf), "length_power": (0, 10),
          "coverage_weight": (0, math.inf), "ctc_score_weight": (0, 1)}

CTC_ONLY = ("beta", "beam_prune_logp", "token_min_logp", "skip_blanks", "hotwords", "hotword_weight", "decoder_backend")
ATTENTION_ONLY = ("length_power", "coverage_weight", "ctc_score_weight", "lm_fusion")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of greedy decoding and of beam search, with or without an n-gram.

    Args:
        decoder: the likeliest token at each step, or beam search.
        beam_size: hypotheses that beam search keeps.
        nbest: texts per recording, best first.
        lm: n-gram language model for beam search, KenLM's ARPA or binary format, .gz too.
        alpha: language model weight; with lm_fusion rescore 0.008 in Chan et al.
        beta: word insertion bonus (CTC models).
        beam_prune_logp: prune hypotheses so far below the best one, natural log (CTC models).
        token_min_logp: prune tokens below this log-probability in a frame, natural log (CTC models).
        skip_blanks: of frames in a row whose blank is likelier than this one is searched; 1 for all (CTC models).
        hotwords: words or phrases to favour (CTC models).
        hotword_weight: bonus for each hot word (CTC models).
        decoder_backend: search in C++, or in Python as its reference (CTC models).
        length_power: divide scores by the length to this power, 1 in Chan et al. (attention models).
        coverage_weight: weight of the penalty on encoder frames without attention (attention models).
        ctc_score_weight: weight of CTC prefix scores against the speller's, where a model has both (attention models).
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
    def from_flags(cls, args) -> "DecodingOptions":
        """Returns the options among the attributes of `args`, a parsed command line. Raises UsageError."""
        return cls(**{one.name: getattr(args, one.name) for one in fields(cls)})

    def note_idle(self, network: str, autoregressive: bool) -> None:
        """Names on standard error the options that were given and do nothing with a network of this name and kind."""
        if idle := self.idle(autoregressive):
            print(f"note: --{', --'.join(idle)} without effect: a {network} network, --decoder {self.decoder}"
                  f"{'' if self.lm else ', no --lm'}", file=sys.stderr, flush=True)

    def idle(self, autoregressive: bool) -> list[str]:
        """Returns the options that differ from their defaults and do nothing with a network of this kind."""
        given = [one.name for one in fields(self) if getattr(self, one.name) not in (one.default, [])]
        needs = {"alpha": self.lm, "beta": self.lm, "lm_fusion": self.lm, "hotword_weight": self.hotwords}
        idle = {*(CTC_ONLY if autoregressive else ATTENTION_ONLY), *(name for name in needs if not needs[name])}
        if self.decoder == "greedy":
            idle.update(("beam_size", "length_power") if autoregressive else given)
        return [name for name in given if name in idle]

    def __post_init__(self):
        """Raises UsageError that names the flag."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name} {value} must be finite")
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                limit = f"at least {low}" if getattr(self, name) < low else f"at most {high}"
                raise UsageError(f"--{name} {getattr(self, name)} must be {limit}")
        for name in ("beam_prune_logp", "token_min_logp"):
            if not getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)} is a log-probability, below 0")
        if not 0.5 <= self.skip_blanks <= 1:
            raise UsageError(f"--skip_blanks {self.skip_blanks} is a probability, from 0.5 to 1")
        if self.decoder == "greedy" and (self.lm or self.nbest > 1 or self.hotwords):
            raise UsageError("--lm, --nbest and --hotwords need --decoder beam")
        if self.nbest > self.beam_size:
            raise UsageError(f"--nbest {self.nbest} needs --beam_size {self.nbest} or more")
