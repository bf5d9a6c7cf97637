"""What a run can do without: its failures are reported once and do not end training."""

import functools
import sys
from collections.abc import Callable

from utils.errors import printable


def dispensable(what: str) -> Callable[[Callable], Callable]:
    """Returns a decorator for functions without which a run goes on; `what` is the name of what then is missing."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _warn_once(what, printable(f"{type(error).__name__}: {error}", 200))

        return guarded

    return decorate


@functools.cache
def _warn_once(what: str, reason: str) -> None:
    print(f"note: {what} failed, training goes on without ({reason})", file=sys.stderr, flush=True)
