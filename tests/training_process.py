"""`python train.py` in a process of its own that need not import PyTorch and Lightning first."""

import atexit
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train", "utils.training.trainer"])


class TrainingProcess:
    """Gives of `python train.py ...` what `subprocess.Popen` gives: process, session, environment and output.

    It is forked from a process that has imported the packages and done nothing else, which saves the six seconds of
    importing. What packages read of the environment while they are imported is what it held at the first start.
    """

    def __init__(self, *argv: str, **environment: str):
        (out, theirs), (errors, theirs_too) = _context.Pipe(duplex=False), _context.Pipe(duplex=False)
        self._process = _context.Process(target=_train, args=(argv, os.environ | environment, theirs, theirs_too))
        self._process.start()
        theirs.close()
        theirs_too.close()
        self.pid = self._process.pid
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (out, errors))

    @property
    def returncode(self) -> int | None:
        """The exit status, a signal's number below zero, or None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for the end; returns what is left of the standard output and error. Kills it after so many seconds."""
        timer = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        with self.stdout, self.stderr, ThreadPoolExecutor() as pool:
            rest = tuple(pool.map(lambda pipe: pipe.read(), (self.stdout, self.stderr)))
        self._process.join()
        timer.cancel()
        return rest


def _train(argv: tuple[str, ...], environment: dict[str, str], out: Connection, errors: Connection) -> None:
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for pipe, stream in ((out, sys.stdout), (errors, sys.stderr)):
        os.dup2(pipe.fileno(), stream.fileno())
        pipe.close()
    # Python's own streams take the descriptors for the files that they were.
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="backslashreplace", line_buffering=True)
    sys.argv = ["train.py", *argv]
    try:
        runpy.run_path("train.py", run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
