"""Flags from constructors, and YAML files of flags: as strict, for every program."""

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Annotated, Literal

import pytest

import evaluate
import inference
import train
from models import Recognizer
from utils.cli.config import config_arguments, parse_with_config, peek
from utils.cli.parser import OneLineParser, add_constructor_flags, pick_arguments
from utils.cli.values import (
    count_or_share,
    name_and_factor,
    nonnegative_int,
    positive_float,
    positive_int,
    share,
    steps_or_minutes,
    thread_count,
    weighted_name,
)
from utils.errors import UsageError


class Toy:
    """Has an option of every type.

    Args:
        size: how large, at most 100 %.
        rate: how fast.
        kind: which one.
        both: whether both.
        names: their names.
        weights: above 0.
        path: a file.
    """

    def __init__(self, *, size: Annotated[int, nonnegative_int] = 3, rate: float = 0.5,
                 kind: Literal["a", "b"] = "a", both: bool = True, names: Annotated[list[str], "+"] = ("x",),
                 weights: list[Annotated[float, positive_float]] = (), path: str | None = None):
        pass


def toy_parser() -> OneLineParser:
    parser = OneLineParser(prog="toy.py")
    parser.add_argument("--config")
    add_constructor_flags(parser, Toy, aliases={"rate": "-r", "names": "people"})
    return parser


def test_flags_of_every_type():
    parser = toy_parser()
    defaults = parser.parse_args([])
    assert pick_arguments(Toy, defaults) == {"size": 3, "rate": 0.5, "kind": "a", "both": True, "names": ["x"],
                                             "weights": [], "path": None}
    args = parser.parse_args(["--size", "0", "-r", "-1.5", "--kind", "b", "--no-both", "--people", "y", "z",
                              "--weights", "0.9", "1.1", "--path", "null"])
    assert pick_arguments(Toy, args) == {"size": 0, "rate": -1.5, "kind": "b", "both": False, "names": ["y", "z"],
                                         "weights": [0.9, 1.1], "path": "null"}
    assert "how large, at most 100 % (default: 3)" in " ".join(parser.format_help().split())


@pytest.mark.parametrize(("argv", "message"), [
    (["--size", "-1"], "argument --size: -1 must be at least 0"),
    (["--size", "1.5"], "argument --size: invalid int value: '1.5'"),
    (["--rate", "nan"], "argument --rate/-r: nan must be finite"),
    (["--rate=-inf"], "argument --rate/-r: -inf must be finite"),
    (["--weights", "1", "0"], "argument --weights: 0 must be above 0 and finite"),
    (["--kind", "c"], "argument --kind: invalid choice: 'c'"),
    (["--names"], "argument --names/--people: expected at least one argument"),
    (["--siz", "1"], "unrecognized arguments: --siz"),
])
def test_a_wrong_flag_is_one_line_that_names_it(argv, message):
    with pytest.raises(UsageError) as error:
        toy_parser().parse_args(argv)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_file_of_flags_and_the_command_line_over_it(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("size: 5\nrate: -1\nboth: false\nnames: [y, z]\nweights: []\npath:\nkind: b\n")
    args = parse_with_config(toy_parser(), ["--config", str(path), "--size", "6"])
    assert pick_arguments(Toy, args) == {"size": 6, "rate": -1.0, "kind": "b", "both": False, "names": ["y", "z"],
                                         "weights": [], "path": None}
    assert peek("--config", ["-r", "2", "--config=a.yaml", "--unknown"]) == "a.yaml"
    assert peek("--rate", ["-r", "2"], "-r") == "2" and peek("--config", []) is None


@pytest.mark.parametrize(("content", "message"), [
    ("sise: 5", "sise: no such flag"),
    ("config: x.yaml", "config: no such flag"),
    ("size: -1", "size: -1 must be at least 0 and at most 4294967295"),
    ("size:", "size: None is not a value for it"),
    ("rate: .nan", "rate: nan must be finite"),
    ("rate: .inf", "rate: inf must be finite"),
    ("weights: [1, .inf]", "weights: inf must be above 0 and finite"),
    ("names: []", "names: expected at least one argument"),
    ("both: 1", "both: must be true or false, not 1"),
    ("path: [a, b]", "path: takes one value, not a list"),
    ("path: {a: 1}", "path: {'a': 1} is not a value for it"),
    ('path: "\\0"', "path: holds a zero byte, which no flag can"),
    ("size: 1\nrate: 2\n'size': 3", "not YAML: size is given twice, line 3 is the second"),
    ("size: &a 1\nrate: *a", "not YAML: *a: aliases are not read, write the value again"),
])
def test_a_wrong_file_of_flags_names_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        config_arguments(str(path), toy_parser())
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_flags_in_the_encodings_of_text_files(tmp_path, encoding):
    path = tmp_path / "x.yaml"
    path.write_bytes("path: größer".encode(encoding))
    assert parse_with_config(toy_parser(), ["--config", str(path)]).path == "größer"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_of_flags_that_is_no_file(tmp_path, make):
    """A pipe would make it wait, without a word, for somebody to write."""
    make(tmp_path / "flags.yaml")
    with pytest.raises(UsageError, match="flags.yaml: not a file"):
        parse_with_config(toy_parser(), ["--config", str(tmp_path / "flags.yaml")])


def test_a_file_of_flags_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("path: größer".encode("latin-1"))
    with pytest.raises(UsageError, match=f"{path}: not UTF-8 .it has a byte 0xF6.: convert it"):
        parse_with_config(toy_parser(), ["--config", str(path)])


@pytest.mark.parametrize("build", [
    *(lambda model=model: train.build_parser(model) for model in Recognizer.registry),
    evaluate.build_parser, inference.build_parser], ids=[*Recognizer.registry, "evaluate", "inference"])
def test_no_flag_of_any_program_takes_nan_or_infinity(build):
    texts = (None, str, Path, steps_or_minutes, weighted_name)
    numbers = [action for action in build()._actions if action.type not in texts]
    assert len(numbers) > 5
    for action in numbers:
        for text in ("nan", "inf", "-inf", "1e999"):
            with pytest.raises((ValueError, ArgumentTypeError)):
                action.type(text)


def test_names_with_factors():
    assert [name_and_factor(text) for text in ("a", "a/b.jsonl*3", "a*.5", "a*1e3")] == [
        ("a", 1.0), ("a/b.jsonl", 3.0), ("a", 0.5), ("a", 1000.0)]
    assert weighted_name("a*0.5") == "a*0.5"


@pytest.mark.parametrize("text", ["-1e2", "-1E+2", "-100", "-100.0"])
def test_negative_numbers_in_every_form(text):
    """argparse would take one with an exponent for a flag."""
    assert toy_parser().parse_args(["--rate", text]).rate == -100


def test_counts_beyond_reason_are_refused():
    """Packages would answer with an OverflowError, or with gigabytes of threads."""
    for kind in (positive_int, nonnegative_int, thread_count):
        assert kind("7") == 7
        with pytest.raises(ArgumentTypeError):
            kind("1" + "0" * 30)


def test_counts_shares_and_intervals():
    assert [count_or_share("2"), count_or_share("0.5"), share("0.9")] == [2, 0.5, 0.9]
    assert steps_or_minutes("500") == "500" and steps_or_minutes("10m") == "10m"
    for kind, text in [(count_or_share, "1.5"), (count_or_share, "-1"), (share, "1.0"), (steps_or_minutes, "0"),
                       (steps_or_minutes, "0m"), (steps_or_minutes, "10h")]:
        with pytest.raises(ArgumentTypeError):
            kind(text)
