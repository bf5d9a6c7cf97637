"""YAML files of flags, as strict as the command line, which wins over them."""

import argparse
import os
import re
from collections.abc import Sequence

import yaml

from utils.cli.parser import OneLineParser
from utils.errors import UsageError, UserError, printable
from utils.files.text import decode

LARGEST_CONFIG = 64 << 10  # bytes


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str], *,
                      below: Sequence[str] = ()) -> argparse.Namespace:
    """Parses flags and, where `--config` is one of them, a file of flags, which the command line wins over.

    Both win over the flags `below`. Raises UsageError.
    """
    config = peek("--config", argv)
    return parser.parse_args([*below, *(config_arguments(config, parser) if config else []), *argv])


def peek(flag: str, argv: list[str], *short: str) -> str | None:
    """Returns the text of one flag on a command line that is not parsed yet. Raises UsageError."""
    parser = OneLineParser(add_help=False)
    parser.add_argument(*short, flag, dest="value")
    return parser.parse_known_args(argv)[0].value


def config_arguments(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """Turns a YAML file of flags into command-line arguments, which argparse then checks like any other.

    A flag that is null is left out, which is allowed where it has no default.
    Raises UsageError that names the file and the key: unknown key, wrong type, bad choice.
    """
    actions = {name: action for action in parser._actions for name in action.option_strings}
    arguments = []
    for key, value in read_yaml(path).items():
        action = actions.get(f"--{key}")
        if action is None or key in ("config", "help"):
            raise UsageError(f"{path}: {printable(key, 40)}: no such flag")
        if value is None and action.default is None and not action.required:
            continue
        try:
            words = _as_typed(key, value, action)
            _check(words, action)
        except ValueError as error:  # UsageError, and what Python says of numbers with thousands of digits
            raise UsageError(f"{path}: {key}: {printable(error, 500)}") from None
        arguments += words
    return arguments


def read_yaml(path: str) -> dict:
    """Returns the mapping in a YAML file of at most 64 KB. Raises UsageError."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would make it wait, and can be read but once
        raise UsageError(f"{path}: not a file")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise UsageError(f"{path}: more than {LARGEST_CONFIG >> 10} KB, too much for a file of flags")
        content = yaml.load(decode(path, content), Loader=_FlatLoader)  # which makes plain values alone
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UserError as error:
        raise UsageError(str(error)) from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML: {printable(' '.join(str(error).split()), 200)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must hold one `flag: value` a line")
    return content


class _FlatLoader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can stand for billions of values, and without repeated keys."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:  # PyYAML takes the last one, without a word
                raise yaml.YAMLError(f"{key.value} is given twice, line {key.start_mark.line + 1} is the second")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor}: aliases are not read, write the value again")
        return super().compose_node(parent, index)


def _as_typed(key: str, value, action: argparse.Action) -> list[str]:
    """Returns the words by which one would type a flag. Raises UsageError."""
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise UsageError(f"must be true or false, not {value!r}")
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, list) and action.nargs is None:
        raise UsageError("takes one value, not a list")
    values = value if isinstance(value, list) else [value]
    if any(one is None or isinstance(one, bool | dict | list) for one in values):
        raise UsageError(f"{value!r} is not a value for it")
    words = [str(one) for one in values]
    if any("\0" in word for word in words):
        raise UsageError("holds a zero byte, which no flag can")
    for word in words:
        os.fsencode(word)  # a half of a surrogate pair is no character, unless it stands for a byte of a name
    return [f"--{key}={words[0]}"] if action.nargs is None else [f"--{key}", *words]  # "=", for a value like -1


def _check(words: list[str], action: argparse.Action) -> None:
    """Parses one flag by itself, so that an error can be told from those of the others."""
    parser = OneLineParser(add_help=False)
    parser._add_action(action)
    required, action.required = action.required, False
    try:
        parser.parse_args(words)
    except UsageError as error:
        raise UsageError(re.sub(r"^argument [^:]+: ", "", str(error))) from None
    finally:
        action.required = required
