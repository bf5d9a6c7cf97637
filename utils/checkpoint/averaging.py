"""The mean of the weights of several checkpoints of one network."""

import io
import re
from pathlib import Path

import torch
from torch import Tensor

from utils.checkpoint.reading import CheckpointError, read_checkpoint
from utils.files.atomic import atomic_write


def best_checkpoints(folder, count: int) -> list[Path]:
    """Returns the `count` checkpoints with the lowest val WER in `folder`, best first, of equal ones the later first.

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
    """Returns the mean of the weights of several checkpoints of one network, as a `state_dict`.

    It is summed in float64; what is not floating point (counters) is taken from the first one.
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
