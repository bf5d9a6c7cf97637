"""Connectionist temporal classification (Graves et al. 2006): what networks trained by it share above their encoder."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.masks import mask_frames
from models.recognizer import Recognizer
from utils.decoding.alignment import align_ctc
from utils.decoding.decoder import Decoder
from utils.types import Batch, Candidate, Word

HeadType = Literal["linear", "mlp"]


class Encoding(NamedTuple):
    """Encoder output of B utterances, or of 2B views in training with a consistency weight."""

    frames: Tensor  # (B, T, H)
    lengths: Tensor  # (B,) int64
    local: Tensor | None = None  # (B, T, H') output of layers that see a short context, for the local CTC head


class CTCRecognizer(Recognizer):
    """An encoder, a classifier of its frames, and CTC.

    A network of this kind sets its layers and `time_stride` in its constructor, which ends with `add_heads`,
    and defines `encode` and `output_lengths`.

    Args:
        head: classifier: one linear layer, or linear, GELU, dropout, linear.
        local_ctc_weight: weight of a CTC loss on layers with short context, for exact word timestamps; 0 for none.
        consistency_weight: CR-CTC: weight of the divergence between two views of each utterance, augmented apart, at
            twice the cost of a step; 0 for one view. The paper takes 0.2, and 2.5 times as much time masking.
    """

    def __init__(self, *, head: HeadType = "mlp", local_ctc_weight: float = 0.0, consistency_weight: float = 0.0,
                 **shared):
        super().__init__(**shared)
        if not 0 <= local_ctc_weight < 1:
            raise ValueError(f"local_ctc_weight {local_ctc_weight} must be at least 0 and below 1")
        if not 0 <= consistency_weight < math.inf:
            raise ValueError(f"consistency_weight {consistency_weight} must be a number of at least 0")
        self.head_type, self.local_ctc_weight = head, local_ctc_weight
        self.consistency_weight = consistency_weight
        self.losses = ("loss", "ctc", "local_ctc") if local_ctc_weight else ("loss",)

    def add_heads(self, size: int, hidden: int, local_size: int, dropout: float) -> None:
        """Adds the classifier, and the local one where it has a weight.

        Args:
            size: features H of `Encoding.frames`.
            hidden: hidden units of an mlp head.
            local_size: features H' of `Encoding.local`.
            dropout: in an mlp head.
        """
        classes = self.tokenizer.ctc_size
        self.head = nn.Linear(size, classes) if self.head_type == "linear" else nn.Sequential(
            nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes))
        self.local_head = nn.Linear(local_size, classes) if self.local_ctc_weight else None

    def training_views(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T, F) features and (B,) lengths, or (2B, ...) in training with a consistency weight."""
        if not (self.training and self.consistency_weight):
            return features, lengths
        return features.repeat(2, 1, 1), lengths.repeat(2)

    def ctc_log_probs(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Returns (B, T, V) float32 log-probabilities of the blank and the tokens, and (B,) lengths."""
        return self.head(encoding.frames).float().log_softmax(dim=-1), encoding.lengths

    def alignment_log_probs(self, encoding: Encoding) -> Tensor:
        """Returns (B, T, V) log-probabilities that tell when tokens are spoken.

        An encoder that sees the whole utterance may emit a token long before or after it is spoken, and CTC does not
        mind. Layers that see a quarter of a second cannot.
        """
        if self.local_head is None:
            return self.ctc_log_probs(encoding)[0]
        return self.local_head(F.gelu(encoding.local)).float().log_softmax(dim=-1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (B, T, V) log-probabilities of the blank and the tokens, and (B,) lengths; 2B rows of two views."""
        return self.ctc_log_probs(self.encode(batch.waveforms, batch.sample_counts))

    def loss(self, encoding: Encoding, batch: Batch) -> dict[str, Tensor]:
        """Returns `loss`, nats summed over the batch, and its parts where CTC is not all of it: `ctc`, and by the
        weights that are set `local_ctc` and `consistency`."""
        log_probs, lengths = self.ctc_log_probs(encoding)
        losses = {"ctc": ctc_loss(log_probs, lengths, batch, self.tokenizer.blank)}
        loss = losses["ctc"]
        if self.local_head is not None:
            losses["local_ctc"] = ctc_loss(self.alignment_log_probs(encoding), lengths, batch, self.tokenizer.blank)
            loss = (1 - self.local_ctc_weight) * loss + self.local_ctc_weight * losses["local_ctc"]
        if self.training and self.consistency_weight:
            losses["consistency"] = consistency_loss(log_probs, lengths)
            loss = loss + self.consistency_weight * losses["consistency"]
        return {"loss": loss} if len(losses) == 1 else {"loss": loss, **losses}

    def search(self, encoding: Encoding, decoder: Decoder) -> list[list[Candidate]]:
        """Returns the greedy best path, or the texts of a prefix beam search with an n-gram."""
        return decoder.search_ctc(*self.ctc_log_probs(encoding))

    def align(self, encoding: Encoding, texts: list[str]) -> list[list[Word]]:
        """Returns the words of each text by forced alignment; none where CTC has fewer frames than the text needs."""
        outputs = zip(self.alignment_log_probs(encoding), encoding.lengths, texts, strict=True)
        return [self.align_ctc(log_probs[:length], text) or [] for log_probs, length, text in outputs]

    def align_ctc(self, log_probs: Tensor, text: str) -> list[Word] | None:
        """Returns the words of a text, aligned to (T, V) CTC log-probabilities; None where T is too small for it."""
        return align_ctc(log_probs, text, self.tokenizer, self.ctc_frame_seconds)

    def diagnostics(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Returns CTC `posteriors`, the (T, V) log-probabilities of each utterance."""
        return {"posteriors": [log_probs[:length] for log_probs, length in zip(*self(batch), strict=True)]}


def ctc_loss(log_probs: Tensor, lengths: Tensor, batch: Batch, blank: int) -> Tensor:
    """Returns the negative log-likelihood, nats, of a batch's tokens, summed over the batch.

    An utterance with fewer frames than its text needs has no path; it counts as 0. CUDA's gradient differs from run
    to run in its last bits, so that deterministic training computes it on the CPU.

    Args:
        log_probs: (B, T, V), or (2B, T, V) of two views of the batch, which count half each.
        lengths: (B,) or (2B,) valid frames.
        batch: holds the tokens.
        blank: class of the blank.
    """
    views = len(lengths) // len(batch.token_counts)
    device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else log_probs.device
    inputs = log_probs.transpose(0, 1), batch.tokens.repeat(views, 1), lengths, batch.token_counts.repeat(views)
    return F.ctc_loss(*(part.to(device) for part in inputs), blank=blank, reduction="sum",
                      zero_infinity=True).to(log_probs.device) / views


def consistency_loss(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Returns how far two views of a batch are apart (CR-CTC, Yao et al. 2024, arXiv:2410.05101, section 3.2).

    Half the Kullback-Leibler divergences of both views from each other, nats, summed over valid frames. The view that
    serves as the target gets no gradient.

    Args:
        log_probs: (2B, T, V), the views one after the other.
        lengths: (2B,) valid frames.
    """
    first, second = log_probs.chunk(2)
    divergence = (F.kl_div(first, second.detach(), reduction="none", log_target=True)
                  + F.kl_div(second, first.detach(), reduction="none", log_target=True)).sum(dim=-1)  # (B, T)
    return 0.5 * mask_frames(divergence[..., None], lengths[: len(first)]).sum()
