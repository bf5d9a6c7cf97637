"""CTC networks from ONNX files, run by onnxruntime on the CPU."""

import json
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
WHOLE, STEP = ["waveforms", "sample_counts"], ["samples", "frames"]  # inputs of both kinds of files: models/export


class OnnxRecognizer(CTCRecognizer):
    """A network of which onnxruntime computes the log-probabilities; what comes after them is any CTC network's.

    Args:
        path: the file, for errors.
        session: onnxruntime's.
        config: of the network that was exported.
        time_stride: feature frames per CTC frame.
    """

    inputs = WHOLE

    def __init__(self, path, session: "InferenceSession", config: dict, time_stride: int):
        names = {option.name for option in constructor_options(CTCRecognizer)}
        super().__init__(**{name: value for name, value in config.items() if name in names})
        self.path, self.session, self.config, self.time_stride = path, session, config, time_stride
        self.name = config["model"]

    @staticmethod
    def from_file(path) -> "OnnxRecognizer":
        """Returns the network of a file that `python -m models.export` wrote.

        Raises CheckpointError for any other file, and ImportError without onnxruntime.
        """
        path = Path(path)
        session = open_session(path)
        metadata = session.get_modelmeta().custom_metadata_map
        inputs = [one.name for one in session.get_inputs()][:2]
        kinds = [kind for kind in (OnnxRecognizer, OnnxStream) if kind.inputs == inputs]
        if metadata.get("format_version") != VERSION or not kinds:
            raise CheckpointError(path, "not a network of this project, or of another version: `python -m "
                                        "models.export` writes those")
        try:
            config = json.loads(metadata["config"])
            check_config(config)
            network = kinds[0](path, session, config, int(metadata["time_stride"])).eval()
            if session.get_outputs()[0].shape[-1] != network.tokenizer.ctc_size:
                raise ValidationError("damaged: its network and its tokenizer differ in size")
        except ValidationError as error:
            raise CheckpointError(path, printable(error, 200)) from None
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(path, f"damaged: {' '.join(str(error).split())[:200]}") from None
        return network

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Returns the outputs for inputs in the file's order. Raises CheckpointError where they cannot be computed."""
        names = [one.name for one in self.session.get_inputs()]
        arrays = [one.detach().cpu().numpy() for one in inputs]
        try:
            return list(map(torch.from_numpy, self.session.run(None, dict(zip(names, arrays, strict=True)))))
        except Exception as error:  # onnxruntime has one for each fault, with no base of their own
            raise cannot_run(self.path, error) from None

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """Returns log-probabilities in the place of encoder output. Raises CheckpointError."""
        return Encoding(*self.run(waveforms, sample_counts))

    def ctc_log_probs(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Returns (B, T, V) float32 log-probabilities of the blank and the tokens, and (B,) lengths."""
        return encoding.frames, encoding.lengths

    def alignment_log_probs(self, encoding: Encoding) -> Tensor:
        """Returns (B, T, V) log-probabilities that tell when tokens are spoken."""
        return encoding.frames if encoding.local is None else encoding.local

    def streaming_encoder(self) -> StreamingEncoder:
        """Raises StreamingError: the file takes whole recordings."""
        raise StreamingError(f"{self.path} takes whole recordings; python -m models.export --stream writes others")

    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the CTC frames of `frames` feature frames."""
        return (frames - 1) // self.time_stride + 1


class OnnxStream(OnnxRecognizer):
    """A network whose file computes the next frames of a stream; a recording is one as well."""

    inputs = STEP

    def streaming_encoder(self) -> StreamingEncoder:
        """Returns the encoder of one stream."""
        metadata = self.session.get_modelmeta().custom_metadata_map
        states = [torch.zeros(one.shape) for one in self.session.get_inputs()[len(STEP) :]]
        return StreamingEncoder(self.run, states, frame=self.ctc_frame_samples, context=int(metadata["context"]),
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


Recognizer.formats[SUFFIX] = OnnxRecognizer.from_file
