"""Exports a checkpoint's network as an ONNX file, to run where there is no PyTorch.

    python -m models.export X.ckpt X.onnx
    python -m models.export X.ckpt X.onnx --int8
    python -m models.export X.ckpt X.onnx --stream

`inference.py` and `evaluate.py` take the file in place of a checkpoint. Its inputs and outputs: models/export/onnx.py.
"""

import argparse
from pathlib import Path

import torch

from models import Recognizer
from models.export.onnx import OPSET, export_onnx
from models.inference.onnx import SUFFIX, OnnxRecognizer
from utils.audio import SAMPLE_RATE
from utils.cli.parser import OneLineParser
from utils.errors import UsageError, one_line_errors

PROGRAM = "python -m models.export"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns what to export, and where to. Raises UsageError."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a checkpoint of a CTC network")
    parser.add_argument("target", help=f"NAME{SUFFIX}")
    parser.add_argument("--int8", action=argparse.BooleanOptionalAction, default=False,
                        help="matrices as 8-bit integers: a smaller file")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=False,
                        help="the next frames of a stream: for inference.py --stream, or a program of your own")
    args = parser.parse_args(argv)
    if Path(args.target).suffix != SUFFIX:
        raise UsageError(f"{args.target}: must end in {SUFFIX}")
    return args


@torch.inference_mode()
def largest_difference(one: Recognizer, other: Recognizer) -> float:
    """Returns the largest difference between two networks' log-probabilities of two seconds of noise."""
    waveforms, counts = 0.1 * torch.randn(1, 2 * SAMPLE_RATE), torch.tensor([2 * SAMPLE_RATE])
    found = [network.ctc_log_probs(network.encode(waveforms, counts))[0] for network in (one, other)]
    return float((found[0] - found[1]).abs().max())


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, or 2 where a flag or a file is wrong."""
    with one_line_errors(PROGRAM):
        args = parse_arguments(argv)
        network = Recognizer.from_checkpoint(args.source)
        export_onnx(network, args.target, stream=args.stream, int8=args.int8)
        difference = largest_difference(network, OnnxRecognizer.from_file(args.target))
        print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:,.1f} MB, opset {OPSET}; log-probabilities "
              f"differ from PyTorch's by at most {difference:.1g}")


if __name__ == "__main__":
    main()
