"""The network's output for a few validation utterances, written and logged after every epoch."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CometLogger, Logger, TensorBoardLogger
from PIL import Image

from utils.errors import dispensable
from utils.files.atomic import atomic_write
from utils.report.plots import diagnostic_figures, render
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


@dispensable("the logger")
def log_image(logger: Logger | None, name: str, image: bytes, step: int) -> None:
    """Logs a PNG image to the loggers that take one."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_image(io.BytesIO(image), name, step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(Image.open(io.BytesIO(image))), step, dataformats="HWC")


@dispensable("the logger")
def log_table(logger: Logger | None, name: str, headers: list[str], rows: list[list[str]], step: int) -> None:
    """Logs a table of texts to the loggers that take one."""
    if isinstance(logger, CometLogger):  # `log_table` would leave it out of the archive of a connection that broke
        text = io.StringIO()
        csv.writer(text).writerows([headers, *rows])
        logger.experiment.log_asset_data(text.getvalue(), f"{name}-{step}.csv", step=step)
    elif isinstance(logger, TensorBoardLogger):
        lines = [" | ".join(headers), " | ".join("---" for _ in headers), *(" | ".join(row) for row in rows)]
        logger.experiment.add_text(name, "\n".join(lines), step)
