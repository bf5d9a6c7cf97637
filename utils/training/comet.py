"""Comet: one experiment per run, continued when the run goes on, online or offline.

Without a key, or where the server does not answer or refuses, a run is logged offline: Comet then writes an archive
that `comet upload` adds to the run's experiment. Where the server dies in the middle, Comet writes an archive of all
that the process logged. Neither ends a run, nor holds it up for more than the times in `SETTINGS`.
"""

import logging
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from lightning.pytorch.loggers import CometLogger

from utils.files.atomic import atomic_write

SETTINGS = {  # Comet's own wait for minutes when a run begins, and for hours when it ends
    "COMET_TIMEOUT_HTTP": "10",  # seconds for one answer
    "COMET_TIMEOUT_API": "10",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "2",  # further tries
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "1",
    "COMET_TIMEOUT_CLEANING": "30",  # seconds at the end for messages, and as many for batches
    "COMET_TIMEOUT_UPLOAD": "60",  # ... and for files
    "COMET_TIMEOUT_FILE_UPLOAD": "20",  # seconds for the answer to one file, of five tries
    "COMET_DISABLE_AUTO_LOGGING": "1",  # of what other packages do
    "COMET_LOGGING_CONSOLE": "CRITICAL",  # no tracebacks; what went wrong is said in one line
    "COMET_ERROR_TRACKING_ENABLE": "0",  # reports of its own errors to a third party
}


class Comet(CometLogger):
    """Lightning's logger for an experiment that `close` ends; its archives go to `folder`."""

    def __init__(self, folder: Path, *, online: bool, warnings: "Warnings", **options):
        os.environ["COMET_START_ONLINE"] = str(int(online))  # `online=False` would log nothing at all
        self.folder, self.online, self.warnings = folder, online, warnings
        super().__init__(mode="get_or_create", offline_directory=str(folder), log_git_patch=False, **options)
        self.experiment.set_offline_zip_uploader(self._keep)

    def finalize(self, status: str) -> None:
        """Does nothing: Lightning would wait for the server after fit and again after test; `close` waits once."""

    def close(self) -> None:
        """Ends the experiment; whatever becomes of the log, the run's results stand."""
        try:
            self.experiment.end()
        except Exception as error:
            print(f"Comet: the log could not be finished: {type(error).__name__}", flush=True)

    def _keep(self, archive: str) -> None:
        """Renames an archive, whose name Comet makes of the run's seed, and says how to upload it."""
        target = self.folder / f"{self.version}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}.zip"
        try:
            shutil.move(archive, target)
        except OSError:  # a full disk, for which Comet writes to the temporary folder
            target = archive
        if self.online:
            reason = (self.warnings.lines or ["the connection broke"])[0]
            print(f"Comet: not everything could be sent: {reason}; all of it, as an experiment of its own: "
                  f"comet upload --force-upload {target}", flush=True)
        else:
            print(f"Comet: to upload this run: comet upload {target}", flush=True)


class Warnings(logging.Handler):
    """The warnings and errors of `comet_ml`, one line each, without the API key."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the first sentence of a message, with the name of the exception that caused it."""
        text, key = record.getMessage(), os.environ.get("COMET_API_KEY")
        cause = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        self.lines.append(re.split(r"\. |\n", (text.replace(key, "***") if key else text).strip())[0].strip() + cause)


def start_comet(folder: Path, *, project: str, name: str, resumed: bool) -> Comet:
    """Returns the logger of a run, whose experiment's key lies in `folder`; a resumed run goes on with that key.

    Takes COMET_API_KEY, COMET_PROJECT_NAME and COMET_WORKSPACE from the environment.
    """
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    folder.mkdir(parents=True, exist_ok=True)
    key_file = folder / "experiment_key"
    key = key_file.read_text().strip() if resumed and key_file.exists() else ""
    resumed = re.fullmatch("[0-9A-Za-z]{32,50}", key) is not None
    options = {"project": os.environ.get("COMET_PROJECT_NAME") or project, "name": name, "log_code": not resumed,
               "workspace": os.environ.get("COMET_WORKSPACE") or None, "warnings": _collect_warnings(),
               "experiment_key": key if resumed else uuid.uuid4().hex}
    logger, reason = _start_online(folder, options)
    if logger is None:
        print(f"Comet: {reason}, so this run is logged offline to {folder}", flush=True)
        logger = Comet(folder, online=False, **options)
    atomic_write(key_file, logger.version + "\n")
    return logger


def _collect_warnings() -> Warnings:
    import comet_ml  # noqa: F401  sets the level of its logger

    warnings, logger = Warnings(), logging.getLogger("comet_ml")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, Warnings)] + [warnings]
    logger.setLevel(min(logger.level, logging.WARNING))
    return warnings


def _start_online(folder: Path, options: dict) -> tuple[Comet | None, str]:
    """Returns the logger, or None and the reason; gives `options` another key where the server has lost the first."""
    from comet_ml import ExistingExperiment
    from comet_ml.config import get_api_key, get_config

    if not get_api_key(None, get_config()):
        return None, "no COMET_API_KEY"
    resumed, warnings = not options["log_code"], options["warnings"]
    try:
        logger = Comet(folder, online=True, **options)
        reason = "" if logger.experiment.alive else (warnings.lines or ["no answer"])[-1]
    except Exception as error:
        reason = type(error).__name__
    if resumed and "ExperimentNotFound" in reason:
        print(f"Comet: the server no longer has experiment {options['experiment_key']}, so this run goes on in a new "
              "one", flush=True)
        options |= {"experiment_key": uuid.uuid4().hex, "log_code": True}
        warnings.lines.clear()
        return _start_online(folder, options)
    if reason:
        return None, f"no experiment can be begun online ({reason})"
    if resumed and not isinstance(logger.experiment, ExistingExperiment):
        print(f"Comet: the server did not know experiment {logger.version}, so it begins there anew", flush=True)
    if logger.experiment.url:
        print(f"Comet: {logger.experiment.url}", flush=True)
    return logger, ""
