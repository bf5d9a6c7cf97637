"""Deep Speech 2 (Amodei et al. 2015, arXiv:1512.02595) with a residual convolutional front end.

    waveform -> log-mel -> SpecAugment -> strided convolutions -> residual CNN blocks
             -> linear -> (bi)directional recurrent layers [-> lookahead] -> classifier -> CTC

Paper to code: convolution over time and frequency (section 3.5) is `ConvStem`; batch
normalisation (3.2) `SequenceBatchNorm`; recurrent layers (3.1) `RecurrentBlock`; striding (3.5)
`time_stride`; row convolution (3.6) `LookaheadConv`.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.checkpointing import run
from models.components.convolution import ConvFrontend, LookaheadConv
from models.components.features import FeatureNorm
from models.components.masks import mask_frames
from models.components.recurrent import Norm, RecurrentBlock, RNNType
from models.mingru.layer import ScanSpace
from models.recognizer import Recognizer
from utils.decoding.ctc import greedy_decode
from utils.decoding.options import Decoder
from utils.tokenizer import ENGLISH
from utils.types import Batch, Candidate


class Encoding(NamedTuple):
    """What the layers made of B utterances."""

    frames: Tensor  # (B, T, H) recurrent states
    lengths: Tensor  # (B,) int64
    local: Tensor  # (B, T, rnn_size) output of the convolutions


class DeepSpeech2(Recognizer, name="deepspeech2"):
    """ConvFrontend, recurrent stack and CTC.

    Args:
        n_mels: mel bins.
        window_ms: length of the analysis window, milliseconds.
        hop_ms: distance between frames, milliseconds.
        feature_norm: of log-mel features: per utterance, by the training set's statistics, or none.
        freq_masks: SpecAugment: frequency masks an utterance.
        freq_width: SpecAugment: widest frequency mask, mel bins.
        time_masks: SpecAugment: time masks an utterance.
        time_width: SpecAugment: widest time mask, frames.
        time_share: SpecAugment: largest share of an utterance that its time masks may cover together.
        conv_channels: channels of the convolutions.
        time_stride: feature frames an output frame, 2 or 4.
        residual_blocks: residual CNN blocks.
        rnn_type: recurrence.
        rnn_size: hidden units of one direction of a recurrent layer.
        rnn_layers: recurrent layers.
        bidirectional: run each recurrent layer in both directions.
        lookahead: future frames that the row convolution of a unidirectional network sees; 0 for none.
        rnn_norm: normalisation before each recurrent layer: layer, or the paper's sequence-wise batch norm.
        head: classifier: one linear layer, or linear, GELU, dropout, linear.
        dropout: in the residual blocks, after each recurrent layer and in the head.
        local_ctc_weight: of a CTC loss on the convolutions, which tells when words are spoken; 0 leaves it out.
        mingru_scan: how minGRU's states are computed in training: a scan in linear or log space, or in sequence.
        alphabet: the characters that the network can write, each once.
    """

    def __init__(self, *, n_mels: int = 80, window_ms: float = 25.0, hop_ms: float = 10.0,
                 feature_norm: FeatureNorm = "utterance", freq_masks: int = 2, freq_width: int = 27,
                 time_masks: int = 2, time_width: int = 100, time_share: float = 0.2,
                 conv_channels: int = 32, time_stride: int = 2, residual_blocks: int = 2,
                 rnn_type: RNNType = "gru", rnn_size: int = 512, rnn_layers: int = 5,
                 bidirectional: bool = True, lookahead: int = 20, rnn_norm: Norm = "layer",
                 head: Literal["linear", "mlp"] = "mlp", dropout: float = 0.2,
                 local_ctc_weight: float = 0.0, mingru_scan: ScanSpace = "linear", alphabet: str = ENGLISH):
        super().__init__(n_mels=n_mels, window_ms=window_ms, hop_ms=hop_ms, feature_norm=feature_norm,
                         freq_masks=freq_masks, freq_width=freq_width, time_masks=time_masks,
                         time_width=time_width, time_share=time_share, alphabet=alphabet)
        self.cnn = ConvFrontend(conv_channels, n_mels, residual_blocks, time_stride=time_stride, dropout=dropout)
        self.project = nn.Linear(self.cnn.outputs, rnn_size)
        outputs = rnn_size * (2 if bidirectional else 1)
        self.rnn = nn.ModuleList(
            RecurrentBlock(outputs if i else rnn_size, rnn_size, rnn_type=rnn_type, norm=rnn_norm,
                           bidirectional=bidirectional, dropout=dropout, scan=mingru_scan)
            for i in range(rnn_layers))
        self.lookahead = LookaheadConv(outputs, lookahead) if lookahead and not bidirectional else None
        self.head = classifier(head, outputs, rnn_size, self.tokenizer.ctc_size, dropout)
        if not 0 <= local_ctc_weight < 1:
            raise ValueError(f"local_ctc_weight {local_ctc_weight} must be at least 0 and below 1")
        self.local_ctc_weight = local_ctc_weight
        self.local_head = nn.Linear(rnn_size, self.tokenizer.ctc_size) if local_ctc_weight else None
        self.losses = ("loss", "ctc", "local_ctc") if local_ctc_weight else ("loss",)

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """(B, S) samples and (B,) counts to (B, T, H) recurrent states and (B,) lengths."""
        features, lengths = self.augmented_features(waveforms, sample_counts)  # (B, T, F)
        x, lengths = run(self.cnn, features, lengths)  # (B, T', C * F')
        x = local = self.project(x)  # (B, T', H)
        for layer in self.rnn:
            x = run(layer, x, lengths)
        if self.lookahead is not None:
            x = self.lookahead(x, lengths)
        return Encoding(mask_frames(x, lengths), lengths, local)

    @property
    def large_layers(self) -> list[nn.Module]:
        """Convolutions and recurrent layers."""
        return [self.cnn, *self.rnn]

    def ctc_log_probs(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """(B, T, V) float32 log-probabilities of blank and characters, and (B,) lengths."""
        return self.head(encoding.frames).float().log_softmax(dim=-1), encoding.lengths

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T, V) log-probabilities of blank and characters, and (B,) lengths."""
        return self.ctc_log_probs(self.encode(batch.waveforms, batch.sample_counts))

    def loss(self, encoding: Encoding, batch: Batch) -> dict[str, Tensor]:
        """CTC negative log-likelihood, nats, summed over the batch."""
        ctc = self.ctc_loss(*self.ctc_log_probs(encoding), batch)
        if self.local_head is None:
            return {"loss": ctc}
        local = self.ctc_loss(self.alignment_log_probs(encoding), encoding.lengths, batch)
        loss = (1 - self.local_ctc_weight) * ctc + self.local_ctc_weight * local
        return {"loss": loss, "ctc": ctc, "local_ctc": local}

    def decode(self, encoding: Encoding) -> list[str]:
        """Greedy best path over valid frames."""
        paths = greedy_decode(*self.ctc_log_probs(encoding), blank=self.tokenizer.blank)
        return [self.tokenizer.text(path) for path in paths]

    def search(self, encoding: Encoding, decoder: Decoder) -> list[list[Candidate]]:
        """Greedy best path, or prefix beam search with an n-gram."""
        return decoder.search_ctc(*self.ctc_log_probs(encoding))

    def alignment_log_probs(self, encoding: Encoding) -> Tensor:
        """(B, T, V) log-probabilities that tell when characters are spoken.

        Recurrent layers hear everything, and CTC lets them write a character long before or after it is
        spoken. Convolutions hear a quarter of a second, and cannot.
        """
        if self.local_head is None:
            return self.ctc_log_probs(encoding)[0]
        return self.local_head(F.gelu(encoding.local)).float().log_softmax(dim=-1)

    @property
    def ctc_frame_samples(self) -> int:
        """The features' hop times the stride of the convolutions."""
        return self.features.hop * self.cnn.time_stride

    def diagnostics(self, batch: Batch) -> dict[str, list[Tensor]]:
        """CTC `posteriors`: (T, V) log-probabilities of each utterance."""
        return {"posteriors": [p[:t] for p, t in zip(*self(batch), strict=True)]}

    def output_frames(self, samples: int) -> int:
        """Output frames of an utterance of so many samples."""
        return int(self.cnn.output_length(self.features.lengths(torch.tensor(samples))))


def classifier(kind: str, inputs: int, hidden: int, classes: int, dropout: float) -> nn.Module:
    """Encoder states to class scores, in one linear layer or two."""
    if kind == "linear":
        return nn.Linear(inputs, classes)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes))
