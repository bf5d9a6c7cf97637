"""What happens beside the training steps: throughput, samples, the run's history, skipped files."""

import json
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from utils.files.atomic import atomic_write
from utils.report.plots import diagnostic_images
from utils.training.loggers import log_image, log_table
from utils.types import Batch


class Throughput(Callback):
    """Logs seconds of audio trained on a second, the share of padding, and the share of time that data was waited for.

    The device is not asked: the batch is looked at before it leaves the CPU. Time between steps is
    counted; evaluation is not.
    """

    def on_train_epoch_start(self, trainer, module) -> None:
        """The clock starts anew."""
        self._started, self._audio, self._padded = time.perf_counter(), 0.0, 0.0
        self._waited = trainer.datamodule.seconds_waited

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Adds one batch, all processes taken to be alike."""
        audio, padded = module.batch_seconds
        self._audio += audio * trainer.world_size
        self._padded += padded * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            seconds = time.perf_counter() - self._started
            rate = self._audio / seconds
            module.log("train/audio_seconds_per_second", rate)
            module.log("train/data_wait", (trainer.datamodule.seconds_waited - self._waited) / seconds)
            module.log("train/padding", 1 - self._audio / self._padded)
            module.log("x_realtime", round(rate), prog_bar=True, logger=False)


class History(Callback):
    """One JSON line an epoch in `history.jsonl`: every metric, the learning rate, the seconds of training so far."""

    def __init__(self, path: Path):
        self.path = path
        self._started = time.perf_counter()

    def on_train_start(self, trainer, module) -> None:
        """A resumed run goes on in the same file, without the epochs that it repeats."""
        if trainer.is_global_zero and self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _is_before(line, trainer.current_epoch)]
            atomic_write(self.path, "".join(f"{line}\n" for line in kept))

    def state_dict(self) -> dict:
        """For the clock of the run that goes on."""
        return {"seconds": time.perf_counter() - self._started}

    def load_state_dict(self, state: dict) -> None:
        """The clock goes on."""
        self._started = time.perf_counter() - state["seconds"]

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
        if "val/wer" in metrics and "train/loss_epoch" in metrics:
            print(f"epoch {row['epoch']:3d}  step {row['step']:6d}  {row['seconds']:7.0f} s  "
                  f"loss {metrics['train/loss_epoch']:.3f}  val WER {100 * metrics['val/wer']:.2f} %  "
                  f"CER {100 * metrics['val/cer']:.2f} %", flush=True)


def _is_before(line: str, epoch: int) -> bool:
    """Whether a line of the history is whole and of an earlier epoch."""
    try:
        return json.loads(line)["epoch"] < epoch
    except ValueError:  # cut off by a kill
        return False


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
        atomic_write(self.folder / "samples.txt", f"epoch {trainer.current_epoch}\n" + "\n".join(lines) + "\n")
        with torch.no_grad():
            images = diagnostic_images(module.network, batch, dpi=80)
        for kind, image in images.items():
            atomic_write(self.folder / f"{kind}.png", image)
            log_image(trainer.logger, kind, image, trainer.global_step)


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
