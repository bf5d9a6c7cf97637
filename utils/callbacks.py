"""What happens beside the training steps: throughput, samples, the run's history, skipped files."""

import io
import json
import time
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from utils.batch import Batch
from utils.files import write_whole
from utils.loggers import log_figure, log_table
from utils.plots import view_figures


class Throughput(Callback):
    """Logs seconds of audio trained on a second, and the share of padding, without asking the device.

    The batch is looked at before it leaves the CPU. Time between steps is counted, so that waiting
    for data shows; evaluation is not.
    """

    def on_train_epoch_start(self, trainer, module) -> None:
        """The clock starts anew."""
        self._started, self._audio, self._padded = time.perf_counter(), 0.0, 0.0

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Adds one batch, all processes taken to be alike."""
        audio, padded = module.batch_seconds
        self._audio += audio * trainer.world_size
        self._padded += padded * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            rate = self._audio / (time.perf_counter() - self._started)
            module.log("train/audio_seconds_per_second", rate)
            module.log("train/padding", 1 - self._audio / self._padded)
            module.log("x_realtime", round(rate), prog_bar=True, logger=False)


class History(Callback):
    """One JSON line an epoch in `history.jsonl`: every metric, the learning rate, the seconds so far."""

    def __init__(self, path: Path):
        self.path = path

    def on_fit_start(self, trainer, module) -> None:
        """The clock of this process; a resumed run's lines go on in the same file."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer, module) -> None:
        """Runs after validation, with all of the epoch's metrics there."""
        if not trainer.is_global_zero:
            return
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if "/" in name}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step,
               "seconds": round(time.perf_counter() - self._started, 1),
               "learning_rate": trainer.optimizers[0].param_groups[0]["lr"], **metrics}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if "dev/wer" in metrics and "train/loss_epoch" in metrics:
            print(f"epoch {row['epoch']:3d}  step {row['step']:6d}  {row['seconds']:7.0f} s  "
                  f"loss {metrics['train/loss_epoch']:.3f}  dev WER {100 * metrics['dev/wer']:.2f} %  "
                  f"CER {100 * metrics['dev/cer']:.2f} %", flush=True)


class Samples(Callback):
    """Shows a few fixed dev utterances each epoch: texts in a table, and the network's views of them as figures."""

    def __init__(self, folder: Path, count: int = 6):
        self.folder, self.count = folder, count

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        """The dev loader is sorted by duration, so its middle batch holds the same ordinary utterances always."""
        middle = batch_idx == trainer.num_val_batches[0] // 2
        if dataloader_idx == 0 and middle and not trainer.sanity_checking and trainer.is_global_zero:
            self._shown = batch, outputs

    def on_validation_epoch_end(self, trainer, module) -> None:
        """Writes `samples.txt`, one PNG a kind of view, and the same to the logger."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        batch, hypotheses = self._shown
        batch = Batch(*(part[: self.count] for part in batch))
        rows = [list(row) for row in zip(batch.ids, batch.texts, hypotheses, strict=False)]
        log_table(trainer.logger, "samples", ["id", "reference", "hypothesis"], rows, trainer.global_step)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}\n  reference   {reference}\n  hypothesis  {text}" for name, reference, text in rows]
        (self.folder / "samples.txt").write_text(f"epoch {trainer.current_epoch}\n" + "\n".join(lines) + "\n")
        with torch.no_grad():
            figures = view_figures(module.network, batch)
        for kind, figure in figures.items():
            figure.savefig(self.folder / f"{kind}.png", dpi=80)
            log_figure(trainer.logger, kind, figure, trainer.global_step)


class Checkpoints(ModelCheckpoint):
    """The best by dev WER, and `best.ckpt`, a link to the best of them."""

    def __init__(self, folder: Path, keep: int):
        super().__init__(dirpath=folder, filename="epoch{epoch:03d}-wer{dev/wer:.4f}", monitor="dev/wer",
                         mode="min", save_top_k=keep, auto_insert_metric_name=False)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Saves, then moves the link."""
        super().on_train_epoch_end(trainer, module)
        if trainer.is_global_zero and self.best_model_path:
            beside = Path(self.dirpath, ".best.ckpt")
            beside.unlink(missing_ok=True)
            beside.symlink_to(Path(self.best_model_path).name)
            beside.replace(Path(self.dirpath, "best.ckpt"))


class WholeFiles(TorchCheckpointIO):
    """Checkpoints are written beside and moved into place, in their own folder: moves between disks can break off."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        """Raises OSError where the disk is full; the file that was there stays."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getbuffer())


class PeriodicCheckpoint(ModelCheckpoint):
    """`NAME.ckpt`, written anew after every so many epochs, optimiser steps or minutes, whatever the dev WER."""

    def __init__(self, folder: Path, name: str, *, epochs: int | None = None, steps: int | None = None,
                 minutes: float | None = None):
        super().__init__(dirpath=folder, filename=name, save_top_k=1, every_n_epochs=epochs, every_n_train_steps=steps,
                         train_time_interval=timedelta(minutes=minutes) if minutes else None,
                         enable_version_counter=False)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Not after the last batch of an epoch: between it and the dev sets Lightning cannot go on exactly."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


class SaveOnTermination(Callback):
    """On SIGTERM, as a scheduler sends it before it takes the machine: a checkpoint after the batch under way.

    Lightning ends the run after that batch. With several processes the signal reaches them at different
    steps, at which they cannot save together: there the periodic checkpoints stand.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """After the callbacks that average weights, whose state the checkpoint holds."""
        if trainer.received_sigterm and trainer.world_size == 1 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
            print(f"terminated at step {trainer.global_step}: {self.path} goes on from here", flush=True)


class WeightAverage(WeightAveraging):
    """Exponential moving average of the weights, which dev sets, tests and checkpoints see.

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


class SkippedFiles(Callback):
    """Counts the files that --skip_bad_audio left out, and names each once."""

    def __init__(self):
        self.paths: dict[str, int] = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Training batches."""
        self._note(batch)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        """Dev batches."""
        self._note(batch)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        """Test batches."""
        self._note(batch)

    def _note(self, batch) -> None:
        for path in batch.skipped:
            if path not in self.paths:
                print(f"skipped, cannot be read: {path}", flush=True)
            self.paths[path] = self.paths.get(path, 0) + 1
