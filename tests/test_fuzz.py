"""Every reader of files meets damaged ones: each is read, or refused in one line (see fuzz.py).

    pytest -m long tests/test_fuzz.py

gives each reader 10,000 inputs, in processes of 500, so that an input which ends its process is known by its number.
"""

import json
import subprocess
import sys
from collections import Counter

import fuzz
import pytest
from conftest import ROOT

INPUTS, CHUNK = 10_000, 500


def run(first: int, count: int, *targets: str) -> dict[str, Counter]:
    """How many of the inputs each reader read and refused; the test fails with the name of one that did harm."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), str(first), str(count), *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=600)
    *names, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"input {last}, status {done.returncode}:\n{done.stderr[-3000:]}"
    assert len(names) == count * len(targets)
    return {target: Counter(outcomes) for target, outcomes in json.loads(last).items()}


def assert_both(outcomes: Counter, inputs: int) -> None:
    """Some inputs must have been whole enough to be read, and some not: else nothing was tested."""
    assert outcomes.total() == inputs and min(outcomes["read"], outcomes["refused"]) > inputs / 100, outcomes


def test_damaged_inputs():
    for outcomes in run(0, 60, *fuzz.TARGETS).values():
        assert_both(outcomes, 60)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_ten_thousand_damaged_inputs(target):
    outcomes = sum((run(first, CHUNK, target)[target] for first in range(0, INPUTS, CHUNK)), Counter())
    assert_both(outcomes, INPUTS)
    print(f"{target}: {outcomes['read']:,} read, {outcomes['refused']:,} refused")


def test_an_input_that_ends_its_process_is_known_by_its_number(monkeypatch, capfd):
    """The harness itself: a crash in C, an error of another type, and a hang are seen for what they are."""
    crash = "import sys, ctypes; sys.path.insert(0, 'tests'); import fuzz; fuzz.TARGETS['audio'] = lambda: fuzz.Target("
    for read, sign in [("lambda path: ctypes.string_at(0)", "Segmentation fault"),
                       ("lambda path: {}['key']", "KeyError"), ("lambda path: bytearray(1 << 40)", "MemoryError"),
                       ("lambda path: __import__('time').sleep(9)", "Timeout")]:
        code = f"{crash}[('x', b'content')], {read}, (ValueError,)); fuzz.SECONDS = 0.2; fuzz.main(['7', '2', 'audio'])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and done.stdout == "audio 7\n" and sign in done.stderr, done.stderr
