"""Experiment loggers: Comet, online or offline, and the local ones; one interface for text and figures."""

import io
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from utils.process import is_first_process
from utils.training.comet import Comet, start_comet


def build_logger(kind: str, *, output_dir: Path, project: str, name: str, resumed: bool = False) -> Logger | None:
    """The logger `kind`, writing under `output_dir` where it writes locally; None for "none".

    Comet's experiment lives in the first process alone; `resumed` runs go on in the one of `output_dir`. See
    `utils/training/comet.py` for its environment variables, and for what it does offline.
    """
    if kind == "comet":
        folder = output_dir / "comet"
        return start_comet(folder, project=project, name=name, resumed=resumed) if is_first_process() else DummyLogger()
    if kind == "tensorboard":
        return TensorBoardLogger(save_dir=output_dir, name="tensorboard")
    return CSVLogger(save_dir=output_dir, name="csv") if kind == "csv" else None


def log_image(logger: Logger | None, name: str, image: bytes, step: int) -> None:
    """Logs a PNG image to the loggers that take one."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_image(io.BytesIO(image), name, step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(Image.open(io.BytesIO(image))), step, dataformats="HWC")


def log_table(logger: Logger | None, name: str, headers: list[str], rows: list[list[str]], step: int) -> None:
    """A table of texts to the loggers that take one."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_table(f"{name}-{step}.csv", rows, headers=headers)
    elif isinstance(logger, TensorBoardLogger):
        lines = [" | ".join(headers), " | ".join("---" for _ in headers), *(" | ".join(row) for row in rows)]
        logger.experiment.add_text(name, "\n".join(lines), step)


def close_logger(logger: Logger | None) -> None:
    """Ends a Comet experiment, which Lightning leaves open, and says how to upload what was not sent."""
    if isinstance(logger, Comet):
        logger.close()
