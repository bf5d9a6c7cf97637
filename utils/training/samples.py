"""What the network makes of a few validation utterances, shown after every epoch."""

from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from utils.files.atomic import atomic_write
from utils.report.plots import diagnostic_figures, render
from utils.training.guards import dispensable
from utils.training.loggers import log_image, log_table
from utils.types import Batch

HEADERS = ["id", "reference", "hypothesis"]


class Samples(Callback):
    """Writes texts of a few validation utterances to `samples.txt`, and figures of the network's diagnostics.

    Both go to the logger as well. They are taken from the network as it is validated, and written after the epoch's
    checkpoints.
    """

    def __init__(self, folder: Path, count: int = 6):
        self.folder, self.count = folder, count
        self._rows, self._figures, self._place = [], {}, (0, 0)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        """Takes the middle batch of the first set: sorted by duration, its utterances are always the same."""
        middle = batch_idx == trainer.num_val_batches[0] // 2
        if dataloader_idx == 0 and middle and trainer.state.fn == "fit" and trainer.is_global_zero:
            batch = Batch(*(part[: self.count] for part in batch))
            self._rows = [list(row) for row in zip(batch.ids, batch.texts, outputs[: self.count], strict=True)]
            with torch.no_grad():
                self._figures = diagnostic_figures(module.network, batch)
            self._place = trainer.current_epoch, trainer.global_step

    def on_train_epoch_start(self, trainer, module) -> None:
        """Writes what the epoch before gave."""
        rows, figures, self._rows, self._figures = self._rows, self._figures, [], {}
        if rows:
            self._write(rows, figures, trainer.logger)

    on_train_end = on_train_epoch_start  # after the last epoch

    @dispensable("writing samples")
    def _write(self, rows: list[list[str]], figures: dict[str, Callable], logger: Logger | None) -> None:
        epoch, step = self._place
        log_table(logger, "samples", HEADERS, rows, step)
        lines = [f"{name}\n  reference   {reference}\n  hypothesis  {text}" for name, reference, text in rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "samples.txt", f"epoch {epoch}\n" + "\n".join(lines) + "\n")
        for kind, figure in figures.items():
            if (image := render(figure, dpi=80)) is not None:
                atomic_write(self.folder / f"{kind}.png", image)
                log_image(logger, kind, image, step)
