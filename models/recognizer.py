"""What every network offers, from waveforms to text, whatever its architecture."""

import inspect
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from models.components.features import FeatureNorm, LogMel
from models.components.specaugment import SpecAugment
from utils.audio import SAMPLE_RATE, SILENCE
from utils.checkpoint.reading import CheckpointError, read_checkpoint
from utils.decoding.alignment import align_ctc
from utils.decoding.options import Decoder
from utils.tokenizer import ENGLISH, CharTokenizer
from utils.types import Batch, Candidate, Word


class Recognizer(nn.Module, ABC):
    """A network that turns waveforms into text. Subclasses register under `name=`.

    A subclass's keyword-only constructor is its command line: each argument becomes a flag of
    `train.py`, helped by its line under `Args:`, and together they rebuild the network from a
    checkpoint. Arguments are plain values.
    """

    registry: dict[str, type["Recognizer"]] = {}
    losses: tuple[str, ...] = ("loss",)  # the names of what `loss` returns
    autoregressive = False  # whether text comes from a decoder over characters, in place of CTC

    def __init_subclass__(cls, *, name: str, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.name = name
        Recognizer.registry[name] = cls

    def __init__(self, *, n_mels: int, window_ms: float, hop_ms: float, feature_norm: FeatureNorm,
                 freq_masks: int, freq_width: int, time_masks: int, time_width: int, time_share: float,
                 alphabet: str = ENGLISH):
        super().__init__()
        self.tokenizer = CharTokenizer(alphabet=alphabet)
        self.features = LogMel(n_mels=n_mels, window_ms=window_ms, hop_ms=hop_ms,
                               feature_norm=feature_norm)
        self.specaugment = SpecAugment(freq_masks=freq_masks, freq_width=freq_width, time_masks=time_masks,
                                       time_width=time_width, time_share=time_share)

    @abstractmethod
    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> NamedTuple:
        """(B, S) samples and (B,) counts to what the other methods take as `encoding`; augments while training."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, N, V) float32 log-probabilities and their (B,) lengths, in training and evaluation alike.

        N counts what the model predicts one by one: frames of CTC, characters of an attention model
        (given the reference's characters before them).
        """

    @abstractmethod
    def loss(self, encoding: NamedTuple, batch: Batch) -> dict[str, Tensor]:
        """Scalars summed over the batch's tokens; `loss` is the one to descend."""

    @abstractmethod
    def decode(self, encoding: NamedTuple) -> list[str]:
        """The text of each utterance, greedily."""

    @abstractmethod
    def search(self, encoding: NamedTuple, decoder: Decoder) -> list[list[Candidate]]:
        """The best texts of each utterance, best first, as the decoder's options ask."""

    @abstractmethod
    def ctc_log_probs(self, encoding: NamedTuple) -> tuple[Tensor, Tensor] | None:
        """(B, T, V) float32 log-probabilities of blank and characters, and (B,) lengths; None without CTC."""

    @abstractmethod
    def diagnostics(self, batch: Batch) -> dict[str, list[Tensor]]:
        """What shows a reader how the network heard each utterance, without padding, by the kind of its figure."""

    @abstractmethod
    def output_frames(self, samples: int) -> int:
        """Frames of CTC that an utterance of so many samples has, by the layers' own arithmetic."""

    @property
    @abstractmethod
    def ctc_frame_samples(self) -> int:
        """Samples between neighbouring frames of CTC; frame t is centred on sample t times as many."""

    @property
    @abstractmethod
    def large_layers(self) -> list[nn.Module]:
        """The layers that take most of the time and the memory, and that `encode` calls by `checkpointing.run`."""

    def alignment_log_probs(self, encoding: NamedTuple) -> Tensor | None:
        """(B, T, V) CTC log-probabilities that tell when characters are spoken; None without CTC."""
        ctc = self.ctc_log_probs(encoding)
        return None if ctc is None else ctc[0]

    def align(self, encoding: NamedTuple, texts: list[str]) -> list[list[Word]]:
        """The words of each utterance's text with times in seconds and confidences, by forced alignment.

        A text with more characters than CTC has frames for gets none.
        """
        outputs = zip(self.alignment_log_probs(encoding), self.ctc_log_probs(encoding)[1], texts, strict=True)
        return [self.align_ctc(log_probs[:length], text) or [] for log_probs, length, text in outputs]

    def schedule(self, steps: int) -> None:
        """Called before each training step with the optimiser steps so far, for what changes with them."""

    def ctc_loss(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """CTC negative log-likelihood, nats, summed over the batch, of (B, T, V) log-probabilities.

        An utterance with fewer frames than its text needs has no path; it counts as 0. CUDA's gradient differs
        from run to run in its last bits, so that deterministic training computes it on the CPU.
        """
        device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else log_probs.device
        inputs = log_probs.transpose(0, 1), batch.tokens, lengths, batch.token_counts
        return F.ctc_loss(*(part.to(device) for part in inputs), blank=self.tokenizer.blank, reduction="sum",
                          zero_infinity=True).to(log_probs.device)

    def align_ctc(self, log_probs: Tensor, text: str) -> list[Word] | None:
        """The words of a text by forced alignment to (T, V) CTC log-probabilities; None where they are too few."""
        return align_ctc(log_probs, text, self.tokenizer, self.ctc_frame_samples / SAMPLE_RATE)

    def augmented_features(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) log-mel features in the weights' precision, masked by SpecAugment while training, and lengths."""
        features, lengths = self.features(waveforms, sample_counts)
        return self.specaugment(features, lengths).to(next(self.parameters()).dtype), lengths

    @torch.inference_mode()
    def transcribe(self, waveforms: list[Tensor]) -> list[str]:
        """Texts of (S,) float32 waveforms at 16 kHz, as one batch on the network's own device.

        A waveform below SILENCE throughout has no words, whatever a network would hear in it.
        """
        device = next(self.parameters()).device
        counts = torch.tensor([len(waveform) for waveform in waveforms], device=device)
        padded = pad_sequence(waveforms, batch_first=True).to(device)
        texts = self.eval().decode(self.encode(padded, counts))
        return [text if waveform.abs().max() > SILENCE else "" for text, waveform in zip(texts, waveforms, strict=True)]

    @staticmethod
    def build(name: str, **options) -> "Recognizer":
        """The registered model `name`; `config` keeps the name and every option, given or default."""
        cls = Recognizer.registry[name]
        network = cls(**options)
        network.config = {"model": name, **default_options(cls), **options}
        return network

    @staticmethod
    def from_checkpoint(path, device: str | torch.device = "cpu") -> "Recognizer":
        """The network of a checkpoint, in evaluation mode. Raises CheckpointError in one line."""
        checkpoint = read_checkpoint(path)
        config = dict(checkpoint["recognizer"])
        name = config.pop("model")
        if name not in Recognizer.registry:
            raise CheckpointError(path, f"holds a model {name!r}, which this version does not have")
        weights = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()
                   if key.startswith("network.")}
        try:
            with torch.device("meta"), _WithoutValues():  # shapes alone: a file may state a network of any size
                check_shapes(Recognizer.build(name, **config).state_dict(), weights)
            network = Recognizer.build(name, **config)
            network.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(path, f"does not fit this version's {name}: {reason}") from None
        return network.eval().to(device)


class _WithoutValues(TorchFunctionMode):
    """Leaves out the initialisation of weights, for which the meta device would load PyTorch's compiler: 0.8 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises ValueError that names a weight which only one of two networks has, or has in another shape."""
    for name in sorted(expected.keys() | found.keys()):
        shapes = [tuple(one[name].shape) if name in one else None for one in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"size mismatch: {name} is {shapes[1]}, the network's options say {shapes[0]}")


def default_options(cls: type[Recognizer]) -> dict:
    """The constructor's keyword arguments and their defaults."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
