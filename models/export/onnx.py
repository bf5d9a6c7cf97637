"""CTC networks as ONNX files, features inside: samples in, log-probabilities out; `las` has those with attention.

A file takes any batch of recordings, padded, of any lengths:

    waveforms      (B, S) float32, 16 kHz        log_probs            (B, T, V) float32
    sample_counts  (B,) int64                    lengths              (B,) int64
                                                 alignment_log_probs  (B, T, V), where local_ctc_weight is above 0

or, of a network that can stream, the next samples of one recording and the states after those before:

    samples        (1, S) float32, 16 kHz        log_probs            (1, N, V) float32
    frames         (N,) int64                    state_0_after, ...
    state_0, ...   float32

whose meaning is that of `StreamingStep.forward`, and which `StreamingEncoder` calls as it is called everywhere. A file
is whole: its metadata have the network's config, and so its tokenizer.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.components.streaming import StreamingEncoder
from models.ctc import CTCRecognizer
from models.export.layers import with_exportable_layers
from models.inference.onnx import VERSION
from models.inference.streaming import StreamingRecognizer
from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE
from utils.errors import UsageError
from utils.files.atomic import atomic_write

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

OPSET = 18
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the module that an operator comes from
FEATURES = "features_"  # how the names of the features' operators begin


class WholeRecordings(nn.Module):
    """Computes what a file for whole recordings does."""

    def __init__(self, network: CTCRecognizer):
        super().__init__()
        self.network = network

    def forward(self, waveforms: Tensor, sample_counts: Tensor) -> tuple[Tensor, ...]:
        """Returns (B, T, V) log-probabilities, (B,) lengths, and those for the times of words where they are others."""
        encoding = self.network.encode(waveforms, sample_counts)
        outputs = self.network.ctc_log_probs(encoding)
        return (*outputs, self.network.alignment_log_probs(encoding)) if self.network.local_ctc_weight else outputs


def export_onnx(network: Recognizer, path, *, stream: bool = False, int8: bool = False) -> None:
    """Writes a CTC network as an ONNX file.

    Args:
        network: on the CPU.
        path: NAME.onnx.
        stream: whether the file computes the next frames of a stream.
        int8: whether matrices are 8-bit integers, and so are, while it runs, the activations that they multiply.

    Raises UsageError for another kind of network, StreamingError for a network that cannot stream, ImportError where a
    package is missing, and OSError.
    """
    exportable, metadata = with_exportable_layers(network), {"time_stride": str(network.time_stride)}
    if stream:
        encoder = StreamingRecognizer(exportable).encoder
        metadata |= {"context": str(encoder.context), "lookahead": str(encoder.lookahead)}
        program = trace_step(encoder)
    elif isinstance(network, CTCRecognizer):
        outputs = ["log_probs", "lengths", "alignment_log_probs"][: 3 if network.local_ctc_weight else 2]
        program = trace_whole(WholeRecordings(exportable), outputs)
    else:
        raise UsageError(f"a {network.name} network cannot be exported to ONNX, only CTC networks and las can")
    atomic_write(path, file_content(program, network, int8=int8, **metadata))


def trace_whole(module: nn.Module, outputs: list[str]) -> "ONNXProgram":
    """Returns the program of a module that takes whole recordings. Raises ImportError."""
    inputs = torch.zeros(2, 2 * SAMPLE_RATE), torch.tensor([2 * SAMPLE_RATE, SAMPLE_RATE])
    return trace(module, inputs, ["waveforms", "sample_counts"], outputs,
                 ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}))


def trace_step(encoder: StreamingEncoder) -> "ONNXProgram":
    """Returns the program of a network for the next frames of a stream. Raises ImportError."""
    states = [f"state_{i}" for i in range(len(encoder.states))]
    inputs = torch.zeros(1, SAMPLE_RATE), torch.arange(10), *encoder.states
    return trace(encoder.step, inputs, ["samples", "frames", *states],
                 ["log_probs", *(f"{name}_after" for name in states)],
                 ({1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, (None,) * len(states)))


def trace(module: nn.Module, inputs: Sequence[Tensor], input_names: list[str], output_names: list[str],
          dynamic_shapes: tuple) -> "ONNXProgram":
    """Returns a module as an ONNX program. Raises ImportError."""
    try:
        import onnxscript  # noqa: F401 (the exporter asks for it after all the work)
    except ImportError:
        raise ImportError("the export needs onnxscript: pip install -r requirements-export.txt") from None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what the exporter says about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision is missing
        return torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False, opset_version=OPSET,
                                 input_names=input_names, output_names=output_names, dynamic_shapes=dynamic_shapes)


def file_content(program: "ONNXProgram", network: Recognizer, *, int8: bool, **metadata: str) -> bytes:
    """Returns the content of a program's file, which has the network's config, and so its tokenizer, and `metadata`."""
    for node in program.model.graph.all_nodes():
        if "network.features" in node.metadata_props.get(SCOPES, ""):
            node.name = f"{FEATURES}{node.name}"
        node.metadata_props.clear()  # paths on this machine
    program.model.metadata_props.update(metadata, format_version=VERSION, config=json.dumps(network.config))
    content = program.model_proto.SerializeToString()
    return quantize(content) if int8 else content


def quantize(content: bytes) -> bytes:
    """Returns the content of a file whose matrices are 8-bit integers, all but those of the features.

    They are unsigned: products of unsigned and signed bytes overflow in processors that have AVX2 alone, and
    log-probabilities were 16 times as far off. Vectors stay, too: onnxruntime takes no product with one.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it recommends a preparation that these graphs do not need
    model = onnx.load_from_string(content)
    vectors = {weight.name for weight in model.graph.initializer if len(weight.dims) == 1}
    excluded = [node.name for node in model.graph.node if node.name.startswith(FEATURES)
                or (node.op_type == "MatMul" and node.input[1] in vectors)]
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(model, Path(folder, "x.onnx"), op_types_to_quantize=["MatMul", "LSTM"],
                         nodes_to_exclude=excluded, per_channel=True, weight_type=QuantType.QUInt8)
        return Path(folder, "x.onnx").read_bytes()
