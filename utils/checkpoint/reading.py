"""Checkpoints on disk: find, read safely, average, and export to share.

    python -m utils.checkpoint export runs/NAME/checkpoints/best.ckpt NAME.safetensors

The file that this writes stands wherever a checkpoint does, but in --checkpoint_path: no run goes on from it.
"""

import io
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from utils.checkpoint.safetensors_io import SUFFIX, SafetensorsError, read_network, write_network
from utils.checkpoint.validation import ValidationError, check_archive, check_network, check_tensors
from utils.cli.parser import OneLineParser
from utils.errors import UserError, one_line_errors, printable
from utils.files.atomic import atomic_write

PREFIX = "network."  # of the network's weights in a checkpoint
DAMAGE = (RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError, AssertionError,
          ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile)  # what zip and pickle make of damaged bytes


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line and begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{path}: {reason}")


def read_checkpoint(path) -> dict:
    """The content of a checkpoint that `train.py` wrote, on the CPU; no code in it is run.

    It holds `recognizer` (the model's name and options, plain values), `state_dict`, and what
    Lightning needs to resume, unless it is a safetensors file. Raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such checkpoint file")
    try:
        checkpoint = (_read_exported if path.suffix == SUFFIX else _read_saved)(path)
        check_network(checkpoint.get("recognizer"), checkpoint.get("state_dict"))
    except (ValidationError, SafetensorsError) as error:
        raise CheckpointError(path, printable(error, 200)) from None
    except pickle.UnpicklingError:
        raise CheckpointError(path, "not a checkpoint of this project: it holds more than plain values") from None
    except DAMAGE as error:
        reason = printable(str(error) or "cut off", 120)
        raise CheckpointError(path, f"not a checkpoint, or damaged ({reason})") from None
    return checkpoint


def read_resumable(path) -> dict:
    """A checkpoint that a run can go on from. Raises CheckpointError, also where it holds weights alone."""
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(path, "holds weights alone, to transcribe or to evaluate; a run goes on from a "
                                    "checkpoint of train.py, such as last.ckpt")
    return checkpoint


def _read_saved(path: Path) -> dict:
    check_archive(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    check_tensors(checkpoint, path.stat().st_size)
    return checkpoint


def _read_exported(path: Path) -> dict:
    config, weights = read_network(path)
    return {"recognizer": config, "state_dict": {f"{PREFIX}{name}": value for name, value in weights.items()}}


def export(source, target) -> None:
    """Writes a checkpoint's network as a safetensors file. Raises CheckpointError and OSError."""
    if Path(target).suffix != SUFFIX:
        raise CheckpointError(target, f"must end in {SUFFIX}")
    checkpoint = read_checkpoint(source)
    weights = {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()
               if name.startswith(PREFIX)}
    write_network(target, checkpoint["recognizer"], weights)


def newest_checkpoint(folder) -> Path:
    """The checkpoint in `folder` with the most steps, whatever the clock said; names those that cannot be read.

    Raises CheckpointError where there is none.
    """
    found = []
    for path in sorted(Path(folder).glob("*.ckpt")):
        if path.is_symlink():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            print(f"passed over {error}", file=sys.stderr)
            continue
        if "optimizer_states" in checkpoint:  # a mean of several has none, and no run goes on from it
            found.append((checkpoint.get("global_step", 0), path.stat().st_mtime_ns, path))
    if not found:
        raise CheckpointError(folder, "no checkpoint to resume from; leave --checkpoint_path out to start anew")
    return max(found)[2]


def best_checkpoints(folder, count: int) -> list[Path]:
    """The `count` checkpoints with the lowest val WER in `folder`, best first; the later one where two are equal.

    Their names state it, `epochNNN-werX.XXXX.ckpt`. Raises CheckpointError where there are fewer.
    """
    named = [(found, path) for path in Path(folder).glob("*.ckpt")
             if (found := re.fullmatch(r"epoch(\d+)-wer(\d+\.\d+)(-v\d+)?\.ckpt", path.name))]
    if len(named) < count:
        raise CheckpointError(folder, f"holds {len(named)} checkpoints named epochNNN-werX.XXXX.ckpt, not the {count} "
                                      "to average")
    named.sort(key=lambda pair: (float(pair[0][2]), -int(pair[0][1]), pair[1].name))
    return [path for _, path in named[:count]]


def average_checkpoints(paths: list) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints of one network, as a `state_dict`.

    Summed in float64; what is not floating point (counters) is the first one's.
    Raises CheckpointError where one cannot be read or holds another network than the first.
    """
    first = read_checkpoint(paths[0])
    weights = first["state_dict"]
    sums = {name: value.double() for name, value in weights.items() if value.is_floating_point()}
    for path in paths[1:]:
        other = read_checkpoint(path)
        _check_same_network(path, other, paths[0], first)
        for name in sums:
            sums[name] += other["state_dict"][name]
    return {name: (sums[name] / len(paths)).to(value.dtype) if name in sums else value
            for name, value in weights.items()}


def write_averaged(paths: list, path) -> None:
    """Writes the mean of several checkpoints' weights as one to evaluate, or to transcribe with.

    Raises CheckpointError as `average_checkpoints` does, and OSError where it cannot be written.
    """
    kept = {name: value for name, value in read_checkpoint(paths[-1]).items()
            if name in ("recognizer", "pytorch-lightning_version", "epoch", "global_step")}
    content = io.BytesIO()
    torch.save({**kept, "state_dict": average_checkpoints(paths)}, content)
    atomic_write(path, content.getvalue())


def _check_same_network(path, checkpoint: dict, first_path, first: dict) -> None:
    options, expected = checkpoint["recognizer"], first["recognizer"]
    different = [name for name in sorted(options.keys() | expected.keys()) if options.get(name) != expected.get(name)]
    shapes, expected_shapes = ({name: value.shape for name, value in one["state_dict"].items()}
                               for one in (checkpoint, first))
    if different or shapes != expected_shapes:
        reason = f"they differ in {', '.join(different)}" if different else "their weights differ in shape"
        raise CheckpointError(path, f"holds another network than {first_path}, so no mean can be taken: {reason}")


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, or 2 where a flag or a file is wrong."""
    parser = OneLineParser(prog="checkpoint.py", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(metavar="export", required=True).add_parser("export", help="to a safetensors file")
    command.add_argument("source", help="a checkpoint that train.py wrote")
    command.add_argument("target", help="NAME.safetensors")
    with one_line_errors(parser.prog):
        args = parser.parse_args(argv)
        export(args.source, args.target)
        print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:,.1f} MB")
