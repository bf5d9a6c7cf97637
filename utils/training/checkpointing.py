"""When a run writes its checkpoints, and how it ends early."""

import io
import signal
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from utils.files.atomic import atomic_write

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # of a scheduler, of the keyboard, of SLURM's --signal=USR1


class Interrupted(Exception):
    """A signal ended the run."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # what a shell calls such an end


class WholeFiles(TorchCheckpointIO):
    """Checkpoints are written beside and moved into place, in their own folder: moves between disks can break off."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        """Raises OSError where the disk is full; the file that was there stays."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getbuffer())


class Checkpoints(ModelCheckpoint):
    """The best by val WER, and `best.ckpt`, a link to the best of them."""

    def __init__(self, folder: Path, keep: int):
        super().__init__(dirpath=folder, filename="epoch{epoch:03d}-wer{val/wer:.4f}", monitor="val/wer",
                         mode="min", save_top_k=keep, auto_insert_metric_name=False, enable_version_counter=False)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Saves, then moves the link."""
        super().on_train_epoch_end(trainer, module)
        if trainer.is_global_zero and self.best_model_path:
            link_best(self.best_model_path)


def link_best(path) -> None:
    """Points `best.ckpt` beside a checkpoint to it."""
    beside = Path(path).with_name(".best.ckpt")
    beside.unlink(missing_ok=True)
    beside.symlink_to(Path(path).name)
    beside.replace(Path(path).with_name("best.ckpt"))


class LatestCheckpoints(ModelCheckpoint):
    """`recentNNN.ckpt` of the last `count` epochs, of which a mean may be taken."""

    def __init__(self, folder: Path, count: int):
        super().__init__(dirpath=folder, filename="recent{epoch:03d}", monitor="step", mode="max", save_top_k=count,
                         every_n_epochs=1, auto_insert_metric_name=False, enable_version_counter=False)

    @property
    def paths(self) -> list[str]:
        """The checkpoints, oldest first."""
        return sorted(self.best_k_models, key=self.best_k_models.get)


class PeriodicCheckpoint(ModelCheckpoint):
    """`NAME.ckpt`, written anew after every so many epochs, optimiser steps or minutes, whatever the val WER."""

    def __init__(self, folder: Path, name: str, *, epochs: int | None = None, steps: int | None = None,
                 minutes: float | None = None):
        super().__init__(dirpath=folder, filename=name, save_top_k=1, every_n_epochs=epochs, every_n_train_steps=steps,
                         train_time_interval=timedelta(minutes=minutes) if minutes else None,
                         enable_version_counter=False)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Only where a run can go on exactly from."""
        if is_between_steps(trainer, batch_idx):
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


def is_between_steps(trainer, batch_idx: int) -> bool:
    """Whether an exact checkpoint can be written after this batch.

    Not while a gradient is half accumulated; nor after an epoch's last batch: between that and the validation sets
    Lightning cannot go on exactly.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch


class StopOnSignal(Callback):
    """SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end training after the step under way, at a checkpoint of it.

    Within the validation sets the run goes on to their end, where the epoch's own checkpoint is written. With
    several processes the signal may reach any of them, or all at different steps: after each step they
    agree, over the CPUs. A second signal ends the process at once.
    """

    def __init__(self, path: Path):
        self.path, self.received, self._group = path, 0, None

    def on_train_start(self, trainer, module) -> None:
        """In place of Lightning's handler, which knows of no step, and of its question to the device at every step."""
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        if self.received:
            raise Interrupted(number)
        self.received = number

    def _agree(self, trainer) -> int:
        """The signal that any process has received; 0 for none."""
        if trainer.world_size > 1:
            received = torch.tensor(self.received)
            distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
            self.received = int(received)
        return self.received

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """After the callbacks that average weights, whose state the checkpoint holds."""
        if is_between_steps(trainer, batch_idx) and (number := self._agree(trainer)):
            trainer.save_checkpoint(self.path)
            self._stop(trainer, number, self.path)

    def on_train_epoch_start(self, trainer, module) -> None:
        """After the epoch before, whose checkpoint is written."""
        if number := self._agree(trainer):
            self._stop(trainer, number, self.path.with_name("last.ckpt"))

    def on_train_end(self, trainer, module) -> None:
        """After the last epoch's validation sets."""
        if number := self._agree(trainer):
            self._stop(trainer, number, self.path.with_name("last.ckpt"))

    def _stop(self, trainer, number: int, path: Path) -> None:
        if trainer.is_global_zero and path.is_file():
            print(f"{signal.Signals(number).name} at step {trainer.global_step}: {path} goes on from here", flush=True)
        raise Interrupted(number)

    def on_test_start(self, trainer, module) -> None:
        """Training is over: there is nothing to save, and nothing to wait for."""
        self.received = signal.SIGTERM
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_validation_start(self, trainer, module) -> None:
        """The same, where validation sets are heard by themselves."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, module)


class WeightAverage(WeightAveraging):
    """Exponential moving average of the weights, which validation sets, tests and checkpoints see.

    The decay rises with the steps n as (1 + n) / (10 + n) up to its value, so that the random initial
    weights are soon forgotten. A checkpoint keeps the trained weights beside their average, to resume from.
    """

    def __init__(self, decay: float):
        self.decay = decay
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averages, weights, count) -> None:
        if not averages[0].is_floating_point():  # counters
            torch._foreach_copy_(averages, weights)
            return
        decay = min(self.decay, (1 + count.item()) / (10 + count.item()))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        """Only a resumed training wants the weights that are not averaged; a test wants the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, module, checkpoint)
