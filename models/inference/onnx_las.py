"""Listen, Attend and Spell from two ONNX files, run by onnxruntime on the CPU."""

import hashlib
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from models.components.attention import Memory
from models.components.masks import length_mask
from models.inference.onnx import KINDS, OnnxFile, options_of
from models.las import LAS
from models.loading import WithoutInitialization
from models.speller import SpellerState
from utils.checkpoint.untrusted import ValidationError
from utils.types import Batch


class ListenerMemory(NamedTuple):
    """The listener's output, ready for the speller."""

    memory: Memory
    lengths: Tensor  # (B,) int64
    ctc_lengths: Tensor  # (B,) int64
    ctc_log_probs: Tensor | None = None  # (B, T', V)


def speller_path(path) -> Path:
    """Returns where the speller of a listener's file is: next to it."""
    return Path(path).with_suffix(".speller.onnx")


class OnnxLAS(LAS):
    """An attention network whose listener and speller's step onnxruntime computes; the search is that of `LAS`.

    Args:
        file: the listener, by `export_las`.
        config: of the network that was exported.
    """

    def __init__(self, file: OnnxFile, config: dict):
        speller = speller_path(file.path)
        if not speller.is_file():
            raise ValidationError(f"needs {speller.name} next to it, which was exported with it")
        if hashlib.sha256(speller.read_bytes()).hexdigest() != file.metadata["speller_sha256"]:
            raise ValidationError(f"{speller.name} next to it was not exported with it")
        with torch.device("meta"), WithoutInitialization():  # layers without weights
            super().__init__(**options_of(LAS, config))
        self.file, self.config, self.speller_file = file, config, OnnxFile(speller)
        if self.speller_file.outputs[0].shape[-1] != self.tokenizer.size:
            raise ValidationError("damaged: its network and its tokenizer differ in size")
        self.speller.step = self.step

    @property
    def device(self) -> torch.device:
        """Returns where the network computes."""
        return torch.device("cpu")

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> ListenerMemory:
        """Returns the listener's output for (B, S) samples with (B,) counts. Raises CheckpointError."""
        keys, values, lengths, *ctc = self.file.run(waveforms, sample_counts)
        return ListenerMemory(Memory(keys, values, length_mask(lengths, values.shape[1])), lengths, *ctc)

    def memory(self, encoding: ListenerMemory) -> Memory:
        """Returns what the speller attends to."""
        return encoding.memory

    def ctc_log_probs(self, encoding: ListenerMemory) -> tuple[Tensor, Tensor] | None:
        """Returns (B, T', V) float32 log-probabilities of blank and tokens, and (B,) lengths; None without CTC."""
        return None if encoding.ctc_log_probs is None else (encoding.ctc_log_probs, encoding.ctc_lengths)

    def attend_and_spell(self, encoding: ListenerMemory, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (B, U + 1, V) log-probabilities and (B, U + 1, T) attention weights, given the reference's tokens."""
        return self.speller(F.pad(batch.tokens, (1, 0), value=self.tokenizer.sos), encoding.memory)

    def step(self, tokens: Tensor, state: SpellerState, memory: Memory) -> tuple[Tensor, SpellerState]:
        """Returns what `Speller.step` does. Raises CheckpointError."""
        log_probs, context, weights, *layers = self.speller_file.run(
            tokens, *memory, state.context, state.weights, *state.hidden, *state.cells)
        hidden, cells = tuple(layers[: len(layers) // 2]), tuple(layers[len(layers) // 2 :])
        return log_probs, SpellerState(hidden, cells, context, weights, state.coverage + weights)


def refuse_speller(file: OnnxFile, config: dict) -> NoReturn:
    """Raises ValidationError: a speller alone is no network."""
    raise ValidationError("a speller: name the file of its listener, which ends in .onnx without .speller")


KINDS |= {("keys", "values"): OnnxLAS, ("log_probs", "context_after"): refuse_speller}
