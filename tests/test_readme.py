"""The commands that the README shows are commands that the programs understand."""

import importlib
import os
import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT

import evaluate
import inference
import train
import utils.lm.__main__
from utils.cli.config import config_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"(?:^|`|\| )\s*(python (?:-m )?(?:train.py|inference.py|evaluate.py|utils.lm) (?!--help)[^`\n]*)",
                   re.MULTILINE)
COMMANDS = [re.sub(r"\s+#.*", "", line).strip() for line in SHOWN.findall(README)]
PARSERS = {"train.py": train.parse_arguments, "inference.py": inference.parse_arguments,
           "evaluate.py": evaluate.parse_arguments, "utils.lm": utils.lm.__main__.parse_arguments}


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_are_understood(command, monkeypatch, tmp_path):
    """Flags and choices; files such as decoding.yaml stand for the reader's own."""
    (tmp_path / "decoding.yaml").write_text("decoder: beam\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    program, *flags = words[1:] if words[0] == "-m" else words
    assert vars(PARSERS[program](flags))


def test_there_are_commands_of_every_program():
    assert {name for name in PARSERS if any(name in command for command in COMMANDS)} == set(PARSERS)
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


ROWS = re.findall(r"^\|[^|]+\| `([\w/]+\.py)` \| (`.+`) \|$", README, flags=re.MULTILINE)
SYMBOLS = [(path, symbol) for path, names in ROWS for symbol in re.findall(r"`([\w.]+)`", names)]


def test_the_table_of_papers_names_symbols():
    assert len(SYMBOLS) > 12


@pytest.mark.parametrize(("path", "symbol"), SYMBOLS)
def test_symbols_of_the_table_of_papers_exist(path, symbol):
    found = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for name in symbol.split("."):
        found = getattr(found, name)
    assert found.__doc__


def test_it_is_read_in_five_minutes():
    assert len(README.split()) < 1500 and max(map(len, README.splitlines())) <= 120


NAMED = re.compile(r"`((?:models|data|utils|configs|docs)/[\w./]+\.\w+)`")


@pytest.mark.parametrize("path", sorted(set(NAMED.findall(README)) - {"models/mine.py"}))
def test_files_that_it_names_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_understood(config):
    """Each states its command on its first line, and every key is a flag."""
    first = config.read_text().splitlines()[0]
    assert first.startswith(("# python train.py --config configs/", "# make demo", "# make english"))
    args = train.parse_arguments(["--config", str(config)])
    assert config_arguments(str(config), train.build_parser(args.model))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(("target", "runs"), [("demo", 1), ("english", 6), ("english-streaming", 1)])
def test_recipes_of_the_makefile_are_understood(target, runs, monkeypatch):
    """Their trainings take hours: a flag that does not exist must show before."""
    monkeypatch.chdir(ROOT)
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", "-n", "-B", target], env=quiet, capture_output=True, text=True, check=True).stdout
    trained = [line.split(" train.py ")[1] for line in shown.replace("\\\n", " ").splitlines() if " train.py " in line]
    assert len(trained) == runs
    for flags in trained:
        args = train.parse_arguments(shlex.split(flags))
        assert config_arguments(args.config, train.build_parser(args.model))
