"""Comet: one experiment a run, continued when the run goes on, and kept on the disk where the server fails.

Comet's temporary files lie in `FOLDER/unsent`, so that a killed process leaves them there; at the next start they
become an archive in FOLDER, as at the end of a run that could not send everything. Every archive carries the key of the
run's experiment: `comet upload` makes the experiment or appends to it, in any order.
"""

import logging
import os
import re
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import CometLogger

from utils.files.atomic import atomic_write
from utils.training.comet_archive import keep_archive, keep_leftovers, open_records, unsent_messages

SETTINGS = {  # Comet's own wait for minutes when a run begins, and for hours when it ends
    "COMET_TIMEOUT_HTTP": "10",  # seconds for one answer
    "COMET_TIMEOUT_API": "10",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "2",  # further tries
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "1",
    "COMET_TIMEOUT_CLEANING": "30",  # seconds at the end for messages, and as many for batches
    "COMET_TIMEOUT_UPLOAD": "60",  # ... and for files
    "COMET_TIMEOUT_FILE_UPLOAD": "20",  # seconds for the answer to one file, of five tries
    "COMET_FALLBACK_STREAMER_KEEP_OFFLINE_ZIP": "1",  # reduced to what was not sent
    "COMET_DISABLE_AUTO_LOGGING": "1",  # of what other packages do
    "COMET_LOGGING_CONSOLE": "CRITICAL",  # no tracebacks; what went wrong is said in one line at the end
    "COMET_ERROR_TRACKING_ENABLE": "0",  # reports of its own errors to a third party
}
TRIES = 2  # to reach the server


class Comet(CometLogger):
    """Lightning's logger, for an experiment that `close` ends. `complaints` takes what Comet warns of."""

    def __init__(self, folder: Path, *, online: bool, complaints: "Complaints", **options):
        self.folder, self.online, self.complaints = folder, online, complaints
        os.environ["COMET_START_ONLINE"] = str(int(online))  # `online=False` would log nothing at all
        unsent = folder / "unsent"
        with _temporary_files_in(unsent):
            super().__init__(mode="get_or_create", offline_directory=str(unsent), log_git_patch=False, **options)

    def finalize(self, status: str) -> None:
        """Nothing: Lightning would wait here until all is sent, after fit and after test; `close` waits once."""

    def close(self) -> None:
        """Ends the experiment; what the server has not confirmed is then in an archive, and a line says in which."""
        records = open_records(self.folder / "unsent")
        try:
            self.experiment.end()
        except Exception as error:  # whatever becomes of the log, the run's results stand
            self.complaints.add(f"{type(error).__name__}: {error}")
        unsent = unsent_messages(records) if self.online else None
        kept = [keep_archive(archive, self.folder, unsent) for archive in (self.folder / "unsent").glob("*.zip")]
        kept += keep_leftovers(self.folder, self.version, self.name, self.experiment.workspace)
        if self.online and any(kept):
            print(f"Comet: not everything could be sent: {(self.complaints.lines or ['the connection broke'])[0]}")
        for archive in filter(None, kept):
            print(f"Comet: to upload this run: comet upload {archive}", flush=True)


class Complaints(logging.Handler):
    """The warnings and errors of `comet_ml`, a line each, without the API key."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        cause = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        self.add(record.getMessage(), cause)

    def add(self, text: str, cause: str = "") -> None:
        """Keeps the first sentence of a message, with the name of the exception that caused it."""
        key = os.environ.get("COMET_API_KEY")
        self.lines.append(re.split(r"\. |\n", (text.replace(key, "***") if key else text).strip())[0].strip() + cause)


def start_comet(folder: Path, *, project: str, name: str, resumed: bool) -> Comet:
    """The logger of a run, whose experiment's key lies in `folder`; a resumed run goes on with the key that is there.

    Takes COMET_API_KEY, COMET_PROJECT_NAME and COMET_WORKSPACE from the environment. Without a key, or where the
    server does not answer or refuses, the run is logged offline, into an archive in `folder`.
    """
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    complaints = _listen()
    folder.mkdir(parents=True, exist_ok=True)
    options = {"project": os.environ.get("COMET_PROJECT_NAME") or project, "name": name, "complaints": complaints,
               "workspace": os.environ.get("COMET_WORKSPACE") or None}
    key_file = folder / "experiment_key"
    kept = key_file.read_text().strip() if key_file.exists() else ""
    for archive in keep_leftovers(folder, kept or uuid.uuid4().hex, options["project"], options["workspace"]):
        print(f"Comet: a process that was killed had not sent all: comet upload {archive}")
    goes_on = bool(resumed and re.fullmatch("[0-9A-Za-z]{32,50}", kept))
    options |= {"experiment_key": kept if goes_on else uuid.uuid4().hex, "log_code": not goes_on}
    atomic_write(key_file, options["experiment_key"] + "\n")
    logger, why = _start_online(folder, options)
    if logger is None:
        print(f"Comet: {why}, so this run is logged offline to {folder}", flush=True)
        shutil.rmtree(folder / "unsent", ignore_errors=True)  # of the attempt
        logger = Comet(folder, online=False, **options)
    atomic_write(key_file, logger.version + "\n")  # another one where the server has lost the first
    return logger


def _listen() -> Complaints:
    import comet_ml  # noqa: F401  sets the level of its logger

    complaints, logger = Complaints(), logging.getLogger("comet_ml")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, Complaints)] + [complaints]
    logger.setLevel(min(logger.level, logging.WARNING))
    return complaints


def _start_online(folder: Path, options: dict) -> tuple[Comet | None, str]:
    """The logger, or why there is none."""
    from comet_ml import ExistingExperiment

    if why := _unreachable():
        return None, why
    key, goes_on, complaints = options["experiment_key"], not options["log_code"], options["complaints"]
    try:
        logger = Comet(folder, online=True, **options)
        why = "" if logger.experiment.alive else complaints.lines[-1]
    except Exception as error:
        why = type(error).__name__
    if goes_on and "ExperimentNotFound" in why:
        print(f"Comet: the server no longer has experiment {key}, so this run goes on in a new one", flush=True)
        options |= {"experiment_key": uuid.uuid4().hex, "log_code": True}
        complaints.lines.clear()
        return _start_online(folder, options)
    if why:
        return None, f"the server refuses: {why}"
    if goes_on and not isinstance(logger.experiment, ExistingExperiment):
        print(f"Comet: the server did not know experiment {key}, so it begins there anew", flush=True)
    if logger.experiment.url:
        print(f"Comet: {logger.experiment.url}", flush=True)
    return logger, ""


def _unreachable() -> str | None:
    """Why there is no server to log to, asked of it before Comet tries again and again; None where it answers."""
    from comet_ml.config import get_api_key, get_config
    from comet_ml.connection.connection_factory import get_rest_server_connection

    key = get_api_key(None, get_config())
    if not key:
        return "no COMET_API_KEY"
    server = get_rest_server_connection(key, None)
    for _ in range(TRIES):
        try:
            return server.ping_backend()
        except Exception as error:
            why = f"{server.server_hostname()} does not answer ({type(error).__name__})"
    return why


@contextmanager
def _temporary_files_in(folder: Path):
    """Comet makes its folders by `tempfile`, without a setting for where."""
    folder.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
