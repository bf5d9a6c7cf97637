"""CTC networks from ONNX files, run by onnxruntime on the CPU; `onnx_las` has those with attention."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.components.masks import Lengths
from models.components.streaming import StreamingEncoder, StreamingError
from models.ctc import CTCRecognizer, Encoding
from models.recognizer import Recognizer
from utils.checkpoint.reading import CheckpointError
from utils.checkpoint.untrusted import ValidationError, check_config
from utils.errors import printable
from utils.options import constructor_options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SUFFIX, VERSION = ".onnx", "1"  # the version stands in a file's metadata
FOREIGN = "not a network of this project, or of another version: `python -m models.export` writes those"


class OnnxFile:
    """A file that `python -m models.export` wrote, open in onnxruntime.

    Raises CheckpointError for any other file, and ImportError without onnxruntime.
    """

    def __init__(self, path):
        self.path, self.session = Path(path), open_session(Path(path))
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        if self.metadata.get("format_version") != VERSION:
            raise CheckpointError(path, FOREIGN)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Returns the outputs for inputs in the file's order. Raises CheckpointError where they cannot be computed."""
        names = [one.name for one in self.inputs]
        arrays = [one.detach().cpu().numpy() for one in inputs]
        try:
            return list(map(torch.from_numpy, self.session.run(None, dict(zip(names, arrays, strict=True)))))
        except Exception as error:  # onnxruntime has one for each fault, with no base of their own
            raise cannot_run(self.path, error) from None


KINDS: dict[tuple[str, ...], Callable[[OnnxFile, dict], Recognizer]] = {}  # by a file's first two outputs


def read_onnx(path) -> Recognizer:
    """Returns the network of a file that `python -m models.export` wrote.

    Raises CheckpointError for any other file, and ImportError without onnxruntime.
    """
    file = OnnxFile(path)
    kind = KINDS.get(tuple(one.name for one in file.outputs[:2]))
    if kind is None:
        raise CheckpointError(path, FOREIGN)
    try:
        config = json.loads(file.metadata["config"])
        check_config(config)
        return kind(file, config).eval()
    except ValidationError as error:
        raise CheckpointError(path, printable(error, 200)) from None
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"damaged: {' '.join(str(error).split())[:200]}") from None


def options_of(cls: type[Recognizer], config: dict) -> dict:
    """Returns what a config says of the options of a network's class."""
    names = {option.name for option in constructor_options(cls)}
    return {name: value for name, value in config.items() if name in names}


class OnnxRecognizer(CTCRecognizer):
    """A network of which onnxruntime computes the log-probabilities; what comes after them is any CTC network's.

    Args:
        file: what `export_onnx` wrote.
        config: of the network that was exported.
    """

    def __init__(self, file: OnnxFile, config: dict):
        super().__init__(**options_of(CTCRecognizer, config))
        self.file, self.config, self.name = file, config, config["model"]
        self.time_stride = int(file.metadata["time_stride"])
        if file.outputs[0].shape[-1] != self.tokenizer.ctc_size:
            raise ValidationError("damaged: its network and its tokenizer differ in size")

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """Returns log-probabilities in the place of encoder output. Raises CheckpointError."""
        return Encoding(*self.file.run(waveforms, sample_counts))

    def ctc_log_probs(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Returns (B, T, V) float32 log-probabilities of the blank and the tokens, and (B,) lengths."""
        return encoding.frames, encoding.lengths

    def alignment_log_probs(self, encoding: Encoding) -> Tensor:
        """Returns (B, T, V) log-probabilities that tell when tokens are spoken."""
        return encoding.frames if encoding.local is None else encoding.local

    def streaming_encoder(self) -> StreamingEncoder:
        """Raises StreamingError: the file takes whole recordings."""
        raise StreamingError(f"{self.file.path} takes whole recordings; python -m models.export --stream writes others")

    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the CTC frames of `frames` feature frames."""
        return (frames - 1) // self.time_stride + 1


class OnnxStream(OnnxRecognizer):
    """A network whose file computes the next frames of a stream; a recording is one as well."""

    def streaming_encoder(self) -> StreamingEncoder:
        """Returns the encoder of one stream."""
        metadata = self.file.metadata
        states = [torch.zeros(one.shape) for one in self.file.inputs[2:]]
        return StreamingEncoder(self.file.run, states, frame=self.ctc_frame_samples, context=int(metadata["context"]),
                                lookahead=int(metadata["lookahead"]))

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """Returns log-probabilities in the place of encoder output, of one utterance after the other."""
        found = []
        for waveform, count in zip(waveforms, sample_counts.tolist(), strict=True):
            encoder = self.streaming_encoder()
            parts = encoder.feed(waveform[:count]), encoder.finish()
            found.append(torch.cat([part[0] for part in parts if part is not None]))
        lengths = torch.tensor([len(one) for one in found])
        return Encoding(torch.nn.utils.rnn.pad_sequence(found, batch_first=True), lengths)


def open_session(path: Path) -> "InferenceSession":
    """Returns onnxruntime's session of a file, which may refer to no other file. Raises CheckpointError."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(f"{path}: needs onnxruntime: pip install -r requirements-export.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised
    content = path.read_bytes()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one for each fault, with no base of their own
        raise cannot_run(path, error) from None


def cannot_run(path, error: Exception) -> CheckpointError:
    """Returns what a user reads in place of an error of onnxruntime."""
    return CheckpointError(path, f"onnxruntime cannot run it ({' '.join(str(error).split())[:120]})")


KINDS |= {("log_probs", "lengths"): OnnxRecognizer, ("log_probs", "state_0_after"): OnnxStream}
Recognizer.formats[SUFFIX] = read_onnx
