"""What a run records and prints: progress, throughput, metrics, skipped files; and when it has learnt enough."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from utils.files.atomic import atomic_write

LINE_SECONDS = 60  # at least this long from one line of progress to the next


class Throughput(Callback):
    """Logs seconds of audio per second of training, and the shares of padding and of time spent waiting for data.

    The device is not asked: the batch is measured before it leaves the CPU. Time between steps is counted, evaluation
    is not.
    """

    def on_train_epoch_start(self, trainer, module) -> None:
        """Starts the clock anew."""
        self._started, self._audio, self._padded = time.perf_counter(), 0.0, 0.0
        self._waited = trainer.datamodule.seconds_waited

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Adds one batch, as if those of all processes were alike."""
        audio, padded = module.batch_seconds
        self._audio += audio * trainer.world_size
        self._padded += padded * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            seconds, rate = time.perf_counter() - self._started, self.rate
            module.log("train/audio_seconds_per_second", rate)
            module.log("train/data_wait", (trainer.datamodule.seconds_waited - self._waited) / seconds)
            module.log("train/padding", 1 - self._audio / self._padded)
            module.log("x_realtime", round(rate), prog_bar=True, logger=False)

    @property
    def rate(self) -> float:
        """Returns the seconds of audio per second of this epoch's training so far."""
        return self._audio / (time.perf_counter() - self._started)


class ProgressLines(Callback):
    """Prints where the run stands, a minute into each epoch and every minute from then on; for files and pipes.

    The time left is what training and validation have taken per step since the run began or went on.
    """

    def __init__(self, throughput: Throughput):
        self.throughput, self._printed = throughput, time.perf_counter()

    def on_train_start(self, trainer, module) -> None:
        """Starts the clock of the whole run, and that of an epoch that is resumed."""
        self._begun = self._printed = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_epoch_start(self, trainer, module) -> None:
        """Starts the minute anew: the line of the epoch before has just been printed."""
        self._printed = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Prints a line of training. The loss is the last batch's, for which a GPU is asked now and not before."""
        if not self._is_due(trainer):
            return
        step, left = trainer.global_step, self._steps_left(trainer, batch_idx)
        line = (f"step {step:6d} of {step + left}  epoch {trainer.current_epoch}  "
                f"loss {trainer.progress_bar_metrics['loss']:.3f}  {self.throughput.rate:.1f} x real time")
        if done := step - self._first_step:
            line += f"  {format_duration((self._printed - self._begun) / done * left)} left"
        print(line, flush=True)

    @staticmethod
    def _steps_left(trainer, batch_idx: int) -> int:
        """Returns the steps to come; epochs that are over may have had other numbers of them."""
        epochs, accumulated = trainer.max_epochs - 1 - trainer.current_epoch, trainer.accumulate_grad_batches
        batches = trainer.num_training_batches
        return math.ceil((batches - batch_idx - 1) / accumulated) + epochs * math.ceil(batches / accumulated)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        """Prints a line of evaluation."""
        if self._is_due(trainer):
            counts = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
            split, count = module.split_names()[dataloader_idx], counts[dataloader_idx]
            print(f"{split}: batch {batch_idx + 1} of {count}", flush=True)

    on_test_batch_end = on_validation_batch_end

    def _is_due(self, trainer) -> bool:
        """Returns whether a minute is over in the first process, and starts the next one."""
        now = time.perf_counter()
        if not trainer.is_global_zero or now - self._printed < LINE_SECONDS:
            return False
        self._printed = now
        return True


def format_duration(seconds: float) -> str:
    """Returns a duration in hours and minutes; below a minute, in seconds."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


class History(Callback):
    """Appends one JSON line per epoch to `history.jsonl`: metrics, learning rate, seconds of training so far."""

    def __init__(self, path: Path):
        self.path = path
        self._started = time.perf_counter()

    def on_train_start(self, trainer, module) -> None:
        """Goes on in the same file after a resumption, without the epochs that are repeated."""
        if trainer.is_global_zero and self.path.is_file():
            kept = [row for row in self.rows() if row["epoch"] < trainer.current_epoch]
            atomic_write(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def rows(self) -> list[dict]:
        """Returns the rows so far, without one that a kill cut off."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.is_file() else []:
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def state_dict(self) -> dict:
        """Returns the clock for the run that goes on."""
        return {"seconds": time.perf_counter() - self._started}

    def load_state_dict(self, state: dict) -> None:
        """Lets the clock go on."""
        self._started = time.perf_counter() - state["seconds"]

    def on_train_epoch_end(self, trainer, module) -> None:
        """Writes and prints the epoch's metrics, which are complete after validation."""
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


class EarlyStop(Callback):
    """Ends training once the val WER has not become lower for `patience` epochs.

    It reads the history, which stays with the run's folder: what a checkpoint holds of another folder's run, of other
    validation sets or of another patience plays no part.
    """

    def __init__(self, history: History, patience: int):
        self.history, self.patience = history, patience
        self.ended_with = 0  # the patience that ended the run

    def state_dict(self) -> dict:
        """Returns whether the run has ended so."""
        return {"ended_with": self.ended_with}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes over whether the run had ended so."""
        self.ended_with = state_dict["ended_with"]

    def on_train_start(self, trainer, module) -> None:
        """Lets a run that had ended so train on with another patience only."""
        if self.ended_with == self.patience:
            self.on_train_epoch_end(trainer, module)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Tells all processes to stop, or none."""
        decision = trainer.is_global_zero and self._is_over(trainer)
        if trainer.strategy.reduce_boolean_decision(decision, all=False):
            trainer.should_stop, self.ended_with = True, self.patience

    def _is_over(self, trainer) -> bool:
        measured = {f"{name}/wer" for name in [*trainer.datamodule.val_sets, "val"]}
        rows = self.history.rows()
        rates = [row["val/wer"] for row in rows if {name for name in row if name.endswith("/wer")} == measured]
        over = bool(rates) and len(rates) - 1 - rates.index(min(rates)) >= self.patience
        if over:
            print(f"no lower val WER for {self.patience} epochs: training ends", flush=True)
        return over


class SkippedFiles(Callback):
    """Names each file that --skip_bad_audio left out, once."""

    def __init__(self):
        self.paths: set[str] = set()

    def on_train_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        """Names those of a batch."""
        for path in batch.skipped:
            if path not in self.paths:
                print(f"skipped, cannot be read: {path}", flush=True)
                self.paths.add(path)

    on_validation_batch_start = on_test_batch_start = on_train_batch_start
