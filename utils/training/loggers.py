"""Experiment loggers: Comet, online or offline, and the local ones; no failure of theirs ends a run."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from utils.errors import UsageError, dispensable
from utils.process import is_first_process
from utils.training.comet import Comet, start_comet

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
            logger.experiment  # noqa: B018 (makes its files)
    except (ImportError, TypeError, AttributeError, ValueError) as error:  # a package is missing, or does not fit
        raise UsageError(f"--logger {kind} cannot be used here: {error}") from None
    for method in LOGGING:
        setattr(logger, method, dispensable("the logger")(getattr(logger, method)))
    return logger


def close_logger(logger: Logger | None) -> None:
    """Ends a Comet experiment, which Lightning leaves open, and says how to upload what was not sent."""
    if isinstance(logger, Comet):
        logger.close()
