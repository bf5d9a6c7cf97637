"""Experiment loggers: Comet, online or offline, and the local ones; one interface for text and figures."""

import os
from pathlib import Path

from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, TensorBoardLogger

LOGGERS = ("comet", "tensorboard", "csv", "none")


def build_logger(kind: str, *, output_dir: Path, project: str, name: str) -> Logger | None:
    """The logger `kind`, writing under `output_dir` where it writes locally; None for "none".

    Comet takes COMET_API_KEY, COMET_PROJECT_NAME and COMET_WORKSPACE from the environment. Without
    a key it writes one archive into `output_dir/comet`, to be uploaded later.
    """
    if kind == "comet":
        return _comet(output_dir / "comet", project, name)
    if kind == "tensorboard":
        return TensorBoardLogger(save_dir=output_dir, name="tensorboard")
    return CSVLogger(save_dir=output_dir, name="csv") if kind == "csv" else None


def _comet(folder: Path, project: str, name: str) -> CometLogger:
    if not os.environ.get("COMET_API_KEY"):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["COMET_START_ONLINE"] = "0"  # `online=False` would log nothing at all
        os.environ["COMET_OFFLINE_DIRECTORY"] = str(folder)
        print(f"Comet: no COMET_API_KEY, so this run is logged offline to {folder}")
    os.environ.setdefault("COMET_LOGGING_CONSOLE", "WARNING")
    project = os.environ.get("COMET_PROJECT_NAME") or project
    return CometLogger(project=project, workspace=os.environ.get("COMET_WORKSPACE") or None, name=name,
                       log_git_patch=False)


def log_figure(logger: Logger | None, name: str, figure, step: int) -> None:
    """A matplotlib figure to the loggers that take one."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_figure(name, figure, step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step)


def log_table(logger: Logger | None, name: str, headers: list[str], rows: list[list[str]], step: int) -> None:
    """A table of texts to the loggers that take one."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_table(f"{name}-{step}.csv", rows, headers=headers)
    elif isinstance(logger, TensorBoardLogger):
        lines = [" | ".join(headers), " | ".join("---" for _ in headers), *(" | ".join(row) for row in rows)]
        logger.experiment.add_text(name, "\n".join(lines), step)


def close_logger(logger: Logger | None) -> None:
    """Ends a Comet experiment, which Lightning leaves open, and says how to upload an offline one."""
    if not isinstance(logger, CometLogger) or logger._experiment is None:
        return
    experiment = logger.experiment
    experiment.end()
    if os.environ.get("COMET_START_ONLINE") == "0":
        folder = os.environ["COMET_OFFLINE_DIRECTORY"]
        for archive in sorted(Path(folder).glob(f"{experiment.get_key()}*.zip")):
            print(f"Comet: to upload this run: comet upload {archive}")
