"""Checkpoints on disk: find, read safely, check."""

import pickle
from pathlib import Path

import torch


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
    """The checkpoint in `folder` that was written last. Raises CheckpointError where there is none."""
    found = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise CheckpointError(folder, "no checkpoint to resume from; leave --checkpoint_path out to start anew")
    return found[-1]
