"""Command lines whose flags come from constructors, and whose errors are one line.

An argument of a network, of the data or of an optimiser is declared once: as a keyword-only argument of its class,
with its type, its default, and its line under `Args:`. The flag, its help, its checks and its key in a YAML file
follow from that.

The library for this is jsonargparse. Tried in version 4.53, it takes no lists such as `--speed_perturb 0.9 1.1`, no
`--no-bidirectional` and no short flags for arguments of a constructor, reads `--lm null` as no value, lets NaN pass
in YAML, names no file in an error, and needs 0.2 s more to start than argparse and PyYAML. So it is argparse.
"""

import argparse
import re
import types
import typing
from collections.abc import Iterable

from utils.cli.values import finite_float, nonnegative_int
from utils.errors import UsageError
from utils.options import constructor_options


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError in place of printing the usage and leaving."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.ArgumentDefaultsHelpFormatter, **kwargs})
        self._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)  # argparse: no exponents

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(message)


def add_constructor_flags(parser: argparse.ArgumentParser, cls: type, *, title: str = "",
                          aliases: dict[str, str] | None = None, leave_out: Iterable[str] = ()) -> None:
    """Adds one flag for each option of `cls` and its bases (`constructor_options`).

    Args:
        parser: gets the flags, as a group.
        cls: its options may be int, float, str, bool, Literal, or a list of these; `Annotated` adds the type of
            `utils.cli.values` that holds a number to its bounds, or "+" for a list of at least one.
        title: of the group; by default the name of the class.
        aliases: further names of flags, such as `-lr`, by the option's name.
        leave_out: names of options without a flag.
    """
    group = parser.add_argument_group(title or f"model: {cls.__name__}")
    for name, hint, default, help_text in constructor_options(cls):
        if name in leave_out:
            continue
        alias = (aliases or {}).get(name)
        names = [f"--{name}", *([alias if alias.startswith("-") else f"--{alias}"] if alias else [])]
        default = list(default) if isinstance(default, tuple) else default
        group.add_argument(*names, default=default, help=help_text.replace("%", "%%") or None, **_flag_type(hint))


def pick_arguments(cls: type, args: argparse.Namespace) -> dict:
    """Returns what the command line says of each option of `cls` that has a flag."""
    return {option.name: getattr(args, option.name) for option in constructor_options(cls) if option.name in args}


def _flag_type(hint) -> dict:
    """Returns the `add_argument` options of a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"type": type(arguments[0]), "choices": arguments}
    if origin is typing.Annotated:
        kind, limit = arguments
        return {**_flag_type(kind), "nargs": limit} if isinstance(limit, str) else {"type": limit}
    if origin is list:
        return {"nargs": "*", **_flag_type(arguments[0])}
    if origin in (types.UnionType, typing.Union):
        return _flag_type(next(one for one in arguments if one is not type(None)))
    return {"type": {float: finite_float, int: nonnegative_int}.get(hint, hint)}
