"""Which checkpoints a run writes, and when; their folder can be moved or copied at any time."""

import io
import os
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from utils.checkpoint.reading import BEST
from utils.errors import UsageError
from utils.files.atomic import atomic_write
from utils.process import is_first_process
from utils.training.signals import is_between_steps


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under another name in their own folder, then renames them: moves between disks can break."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        """Writes a checkpoint. Raises OSError where the disk is full; the file that was there stays."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getbuffer())


class ScoredCheckpoints(ModelCheckpoint):
    """Keeps the checkpoints with the best scores.

    A checkpoint holds the scores so far by the names of the files: Lightning would store paths, and forget all scores
    when the folder is moved or copied.
    """

    def __init__(self, folder: Path, filename: str, *, monitor: str, mode: str, count: int):
        super().__init__(dirpath=folder, filename=filename, monitor=monitor, mode=mode, save_top_k=count,
                         auto_insert_metric_name=False, enable_version_counter=False)

    def state_dict(self) -> dict:
        """Returns the scores by file name."""
        return {"scores": {Path(path).name: score for path, score in self.best_k_models.items()}}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the scores of the files that are still in the folder, of no more than are to be kept now."""
        paths = {str(Path(self.dirpath, name)): score for name, score in state_dict["scores"].items()}
        found = sorted(filter(os.path.exists, paths), key=paths.get, reverse=self.mode == "max")[: self.save_top_k]
        self.best_k_models = {path: score for path, score in paths.items() if path in found}
        if found:
            self.best_model_path, self.kth_best_model_path = found[0], found[-1]
            self.best_model_score, self.kth_value = paths[found[0]], paths[found[-1]]


class BestCheckpoints(ScoredCheckpoints):
    """The checkpoints with the lowest val WER, and `best.ckpt`, which is the best of them under a fixed name."""

    def __init__(self, folder: Path, count: int):
        super().__init__(folder, "epoch{epoch:03d}-wer{val/wer:.4f}", monitor="val/wer", mode="min", count=count)

    def setup(self, trainer, module, stage: str) -> None:
        """Notes the validation sets that choose."""
        super().setup(trainer, module, stage)
        self.val_sets = list(trainer.datamodule.val_sets)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Saves, then renews `best.ckpt`."""
        super().on_train_epoch_end(trainer, module)
        if trainer.is_global_zero and self.best_model_path:
            publish_best(self.best_model_path)

    def state_dict(self) -> dict:
        """Returns the scores, and what they were measured on."""
        return {**super().state_dict(), "val_sets": self.val_sets}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the scores, if they were measured on the same validation sets."""
        if state_dict["val_sets"] == self.val_sets:
            super().load_state_dict(state_dict)
        elif is_first_process():
            before = " ".join(state_dict["val_sets"])
            print(f"--val_sets were {before}: the best checkpoints are chosen anew", flush=True)

    @property
    def best(self) -> Path:
        """Returns the checkpoint with the lowest val WER. Raises UsageError where the folder has none any more."""
        path = Path(self.best_model_path or Path(self.dirpath, BEST))
        if not path.is_file():
            raise UsageError(f"{self.dirpath} holds no checkpoint whose val WER is known: train more --epochs")
        return path


def publish_best(path) -> None:
    """Makes `best.ckpt` next to a checkpoint the same file: a hard link or, where the disk has none, a copy."""
    best = Path(path).with_name(BEST)
    if best.is_file() and best.samefile(path):
        return
    link = best.with_name(f".{BEST}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        link.replace(best)
    except OSError:
        atomic_write(best, Path(path).read_bytes())


class LatestCheckpoints(ScoredCheckpoints):
    """`recentNNN.ckpt` of the last `count` epochs, whose weights may be averaged."""

    def __init__(self, folder: Path, count: int):
        super().__init__(folder, "recent{epoch:03d}", monitor="step", mode="max", count=count)

    @property
    def paths(self) -> list[str]:
        """Returns the checkpoints, oldest first."""
        return sorted(self.best_k_models, key=self.best_k_models.get)


class PeriodicCheckpoint(ModelCheckpoint):
    """`NAME.ckpt`, which is replaced after a number of epochs, optimiser steps or minutes, whatever the val WER."""

    def __init__(self, folder: Path, name: str, *, epochs: int | None = None, steps: int | None = None,
                 minutes: float | None = None):
        super().__init__(dirpath=folder, filename=name, save_top_k=1, every_n_epochs=epochs, every_n_train_steps=steps,
                         train_time_interval=timedelta(minutes=minutes) if minutes else None,
                         enable_version_counter=False)

    def state_dict(self) -> dict:
        """Returns nothing: the one file has a fixed name."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes nothing."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Saves where the interval is over and a run can go on exactly."""
        if is_between_steps(trainer, batch_idx):
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
