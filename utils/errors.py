"""The errors that a user can mend, and how a program ends on them: one line on the terminal and an exit status."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import NoReturn

STANDARD_OUTPUT, STANDARD_ERROR = "standard output", "standard error"


class UserError(ValueError):
    """The base of all errors that a user can mend; the message is one line that names the file or flag."""


class UsageError(UserError):
    """A wrong flag or configuration."""


@contextmanager
def one_line_errors(program: str, *, less_memory: str = "", output_matters: bool = True) -> Iterator[None]:
    """Runs the body of a `main()`, which then ends with one line on standard error in place of a traceback.

    The exit status is 2 for a UserError, an OSError, a missing package, full memory or a process that died, 130 after
    Ctrl-C, and 141 where nobody reads standard output any more, in silence, as for a program that SIGPIPE kills. Any
    other exception is a fault of the program and keeps its traceback.

    Args:
        program: the name that the line begins with.
        less_memory: what helps where memory is full, such as a flag.
        output_matters: whether the program is run for its standard output; else it goes on where that fails.
    """
    _prepare_output(output_matters)
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    if on_ctrl_c is signal.SIG_DFL:  # as programs have it while they import packages
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (UserError, ImportError) as error:
        _fail(program, error)
    except OSError as error:
        if error.filename == STANDARD_OUTPUT:
            _discard(sys.stdout)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(141) from None
        _fail(program, _describe(error))
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "BrokenProcessPool" or "DataLoader worker" in str(error):
            _fail(program, "one of its processes was killed, most often because memory was full; a smaller "
                           "--num_workers needs less")
        if not is_out_of_memory(error):
            raise
        _fail(program, f"memory is full; {less_memory}" if less_memory else "memory is full")
    finally:
        if on_ctrl_c is signal.SIG_DFL:
            signal.signal(signal.SIGINT, on_ctrl_c)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether Python's or the device's memory was full, or the CPU's when torch asked for it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def printable(text, longest: int | None = None) -> str:
    """Returns `text` in one line for any terminal: line ends, control characters and surrogates as escapes.

    Args:
        longest: characters after which the rest becomes "...".
    """
    text = str(text)
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}..."
    return text if text.isprintable() else "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class _StandardStream(io.TextIOWrapper):
    """A standard stream whose errors name it, and whose texts may hold what its encoding lacks, as escapes.

    One that does not matter drops what cannot be written, from the first error on.
    """

    def __init__(self, stream: io.TextIOWrapper, name: str, matters: bool):
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering,
                         write_through=stream.write_through)
        self.wrapped = stream  # which would close the buffer that both share when nothing refers to it any more
        self.title, self.matters = name, matters

    def write(self, text: str) -> int:
        with self._named_errors():
            return super().write(text)

    def flush(self) -> None:
        with self._named_errors():
            super().flush()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.title
            if self.matters:
                raise
            _discard(self)
            if self.title == STANDARD_OUTPUT:
                print(f"note: {_describe(error)}: what would come there is left out", file=sys.stderr)


def _prepare_output(output_matters: bool) -> None:
    """Gives standard streams their names in errors, and closed ones a place to discard what they are given."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file would take the number of one, and its text
        pass
    os.close(descriptor)
    for name, title, matters in (("stdout", STANDARD_OUTPUT, output_matters), ("stderr", STANDARD_ERROR, False)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
        elif type(stream) is io.TextIOWrapper:
            stream.flush()
            setattr(sys, name, _StandardStream(stream, title, matters))


def _discard(stream: io.TextIOWrapper) -> None:
    """Sends what still waits in the buffer nowhere, so that Python's own flush at its end does not fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _describe(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([*([" -> ".join(names)] if names else []), error.strerror or str(error)])


def _fail(program: str, error) -> NoReturn:
    print(f"{program}: error: {printable(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None


def dispensable(what: str) -> Callable[[Callable], Callable]:
    """Returns a decorator for functions without which a run goes on; `what` is the name of what then is missing."""

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _report_once(what, printable(f"{type(error).__name__}: {error}", 200))

        return guarded

    return decorate


@cache
def _report_once(what: str, reason: str) -> None:
    print(f"note: {what} failed, training goes on without ({reason})", file=sys.stderr, flush=True)
