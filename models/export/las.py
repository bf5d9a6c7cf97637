"""Listen, Attend and Spell as two ONNX files: the listener, and next to it one step of the speller.

    waveforms      (B, S) float32, 16 kHz        keys, values   the `Memory` that the speller attends to
    sample_counts  (B,) int64                    lengths        (B,) int64, of the memory
                                                 ctc_lengths    (B,) int64
                                                 ctc_log_probs  (B, T', V), where ctc_weight is above 0

    tokens         (N,) int64, the last ones     log_probs      (N, V) float32, of the next ones
    keys, values, valid                          context_after, weights_after, hidden_0_after, ..., cell_0_after, ...
    context, weights, hidden_0, ..., cell_0, ...

The second file's meaning is that of `Speller.step`; N counts hypotheses. The first one keeps the second one's checksum.
"""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.components.attention import ContentAttention, Memory
from models.export.layers import with_exportable_layers
from models.export.onnx import file_content, trace, trace_whole
from models.inference.onnx_las import speller_path
from models.las import LAS
from models.speller import Speller, SpellerState
from utils.files.atomic import atomic_write

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram


class WholeListener(nn.Module):
    """Computes what the listener's file does."""

    def __init__(self, network: LAS):
        super().__init__()
        self.network = network

    def forward(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, ...]:
        """Returns keys, values and their lengths, CTC's lengths, and its log-probabilities where it has a weight."""
        encoding = self.network.encode(waveforms, sample_counts)
        memory, ctc = self.network.memory(encoding), self.network.ctc_log_probs(encoding)
        return memory.keys, memory.values, encoding.lengths, encoding.ctc_lengths, *([] if ctc is None else ctc[:1])


class SpellerStep(nn.Module):
    """Computes what the speller's file does."""

    def __init__(self, speller: Speller):
        super().__init__()
        self.speller = speller

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, valid: Tensor, context: Tensor, weights: Tensor,
                *layers: Tensor) -> tuple[Tensor, ...]:
        """Returns (N, V) log-probabilities, then context, weights, hidden states and cells after them."""
        hidden, cells = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        state = SpellerState(hidden, cells, context, weights, coverage=weights)  # whoever runs it sums up the coverage
        log_probs, state = self.speller.step(tokens, state, Memory(keys, values, valid))
        return log_probs, state.context, state.weights, *state.hidden, *state.cells


def export_las(network: LAS, path, *, int8: bool = False) -> None:
    """Writes a network as two ONNX files, `path` and `speller_path(path)`; otherwise as `export_onnx` does."""
    exportable = with_exportable_layers(network)
    speller = file_content(trace_speller(exportable), network, int8=int8)
    outputs = ["keys", "values", "lengths", "ctc_lengths", "ctc_log_probs"][: 4 if network.ctc is None else 5]
    listener = file_content(trace_whole(WholeListener(exportable), outputs), network, int8=int8,
                            speller_sha256=hashlib.sha256(speller).hexdigest())
    atomic_write(speller_path(path), speller)
    atomic_write(path, listener)


@torch.no_grad()
def trace_speller(network: LAS) -> "ONNXProgram":
    """Returns the program of a step of the speller. Raises ImportError."""
    speller = network.speller
    memory = speller.attention.precompute(torch.zeros(2, 5, network.listener.outputs), torch.tensor([5, 3]))
    state = speller.initial(memory)
    layers = [layer.clone() for layer in (*state.hidden, *state.cells)]  # one tensor twice would be one input
    after = ["context", "weights", *(f"{kind}_{i}" for kind in ("hidden", "cell") for i in range(len(state.hidden)))]
    one, frames = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    keys = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC} if isinstance(speller.attention, ContentAttention) else frames
    return trace(SpellerStep(speller), (torch.tensor([1, 2]), *memory, state.context, state.weights, *layers),
                 ["tokens", *Memory._fields, *after], ["log_probs", *(f"{name}_after" for name in after)],
                 (one, keys, frames, frames, one, frames, (one,) * len(layers)))
