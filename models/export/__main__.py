"""Exports a checkpoint's network as an ONNX file, to run where there is no PyTorch.

    python -m models.export X.ckpt X.onnx
    python -m models.export X.ckpt X.onnx --int8
    python -m models.export X.ckpt X.onnx --stream

`inference.py` and `evaluate.py` take the file in place of a checkpoint. Inputs and outputs: models/export/onnx.py
and las.py.
"""

import argparse
import math
from pathlib import Path

import torch

from models import LAS, Recognizer
from models.export.las import export_las
from models.export.onnx import OPSET, export_onnx
from models.inference.onnx import SUFFIX
from models.inference.onnx_las import speller_path
from utils.audio import SAMPLE_RATE
from utils.checkpoint.reading import CheckpointError
from utils.cli.parser import OneLineParser
from utils.errors import UsageError, one_line_errors
from utils.types import Batch

PROGRAM = "python -m models.export"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns what to export, and where to. Raises UsageError."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a checkpoint")
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
    """Returns the largest difference between two networks' log-probabilities of noise and a text of five tokens."""
    batch = Batch(0.1 * torch.randn(1, 2 * SAMPLE_RATE), torch.tensor([2 * SAMPLE_RATE]),
                  torch.ones(1, 5, dtype=torch.long), torch.tensor([5]), [], [], [])
    found = [network(batch)[0] for network in (one, other)]
    return float(torch.where(found[0] == found[1], 0.0, (found[0] - found[1]).abs()).max())  # -inf equals -inf


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, or 2 where a flag or a file is wrong."""
    with one_line_errors(PROGRAM):
        args = parse_arguments(argv)
        network = Recognizer.from_checkpoint(args.source)
        files = [Path(args.target)]
        if isinstance(network, LAS) and not args.stream:
            export_las(network, args.target, int8=args.int8)
            files.append(speller_path(args.target))
        else:
            export_onnx(network, args.target, stream=args.stream, int8=args.int8)
        difference = largest_difference(network, Recognizer.from_checkpoint(args.target))
        if not math.isfinite(difference):
            raise CheckpointError(args.source, f"{args.target} does not compute what this network computes: weights "
                                               "that are too large, or not finite?")
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"{' and '.join(map(str, files))}: {size:,.1f} MB, opset {OPSET}; log-probabilities "
              f"differ from PyTorch's by at most {difference:.1g}")


if __name__ == "__main__":
    main()
