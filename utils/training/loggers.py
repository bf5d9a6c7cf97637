"""Experiment loggers: Comet, online or offline, and the local ones; no failure of theirs ends a run."""

import csv
import io
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from utils.errors import UsageError
from utils.process import is_first_process
from utils.training.comet import Comet, start_comet
from utils.training.guards import dispensable

LOGGING = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")  # what Lightning calls


def build_logger(kind: str, *, output_dir: Path, project: str, name: str, resumed: bool = False) -> Logger | None:
    """Returns the logger `kind`, which writes under `output_dir` where it writes locally, or None for "none".

    Comet's experiment lives in the first process alone; `resumed` runs go on in the one of `output_dir`. See
    `utils/training/comet.py` for its environment variables, and for what it does offline.
    Raises UsageError where the logger's package cannot be used.
    """
    if kind == "none" or (kind == "comet" and not is_first_process()):
        return None if kind == "none" else DummyLogger()
    try:
        if kind == "comet":
            logger = start_comet(output_dir / "comet", project=project, name=name, resumed=resumed)
        else:
            cls = {"tensorboard": TensorBoardLogger, "csv": CSVLogger}[kind]
            logger = cls(save_dir=output_dir, name=kind)
    except (ImportError, TypeError, AttributeError) as error:  # a package that is missing, or does not fit another
        raise UsageError(f"--logger {kind} cannot be used here: {error}") from None
    for method in LOGGING:
        setattr(logger, method, dispensable("the logger")(getattr(logger, method)))
    return logger


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


def close_logger(logger: Logger | None) -> None:
    """Ends a Comet experiment, which Lightning leaves open, and says how to upload what was not sent."""
    if isinstance(logger, Comet):
        logger.close()
