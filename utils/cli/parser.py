"""Command lines: flags from constructors, YAML files as strict as flags, errors in one line."""

import argparse
import re
import types
import typing
from collections.abc import Iterable

import yaml

from utils.errors import UsageError, printable
from utils.options import constructor_options

LARGEST_CONFIG = 64 << 10  # bytes


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError in place of printing the usage and leaving."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str):
        raise UsageError(message)


def add_constructor_flags(parser: argparse.ArgumentParser, cls: type, *, title: str = "",
                          aliases: dict[str, str] | None = None, leave_out: Iterable[str] = ()) -> None:
    """Adds one flag for each option of `cls` and its bases (`constructor_options`), but for those to leave out.

    Its type may be int, float, str, bool, Literal, or a list of these; or `Annotated[..., check]` with the argparse
    type that holds the value to its bounds. `aliases` are further names of flags, such as `-lr`.
    """
    group = parser.add_argument_group(title or f"model: {cls.__name__}")
    for option in (one for one in constructor_options(cls) if one.name not in leave_out):
        alias = (aliases or {}).get(option.name)
        names = [f"--{option.name}", *([alias if alias.startswith("-") else f"--{alias}"] if alias else [])]
        group.add_argument(*names, default=option.default, help=option.help.replace("%", "%%") or None,
                           **_flag_type(option.type))


def pick_arguments(cls: type, args: argparse.Namespace) -> dict:
    """Returns what the command line says of each option of `cls`."""
    return {option.name: getattr(args, option.name) for option in constructor_options(cls)}


def _flag_type(hint) -> dict:
    """The `add_argument` options of a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"type": type(arguments[0]), "choices": arguments}
    if origin is typing.Annotated:
        return {"type": arguments[1]}
    if origin is list:
        return {"nargs": "*", **_flag_type(arguments[0])}
    if origin in (types.UnionType, typing.Union):
        return _flag_type(next(a for a in arguments if a is not type(None)))
    return {"type": hint}


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Flags, before them those of the `--config` file among them, so that the command line wins. Raises UsageError."""
    first = OneLineParser(add_help=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    return parser.parse_args((config_arguments(config, parser) if config else []) + argv)


def config_arguments(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file of flags as command-line arguments; argparse then checks them like any other.

    Raises UsageError that names the file and the key: unknown key, wrong type, bad choice.
    """
    options = {name: action for action in parser._actions for name in action.option_strings}
    arguments = []
    for key, value in read_yaml(path).items():
        action = options.get(f"--{key}")
        if action is None or key in ("config", "help"):
            raise UsageError(f"{path}: {printable(key, 40)}: no such flag")
        try:
            words = _words(value, action, key)
            _check(words, action)
        except ValueError as error:  # UsageError among them; others of numbers with thousands of digits
            raise UsageError(f"{path}: {key}: {printable(error, 500)}") from None
        arguments += words
    return arguments


class _FlatLoader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can stand for billions of values."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor}: aliases are not read, write the value again")
        return super().compose_node(parent, index)


def read_yaml(path: str) -> dict:
    """The mapping in a YAML file of at most 64 KB. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise UsageError(f"{path}: more than {LARGEST_CONFIG >> 10} KB, too much for a file of flags")
        content = yaml.load(content.decode("utf-8-sig"), Loader=_FlatLoader)  # which makes plain values alone
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML: {printable(' '.join(str(error).split()), 200)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must hold one `flag: value` a line")
    return content


def _words(value, action: argparse.Action, key: str) -> list[str]:
    """One flag's value as it would be typed."""
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"must be true or false, not {value!r}")
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return [f"--{key}"] if value else []
        return [f"--{key}" if value else f"--no-{key}"]
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and action.nargs is None:
        raise UsageError("takes one value, not a list")
    if any(v is None or isinstance(v, bool | dict | list) for v in values):
        raise UsageError(f"{value!r} is not a value for it")
    words = [str(v) for v in values]
    if any("\0" in word for word in words):
        raise UsageError("holds a zero byte, which no flag can")
    for word in words:
        word.encode()  # a half of a surrogate pair is no character
    return [f"--{key}={words[0]}"] if action.nargs is None else [f"--{key}", *words]  # "=", for a value like -1


def _check(words: list[str], action: argparse.Action) -> None:
    """Parses one option by itself, so that an error can be told from those of the others."""
    parser = OneLineParser(add_help=False)
    parser._add_action(action)
    required, action.required = action.required, False
    try:
        parser.parse_args(words)
    except UsageError as error:
        raise UsageError(re.sub(r"^argument [^:]+: ", "", str(error))) from None
    finally:
        action.required = required


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    return _bounded(int(text), 1)


def nonnegative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    return _bounded(int(text), 0)


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and finite")
    return value


def nonnegative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and finite")
    return value


def steps_or_minutes(text: str) -> str:
    """argparse type: a count of steps such as 500, or of minutes such as 10m."""
    try:
        positive_int(text.removesuffix("m"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be steps such as 500, or minutes such as 10m") from None
    return text


def share(text: str) -> float:
    """argparse type: a number from 0 to below 1."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1")
    return value


def count_or_share(text: str) -> int | float:
    """argparse type: a count, or a share between 0.0 and 1.0 where it has a decimal point."""
    if "." not in text:
        return _bounded(int(text), 0)
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, or a share between 0.0 and 1.0")
    return value


def _bounded(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
    return value
