"""Checkpoints on disk: read safely, and found in a run's folder."""

import filecmp
import sys
from pathlib import Path

from torch import Tensor

from utils.checkpoint.hub import HubError, download, is_address
from utils.checkpoint.pretrained import WEIGHTS, find_folder, network_names
from utils.checkpoint.untrusted import SUFFIX, ValidationError, check_network, load_saved, load_shared
from utils.errors import UserError, printable

BEST = "best.ckpt"  # a run's checkpoint with the lowest val WER
PREFIX = "network."  # of the network's weights in a checkpoint


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{path}: {reason}")


def find_checkpoint(path) -> Path:
    """Returns the file of a checkpoint, or the weights of a pretrained network by its name. A file that exists wins.

    What `hf://user/name` names is downloaded, unless the cache has it. Raises CheckpointError where there is no such
    file, and names the networks that there are.
    """
    if is_address(path):
        try:
            return download(str(path), WEIGHTS)
        except HubError as error:
            raise CheckpointError(path, printable(error, 200)) from None
    folder = find_folder(path)
    file = Path(path) if folder is None else folder / WEIGHTS
    if not file.is_file():
        is_path = folder is None and (file.suffix or file.name != str(path))
        known = f"; the pretrained networks are: {', '.join(network_names()) or 'none'}"
        raise CheckpointError(file, "no such checkpoint file" + ("" if is_path else known))
    return file


def read_checkpoint(path) -> dict:
    """Returns the content of a checkpoint that `train.py` wrote, on the CPU; no code in it is run.

    The name of a pretrained network stands for its weights. The content has `recognizer` (the model's name and
    options, plain values), `state_dict`, and what Lightning needs to resume, unless it is a safetensors file. Raises
    CheckpointError.
    """
    path = find_checkpoint(path)
    try:
        checkpoint = _read_shared(path) if path.suffix == SUFFIX else load_saved(path)
        check_network(checkpoint)
    except ValidationError as error:
        raise CheckpointError(path, printable(error, 200)) from None
    return checkpoint


def read_resumable(path) -> dict:
    """Returns a checkpoint that a run can go on from. Raises CheckpointError, also where it holds weights alone."""
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(path, "holds weights alone, to transcribe or to evaluate; a run goes on from a "
                                    "checkpoint of train.py, such as last.ckpt")
    return checkpoint


def network_weights(checkpoint: dict) -> dict[str, Tensor]:
    """Returns the `state_dict` of the network alone, by its own names."""
    return {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()
            if name.startswith(PREFIX)}


def newest_checkpoint(folder) -> Path:
    """Returns the checkpoint in `folder` with the most steps, whatever the clock said; names those it cannot read.

    Raises CheckpointError where there is none.
    """
    found = []
    for path in sorted(Path(folder).glob("*.ckpt")):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            print(f"passed over {error}", file=sys.stderr)
            continue
        if "optimizer_states" in checkpoint:  # a mean of several has none, and no run goes on from it
            found.append((checkpoint.get("global_step", 0), path.stat().st_mtime_ns, path))
    if not found:
        raise CheckpointError(folder, "no checkpoint to resume from; delete its *.ckpt files, or choose another "
                                      "--output_dir, to start anew")
    return max(found)[2]


def original_of(path) -> Path:
    """Returns the checkpoint next to `best.ckpt` that it is a link to or a copy of; any other path as it is."""
    path = Path(path)
    others = sorted(path.parent.glob("*.ckpt")) if path.name == BEST and path.is_file() else []
    others = [other for other in others if other.name != BEST and other.is_file()]
    return next((other for other in others if filecmp.cmp(path, other, shallow=False)), path)


def _read_shared(path: Path) -> dict:
    config, weights = load_shared(path)
    return {"recognizer": config, "state_dict": {f"{PREFIX}{name}": value for name, value in weights.items()}}
