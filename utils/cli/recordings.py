"""Recordings as a command line names them: files, folders, patterns, pipes and standard input."""

import glob
import os
import select
import shutil
import stat
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.audio import EXTENSIONS, AudioError
from utils.errors import UsageError
from utils.files.folders import describe_kinds, leads_nowhere, walk

STDIN = "-"
STDIN_PATHS = ("/dev/stdin", "/dev/fd/0")  # which cannot be opened where it is a socket
PATIENCE = 60  # seconds that a pipe may send nothing
OTHER_SOUND = (".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".m4a", ".m4b", ".mka", ".mp4", ".oga", ".spx",
               ".w64", ".webm", ".wma")  # in folders these are tried as well: what cannot be read is then named
LISTS = (".csv", ".json", ".jsonl", ".lst", ".manifest", ".scp", ".tsv", ".txt")


def find_recordings(arguments: Iterable[str]) -> tuple[list[str], list[AudioError]]:
    """Returns files as they are given, those that patterns match, and the sound files in folders, each once.

    A path that does not exist is among them: reading it says so, and the others go on. Next to them it returns what
    holds no sound. Raises UsageError where nothing else is left.
    """
    paths, refused = [], []
    for argument in arguments:
        if os.path.isdir(argument):
            paths += _find_in_folder(argument, refused)
        elif argument.lower().endswith(LISTS) and os.path.isfile(argument):
            refused.append(AudioError(argument, f"a list or a table; give sound files, a folder or '*{EXTENSIONS[0]}'"))
        else:
            matches = [] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
            paths += [path for path in matches if not os.path.isdir(path)] or [argument]
    first = {}
    for path in paths:
        first.setdefault(STDIN if path == STDIN else os.path.abspath(path), path)
    if refused and not first:
        raise UsageError(f"--audio {'; '.join(map(str, refused))}")
    return list(first.values()), refused


def _find_in_folder(folder: str, refused: list[AudioError]) -> list[str]:
    found, others = [], []
    try:
        for parent, names in walk(folder):
            for name in names:
                path = str(parent / name)
                if _is_pipe(path):  # nobody asked for it by name, and it may never send anything
                    refused.append(AudioError(path, "not a file"))
                elif leads_nowhere(path):
                    refused.append(AudioError(path, "a link to something that is not there"))
                elif not os.path.isdir(path):
                    sound = name.lower().endswith((*EXTENSIONS, *OTHER_SOUND))
                    (found if sound else others).append(path)
    except OSError as error:
        refused.append(AudioError(error.filename, f"cannot be listed ({error.strerror})"))
    if not found:
        kinds = describe_kinds(others)
        refused.append(AudioError(folder, f"no {', '.join(EXTENSIONS)} in this folder, which holds {kinds}"))
    return sorted(found)


def output_stems(paths: list[str]) -> dict[str, Path]:
    """Returns the name of each recording's output, without its extension.

    It is the recording's own; where several have the same, the folders by which they differ come before it, or else
    its extension comes after it. Raises UsageError where that does not tell them apart.
    """
    groups = defaultdict(list)
    for path in paths:
        groups["stdin" if path == STDIN else Path(path).stem].append(path)
    stems = {}
    for stem, group in groups.items():
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in group])
        relative = {path: Path(os.path.abspath(path)).relative_to(folder) for path in group}
        counts = Counter(path.with_suffix("") for path in relative.values())
        for path, place in relative.items():
            alone = len(group) == 1
            stems[path] = Path(stem) if alone else place if counts[place.with_suffix("")] > 1 else place.with_suffix("")
    shared = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if shared:
        raise UsageError(f"--output_dir: several recordings would be written to {shared[0]}.*; transcribe them apart")
    return stems


@contextmanager
def readable_paths(paths: list[str], on_error: Callable[[AudioError], None]) -> Iterator[dict[str, str]]:
    """Yields a path to read for each recording, with its name; what pipes send is in temporary files meanwhile.

    Calls `on_error` with the error of each pipe that sends nothing.
    """
    with ExitStack() as stack:
        names = {}
        for path in paths:
            is_pipe = path == STDIN or _is_pipe(path)
            try:
                names[stack.enter_context(_spooled(path)) if is_pipe else path] = path
            except AudioError as error:
                on_error(error)
        yield names


def _is_pipe(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextmanager
def _spooled(path: str) -> Iterator[str]:
    """Copies what a pipe sends to a temporary file, and yields its name.

    Raises AudioError where nothing comes, UsageError where standard input is closed, and OSError.
    """
    is_stdin = path in (STDIN, *STDIN_PATHS)
    if is_stdin and sys.stdin is None:
        raise UsageError(f"--audio {STDIN}: standard input is closed")
    with ExitStack() as stack:
        source = sys.stdin.buffer if is_stdin else stack.enter_context(_open_pipe(path))
        file = stack.enter_context(tempfile.NamedTemporaryFile())
        try:
            shutil.copyfileobj(source, file)
            file.flush()
        except OSError as error:
            error.filename = error.filename or file.name
            raise
        yield file.name


def _open_pipe(path: str) -> BinaryIO:
    """Opens a pipe from which something comes. Raises AudioError where nothing does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for somebody to write to it
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror})") from None
    if not select.select([descriptor], [], [], PATIENCE)[0]:
        os.close(descriptor)
        raise AudioError(path, f"nothing has come from this pipe for {PATIENCE} seconds")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")
