"""Checkpoints on disk: find, read safely, check."""

import pickle
import re
import sys
from pathlib import Path

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{path}: {reason}")


def read_checkpoint(path) -> dict:
    """The content of a checkpoint that `train.py` wrote, on the CPU; no code in it is run.

    It holds `recognizer` (the model's name and options, plain values), `state_dict`, and what
    Lightning needs to resume. Raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such checkpoint file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(path, "not a checkpoint of this project: it holds more than plain values") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or ["unknown error"])[0][:120]
        raise CheckpointError(path, f"not a checkpoint, or damaged ({reason})") from None
    recognizer = checkpoint.get("recognizer") if isinstance(checkpoint, dict) else None
    if not isinstance(recognizer, dict) or "model" not in recognizer or "state_dict" not in checkpoint:
        raise CheckpointError(path, "not a checkpoint of this project (train.py writes those)")
    return checkpoint


def newest_checkpoint(folder) -> Path:
    """The checkpoint in `folder` with the most steps, whatever the clock said; names those that cannot be read.

    Raises CheckpointError where there is none.
    """
    found = []
    for path in sorted(Path(folder).glob("*.ckpt")):
        if path.is_symlink():
            continue
        try:
            found.append((read_checkpoint(path).get("global_step", 0), path.stat().st_mtime_ns, path))
        except CheckpointError as error:
            print(f"passed over {error}", file=sys.stderr)
    if not found:
        raise CheckpointError(folder, "no checkpoint to resume from; leave --checkpoint_path out to start anew")
    return max(found)[2]


def best_checkpoints(folder, count: int) -> list[Path]:
    """The `count` checkpoints with the lowest dev WER in `folder`, best first; the later one where two are equal.

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


def _check_same_network(path, checkpoint: dict, first_path, first: dict) -> None:
    options, expected = checkpoint["recognizer"], first["recognizer"]
    different = [name for name in sorted(options.keys() | expected.keys()) if options.get(name) != expected.get(name)]
    shapes, expected_shapes = ({name: value.shape for name, value in one["state_dict"].items()}
                               for one in (checkpoint, first))
    if different or shapes != expected_shapes:
        reason = f"they differ in {', '.join(different)}" if different else "their weights differ in shape"
        raise CheckpointError(path, f"holds another network than {first_path}, so no mean can be taken: {reason}")
