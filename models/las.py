"""Listen, Attend and Spell (Chan et al. 2015, arXiv:1508.01211v2), trained jointly with CTC.

    waveform -> log-mel -> SpecAugment [-> convolutions] -> BiLSTM -> pyramidal BiLSTMs           listener
    last token, last context -> LSTMs -> attention over the listener's frames -> next token         speller

Paper to code: Listen (section 3.1) is `models.listener.Listener`, AttendAndSpell (3.2) `models.speller.Speller`,
learning with sampled characters (3.3) `LAS.loss`, decoding and rescoring (3.4) `LAS.search`. Tokens are the paper's
characters, or subwords. Not the paper's are layer normalisation and dropout in the listener, and LSTM forget gates of
the speller that begin open. Later work added
location-aware attention (`models.components.attention`), the CTC loss and CTC scores in the beam search
(Kim et al. 2017, arXiv:1609.06773v2; Hori et al. 2017, "Joint CTC/attention decoding for end-to-end speech
recognition"), and label smoothing (Chorowski and Jaitly 2017, arXiv:1612.02695v1).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.components.attention import AttentionType, Memory, soft_diagonal
from models.components.masks import Lengths, length_mask
from models.ctc import ctc_loss
from models.fast_speller import fast_forward
from models.listener import Frontend, Listener, ListenerOutput
from models.recognizer import Recognizer
from models.speller import Speller, SpellerScorer
from utils.audio import SAMPLE_RATE
from utils.cli.values import PositiveInt
from utils.decoding.alignment import align_ctc, join_words
from utils.decoding.beam_search import Hypothesis, WeightedScorers, beam_search
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.decoding.scorers import CTCPrefixScorer
from utils.errors import UsageError
from utils.lm.ngram import NGram
from utils.lm.scorer import NGramScorer
from utils.types import Batch, Candidate, Word

TOKENS_PER_SECOND = 30  # no speech has more; ends hypotheses that repeat themselves


class LAS(Recognizer, name="las"):
    """Pyramidal BiLSTM listener, attention, LSTM speller.

    Args:
        frontend: convolutions below the listener, which shorten the time four times; take pyramid_layers 1 with them.
        conv_channels: channels of these convolutions.
        residual_blocks: residual blocks of the rescnn front end.
        listener_size: hidden units per direction of a listener layer.
        pyramid_layers: pyramidal layers, each of which halves the time.
        attention: how the speller's state is compared with the listener's frames.
        attention_size: features in which the two are compared.
        speller_size: hidden units of a speller layer.
        speller_layers: LSTM layers of the speller.
        embedding_size: features of a token's embedding, and of the classifier's hidden layer.
        tied_embedding: the classifier's weights are the tokens' embeddings.
        dropout: dropout after each layer.
        scheduled_sampling: share of the speller's inputs that are sampled from its own predictions.
        scheduled_sampling_steps: optimiser steps over which scheduled_sampling grows from 0.
        label_smoothing: share of a target's probability that is spread over all tokens.
        ctc_weight: weight of the CTC loss on the listener, the rest is the speller's; 0 leaves its layer out.
        guided_weight: weight of the penalty on attention far from the diagonal; 0 for none.
        guided_steps: optimiser steps for which that penalty applies.
    """

    autoregressive = True

    def __init__(self, *, frontend: Frontend = "none", conv_channels: PositiveInt = 32, residual_blocks: int = 1,
                 listener_size: PositiveInt = 256, pyramid_layers: int = 3,
                 attention: AttentionType = "content", attention_size: PositiveInt = 256,
                 speller_size: PositiveInt = 512, speller_layers: PositiveInt = 2, embedding_size: PositiveInt = 256,
                 tied_embedding: bool = False, dropout: float = 0.2,
                 scheduled_sampling: float = 0.1, scheduled_sampling_steps: int = 10_000, label_smoothing: float = 0.1,
                 ctc_weight: float = 0.3, guided_weight: float = 0.0, guided_steps: int = 2000, **shared):
        super().__init__(**shared)
        shares = {"ctc_weight": ctc_weight, "scheduled_sampling": scheduled_sampling,
                  "label_smoothing": label_smoothing}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} {value} must be at least 0 and below 1")
        self.scheduled_sampling, self.scheduled_sampling_steps = scheduled_sampling, scheduled_sampling_steps
        self.label_smoothing = label_smoothing
        self.ctc_weight, self.guided_weight, self.guided_steps = ctc_weight, guided_weight, guided_steps
        self.steps = 0  # optimiser steps so far
        self.listener = Listener(self.features.size, listener_size, pyramid_layers, frontend=frontend,
                                 conv_channels=conv_channels, residual_blocks=residual_blocks, dropout=dropout)
        self.time_stride = self.listener.ctc_reduction
        self.speller = Speller(
            self.listener.outputs, self.tokenizer.size, [self.tokenizer.blank, self.tokenizer.sos], size=speller_size,
            layers=speller_layers, attention=attention, attention_size=attention_size,
            embedding_size=embedding_size, tied=tied_embedding, dropout=dropout)
        self.losses = ("loss", "attention", "diagonality", *(["ctc"] if ctc_weight else []))
        self.trained_by_ctc = bool(ctc_weight)
        self.ctc = nn.Linear(self.listener.outputs, self.tokenizer.ctc_size) if ctc_weight else None

    def set_step(self, steps: int) -> None:
        """Sets the optimiser steps so far, on which scheduled sampling and guided attention depend."""
        self.steps = steps

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> ListenerOutput:
        """Returns the listener's output for (B, S) samples with (B,) counts."""
        return self.listener(*self.augmented_features(waveforms, sample_counts))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (B, U + 1, V) log-probabilities of each reference token, and of the end, and (B,) lengths."""
        log_probs, _ = self.attend_and_spell(self.encode(batch.waveforms, batch.sample_counts), batch)
        return log_probs, batch.token_counts + 1

    def attend_and_spell(self, encoding: ListenerOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (B, U + 1, V) log-probabilities and (B, U + 1, T) attention weights, given the reference's tokens."""
        inputs = F.pad(batch.tokens, (1, 0), value=self.tokenizer.sos)
        ramp = min(1.0, self.steps / max(self.scheduled_sampling_steps, 1))
        rate = self.scheduled_sampling * ramp if self.training else 0.0
        return fast_forward(self.speller, inputs, self.memory(encoding), rate)

    def memory(self, encoding: ListenerOutput) -> Memory:
        """Returns what the speller attends to."""
        return self.speller.attention.precompute(encoding.frames, encoding.lengths)

    def loss(self, encoding: ListenerOutput, batch: Batch) -> dict[str, Tensor]:
        """Returns sums over the batch: the loss and its parts, nats, and the diagonality of the attention.

        The speller's cross-entropy, `attention`, and the CTC loss are interpolated (Kim et al. 2017). A diagonality
        near 0.23 per token, which uniform attention has, shows that attention has not aligned.
        """
        log_probs, weights = self.attend_and_spell(encoding, batch)
        sums = {"attention": self.cross_entropy(log_probs, batch),
                "diagonality": self.diagonality(weights, encoding, batch)}
        sums["loss"] = sums["attention"]
        if self.ctc is not None:
            sums["ctc"] = ctc_loss(*self.ctc_log_probs(encoding), batch, self.tokenizer.blank)
            sums["loss"] = (1 - self.ctc_weight) * sums["attention"] + self.ctc_weight * sums["ctc"]
        if self.guided_weight and self.training and self.steps < self.guided_steps:
            sums["loss"] = sums["loss"] + self.guided_weight * (batch.token_counts.sum() - sums["diagonality"])
        sums["diagonality"] = sums["diagonality"].detach()
        return sums

    def cross_entropy(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Returns the cross-entropy, nats, with `label_smoothing` of each target spread over all tokens and `<eos>`."""
        counts = batch.token_counts[:, None]
        ends = torch.arange(log_probs.shape[1], device=counts.device) == counts  # (B, U + 1)
        targets = F.pad(batch.tokens, (0, 1)).masked_fill(ends, self.tokenizer.eos)
        target = log_probs.gather(2, targets.clamp_min(1)[..., None])[..., 0]  # padding is masked below
        impossible = self.speller.impossible
        spread = log_probs.masked_fill(impossible, 0.0).sum(dim=-1) / (~impossible).sum()
        losses = -(1 - self.label_smoothing) * target - self.label_smoothing * spread
        return losses.masked_fill(~length_mask(batch.token_counts + 1, losses.shape[1]), 0.0).sum()

    def diagonality(self, weights: Tensor, encoding: ListenerOutput, batch: Batch) -> Tensor:
        """Returns the attention weights near the diagonal (`soft_diagonal`), 0 to 1 per token, summed over tokens."""
        near = soft_diagonal(batch.token_counts, encoding.lengths, weights.shape[1:])
        steps = (weights * near).sum(dim=2)  # (B, U + 1)
        return steps.masked_fill(~length_mask(batch.token_counts, steps.shape[1]), 0.0).sum()

    def ctc_log_probs(self, encoding: ListenerOutput) -> tuple[Tensor, Tensor] | None:
        """Returns (B, T', V) float32 log-probabilities of blank and tokens, and (B,) lengths; None without CTC."""
        if self.ctc is None:
            return None
        return self.ctc(encoding.ctc_frames).float().log_softmax(dim=-1), encoding.ctc_lengths

    def max_tokens(self, encoding: ListenerOutput) -> Tensor:
        """Returns the most tokens that utterances of these lengths can hold, (B,)."""
        seconds = encoding.ctc_lengths * self.ctc_frame_seconds
        return (seconds * TOKENS_PER_SECOND).long() + 1

    def search(self, encoding: ListenerOutput, decoder: Decoder) -> list[list[Candidate]]:
        """Returns the n best texts by log P(y|x) / |y|^length_power + alpha log P_LM(y) (section 3.4).

        That is `lm_fusion` rescore. With shallow, alpha log P_LM(y) is part of the search and divided as well.
        Raises UsageError for hot words, which would do nothing.
        """
        options, lm = decoder.options, decoder.ngram
        if options.hotwords:
            raise UsageError("--hotwords: only CTC networks are searched with them, not a las network")
        rescored = lm is not None and options.lm_fusion == "rescore"
        wide = replace(options, nbest=options.beam_size) if options.nbest > 1 or rescored else options
        results = []
        for hypotheses in self._beam_search(encoding, wide, None if rescored else lm):
            texts = {}  # hypotheses that differ in spaces alone are one text; the best of them counts
            for hypothesis in hypotheses:
                texts.setdefault(self.tokenizer.text(hypothesis.tokens), hypothesis.score)
            candidates = [Candidate(text, score + (options.alpha * lm.log_prob(text) if rescored else 0.0))
                          for text, score in texts.items()]
            results.append(sorted(candidates, key=lambda candidate: -candidate.score)[: options.nbest])
        return results

    def _beam_search(self, encoding: ListenerOutput, options: DecodingOptions,
                     lm: NGram | None) -> list[list[Hypothesis]]:
        """Returns the best hypotheses of each utterance by speller, CTC and n-gram together."""
        size = options.beam_size if options.decoder == "beam" else 1
        return beam_search(
            self._scorers(encoding, options, lm, size), start=self.tokenizer.sos, eos=self.tokenizer.eos,
            max_tokens=self.max_tokens(encoding), beam_size=size, nbest=options.nbest,
            length_power=options.length_power if size > 1 else 0.0)

    def _scorers(self, encoding: ListenerOutput, options: DecodingOptions, lm: NGram | None,
                 size: int) -> WeightedScorers:
        """Returns the scorers of `size` hypotheses per utterance that have a weight, with their weights."""
        scorers, ctc_weight = [], options.ctc_score_weight if self.ctc is not None else 0.0
        if ctc_weight < 1:
            memory = self.memory(encoding).repeat(size)
            scorers.append((1 - ctc_weight, SpellerScorer(self.speller, memory, options.coverage_weight)))
        if ctc_weight > 0:
            log_probs, lengths = (part.repeat_interleave(size, dim=0) for part in self.ctc_log_probs(encoding))
            scorers.append((ctc_weight, CTCPrefixScorer(log_probs, lengths, self.tokenizer)))
        if lm is not None and options.alpha > 0:
            scorers.append((options.alpha, NGramScorer(lm, size * len(encoding.lengths))))
        return scorers

    def align(self, encoding: ListenerOutput, texts: list[str]) -> list[list[Word]]:
        """Returns the words of each text, aligned to CTC, or to attention where CTC is off or has too few frames."""
        aligned = [None] * len(texts)
        if self.ctc is not None:
            outputs = zip(*self.ctc_log_probs(encoding), texts, strict=True)
            aligned = [align_ctc(log_probs[:length], text, self.tokenizer, self.ctc_frame_seconds)
                       for log_probs, length, text in outputs]
        if None not in aligned:
            return aligned
        by_attention = self._align_by_attention(encoding, texts)
        return [other if words is None else words for words, other in zip(aligned, by_attention, strict=True)]

    def _align_by_attention(self, encoding: ListenerOutput, texts: list[str]) -> list[list[Word]]:
        """Puts each token at the mean of its attention weights, one encoder frame long."""
        tokens = [torch.tensor(self.tokenizer.encode(text), device=self.device) for text in texts]
        batch = Batch(None, None, pad_sequence(tokens, batch_first=True).long(), None, texts, texts, [])
        log_probs, weights = self.attend_and_spell(encoding, batch)
        frames = torch.arange(weights.shape[2], device=weights.device, dtype=weights.dtype)
        seconds = self.features.hop / SAMPLE_RATE * self.listener.reduction
        first = self.features.hop / SAMPLE_RATE * self.listener.first_centre
        centres = (first + (weights @ frames) * seconds).tolist()  # (B, U + 1)
        aligned = []
        for token, scores, centre in zip(tokens, log_probs, centres, strict=True):
            scores = scores[: len(token)].gather(1, token[:, None])[:, 0].tolist()
            times = [(c - seconds / 2, c + seconds / 2) for c in centre]
            aligned.append(join_words(self.tokenizer.words(token.tolist()), times, scores))
        return aligned

    def diagnostics(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Returns the `attention` weights, (U + 1, T) of each utterance, and CTC `posteriors`, (T', V)."""
        encoding = self.encode(batch.waveforms, batch.sample_counts)
        _, weights = self.attend_and_spell(encoding, batch)
        sizes = zip(batch.token_counts + 1, encoding.lengths, strict=True)
        figures = {"attention": [w[:u, :t] for w, (u, t) in zip(weights, sizes, strict=True)]}
        if self.ctc is not None:
            figures["posteriors"] = [p[:t] for p, t in zip(*self.ctc_log_probs(encoding), strict=True)]
        return figures

    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the CTC frames of `frames` feature frames."""
        return self.listener.output_length(frames)
