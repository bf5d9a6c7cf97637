"""`Recognizer`: what every network offers, from waveforms to log-probabilities, a loss and text.

A network is one file with one subclass, imported in `models/__init__.py`. One that is trained by CTC derives from
`CTCRecognizer` (`models/ctc.py`), which leaves it its layers, `encode` and `output_lengths` to write.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.components.features import FeatureType, build_features
from models.components.features.base import FeatureNorm
from models.components.masks import Lengths
from models.components.specaugment import SpecAugment
from models.components.vtlp import VTLP
from models.loading import load_network
from utils.audio import SAMPLE_RATE
from utils.checkpoint.reading import find_checkpoint
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.options import constructor_options
from utils.tokenizer import ENGLISH, TokenizerType, build_tokenizer
from utils.types import Batch, Candidate, Word


class Recognizer(nn.Module, ABC):
    """A network that turns waveforms into text, registered under its `name`.

    Its keyword-only constructor arguments, and these, which every network has, are its flags in `train.py` and its
    options in a checkpoint. They are plain values.

    Args:
        features: log-mel spectrogram, or mel-frequency cepstral coefficients.
        n_mels: mel bins.
        n_mfcc: cepstral coefficients, for mfcc.
        window_ms: length of the analysis window, milliseconds.
        hop_ms: distance between frames, milliseconds.
        feature_norm: normalisation of features: per utterance, by the training set's statistics, or none.
        freq_warp: VTLP: largest change of an utterance's formants, such as 0.1; log-mel features alone.
        freq_masks: SpecAugment: frequency masks per utterance.
        freq_width: SpecAugment: widest frequency mask, mel bins or coefficients.
        time_masks: SpecAugment: time masks per utterance.
        time_width: SpecAugment: widest time mask, frames.
        time_share: SpecAugment: largest fraction of an utterance under all its time masks together.
        tokenizer: characters, or subwords by byte-pair encoding.
        alphabet: output characters, each once.
        vocabulary: subwords of several letters for bpe; learnt from the training transcripts, so no flag.
    """

    registry: dict[str, type["Recognizer"]] = {}
    formats: dict[str, Callable[[Path], "Recognizer"]] = {}  # by suffix, what reads files that are no checkpoints
    losses: tuple[str, ...] = ("loss",)  # the names of all that `loss` returns in evaluation
    trained_by_ctc = True  # whether an utterance needs as many output frames as its text, as CTC does
    autoregressive = False  # whether each token is predicted from those before it, rather than by CTC
    time_stride: int  # feature frames per CTC frame; set by the network's constructor
    config: dict  # the model's name and all options, from which `build` makes the same network

    def __init_subclass__(cls, *, name: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            Recognizer.registry[name] = cls

    def __init__(self, *, features: FeatureType = "logmel", n_mels: int = 80, n_mfcc: int = 40,
                 window_ms: float = 25.0, hop_ms: float = 10.0, feature_norm: FeatureNorm = "utterance",
                 freq_warp: float = 0.0, freq_masks: int = 2, freq_width: int = 27, time_masks: int = 2,
                 time_width: int = 100, time_share: float = 0.2, tokenizer: TokenizerType = "char",
                 alphabet: str = ENGLISH, vocabulary: list[str] | None = None):
        super().__init__()
        self.tokenizer = build_tokenizer(tokenizer, alphabet=alphabet, vocabulary=vocabulary)
        self.features = build_features(features, n_mels=n_mels, n_mfcc=n_mfcc, window_ms=window_ms, hop_ms=hop_ms,
                                       feature_norm=feature_norm)
        if freq_warp and features != "logmel":
            raise ValueError(f"freq_warp {freq_warp} moves mel bins: it needs logmel features, not {features}")
        self.vtlp = VTLP(self.features.size, freq_warp)
        self.specaugment = SpecAugment(freq_masks=freq_masks, freq_width=freq_width, time_masks=time_masks,
                                       time_width=time_width, time_share=time_share,
                                       fill_with_mean=feature_norm == "none")

    # -- what a network defines ------------------------------------------------------------------

    @abstractmethod
    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> NamedTuple:
        """Returns the encoder output of (B, S) samples and (B,) counts, for the other methods; augments in training."""

    @abstractmethod
    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the CTC frames of `frames` feature frames, by the layers' own arithmetic."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (B, N, V) float32 log-probabilities and their (B,) lengths, in training and evaluation alike.

        Where `training_views` makes two views of each utterance they have 2B rows.

        N counts what the model predicts one by one: frames of CTC, tokens of an attention model (given the
        reference's tokens before them).
        """

    @abstractmethod
    def loss(self, encoding: NamedTuple, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars summed over the batch's tokens; `loss` is the one to minimise."""

    @abstractmethod
    def search(self, encoding: NamedTuple, decoder: Decoder) -> list[list[Candidate]]:
        """Returns the best texts of each utterance, best first, as the decoder's options ask."""

    @abstractmethod
    def align(self, encoding: NamedTuple, texts: list[str]) -> list[list[Word]]:
        """Returns the words of each utterance's text with times in seconds and confidences."""

    def ctc_log_probs(self, encoding: NamedTuple) -> tuple[Tensor, Tensor] | None:
        """Returns (B, T, V) float32 log-probabilities of blank and tokens, and (B,) lengths; None without CTC."""
        return None

    def diagnostics(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Returns tensors to draw, one per utterance and without padding, by the kind of their figure."""
        return {}

    def set_step(self, steps: int) -> None:
        """Adapts what depends on the number of optimiser steps so far; called before each training step."""

    def training_views(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the (B, T, F) features to augment and encode, and their (B,) lengths; CR-CTC takes two views."""
        return features, lengths

    # -- what every network has ------------------------------------------------------------------

    def augmented_features(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T, F) features in the weights' precision, warped and masked in training, and (B,) lengths."""
        features, lengths = self.training_views(*self.features(waveforms, sample_counts))
        return self.specaugment(self.vtlp(features), lengths).to(next(self.parameters()).dtype), lengths

    def decode(self, encoding: NamedTuple) -> list[str]:
        """Returns the text of each utterance by greedy decoding."""
        decoder = Decoder(DecodingOptions(), self.tokenizer)
        return [candidates[0].text for candidates in self.search(encoding, decoder)]

    def output_frames(self, samples: int) -> int:
        """Returns the CTC frames of an utterance of `samples` samples."""
        return int(self.output_lengths(self.features.lengths(samples)))

    @property
    def device(self) -> torch.device:
        """Returns where the network computes."""
        return self.features.mean.device

    @property
    def ctc_frame_samples(self) -> int:
        """Returns the samples from one CTC frame to the next.

        Behind strided convolutions frame t is centred on sample t times as many; where frames are joined, as in a
        listener, up to half a frame later.
        """
        return self.features.hop * self.time_stride

    @property
    def ctc_frame_seconds(self) -> float:
        """Returns the seconds from one CTC frame to the next."""
        return self.ctc_frame_samples / SAMPLE_RATE

    # -- building ----------------------------------------------------------------------------------

    @staticmethod
    def build(model: str, **options) -> "Recognizer":
        """Builds the registered `model`; its `config` keeps the name and every option, given or default."""
        cls = Recognizer.registry[model]
        network = cls(**options)
        defaults = {option.name: option.default for option in constructor_options(cls)}
        network.config = {"model": model, **defaults, **options}
        return network

    @staticmethod
    def from_checkpoint(path, device: str | torch.device = "cpu") -> "Recognizer":
        """Returns the network of a checkpoint, or a pretrained one by its name, in evaluation mode.

        One that another program runs, such as that of an ONNX file, stays on the CPU. Raises CheckpointError in one
        line.
        """
        path = find_checkpoint(path)
        if (read := Recognizer.formats.get(path.suffix)) is not None:
            return read(path)
        return load_network(path, Recognizer.build, Recognizer.registry).eval().to(device)
