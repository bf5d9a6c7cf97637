"""What happens beside the training steps: throughput, samples, the run's history, skipped files."""

import json
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from utils.audio import SAMPLE_RATE
from utils.loggers import log_figure, log_table
from utils.plots import posterior_figure


class Throughput(Callback):
    """Logs seconds of audio trained on a second, and the share of padding, without asking the device.

    The batch is looked at before it leaves the CPU. Time between steps is counted, so that waiting
    for data shows; evaluation is not.
    """

    def on_train_epoch_start(self, trainer, module) -> None:
        """The clock starts anew."""
        self._started, self._audio, self._padded = time.perf_counter(), 0.0, 0.0

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
    """Shows a few fixed dev utterances each epoch: texts in a table, the first one's posteriors as a figure."""

    def __init__(self, folder: Path, count: int = 8):
        self.folder, self.count = folder, count

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        """The dev loader is in a fixed order, so its last short batches are the same utterances always."""
        if dataloader_idx == 0 and not trainer.sanity_checking and trainer.is_global_zero:
            self._last = batch, outputs

    def on_validation_epoch_end(self, trainer, module) -> None:
        """Writes `samples.txt`, `posteriors.png`, and the same to the logger."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        batch, hypotheses = self._last
        rows = [list(row) for row in zip(batch.ids, batch.texts, hypotheses, strict=True)][: self.count]
        log_table(trainer.logger, "samples", ["id", "reference", "hypothesis"], rows, trainer.global_step)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}\n  reference   {reference}\n  hypothesis  {text}" for name, reference, text in rows]
        (self.folder / "samples.txt").write_text(f"epoch {trainer.current_epoch}\n" + "\n".join(lines) + "\n")
        figure = self._figure(module.network, batch)
        figure.savefig(self.folder / "posteriors.png", dpi=80)
        log_figure(trainer.logger, "posteriors", figure, trainer.global_step)

    def _figure(self, network, batch):
        count = int(batch.sample_counts[0])
        waveform, counts = batch.waveforms[:1, :count], batch.sample_counts[:1]
        with torch.no_grad():
            features, _ = network.features(waveform, counts)
            log_probs, _ = network(waveform, counts)
        title = f"{batch.ids[0]}: {batch.texts[0]} ({count / SAMPLE_RATE:.1f} s)"
        return posterior_figure(features[0].cpu(), log_probs[0].cpu(), network.tokenizer.alphabet, title)


class Checkpoints(ModelCheckpoint):
    """The best by dev WER, the last one, and `best.ckpt`, a link to the best of them."""

    def __init__(self, folder: Path, keep: int):
        super().__init__(dirpath=folder, filename="epoch{epoch:03d}-wer{dev/wer:.4f}", monitor="dev/wer",
                         mode="min", save_top_k=keep, save_last=True, auto_insert_metric_name=False)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Saves, then moves the link."""
        super().on_train_epoch_end(trainer, module)
        if trainer.is_global_zero and self.best_model_path:
            beside = Path(self.dirpath, ".best.ckpt")
            beside.unlink(missing_ok=True)
            beside.symlink_to(Path(self.best_model_path).name)
            beside.replace(Path(self.dirpath, "best.ckpt"))


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
