"""How a `main()` ends: one line, the right exit status, and no traceback, whatever the terminal is."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, from_keyboard

from utils.errors import UsageError, is_out_of_memory, one_line_errors, printable
from utils.process import importing


def run(body: str, **options) -> subprocess.CompletedProcess:
    program = "from utils.errors import *\nimport os, sys\nwith one_line_errors('x.py', less_memory='take less'):\n    "
    return subprocess.run([sys.executable, "-c", program + body], cwd=ROOT, timeout=60,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def ended(done: subprocess.CompletedProcess) -> tuple[int, bytes]:
    return done.returncode, done.stderr


@pytest.mark.parametrize(("body", "status", "line"), [
    ("raise UserError('a\\n  b\\x1b[0m')", 2, b"x.py: error: a b\\x1b[0m\n"),
    ("raise UsageError('--epochs 0')", 2, b"x.py: error: --epochs 0\n"),
    ("raise ImportError('pip install y')", 2, b"x.py: error: pip install y\n"),
    ("open('absent/file')", 2, b"x.py: error: absent/file: No such file or directory\n"),
    ("open(b'absent/\\xe9')", 2, b"x.py: error: absent/\\udce9: No such file or directory\n"),
    ("os.rename('absent', 'b')", 2, b"x.py: error: absent -> b: No such file or directory\n"),
    ("raise FileExistsError('delete it')", 2, b"x.py: error: delete it\n"),
    ("bytearray(1 << 62)", 2, b"x.py: error: memory is full; take less\n"),
    ("raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')", 2,
     b"x.py: error: one of its processes was killed, most often because memory was full; a smaller --num_workers needs "
     b"less\n"),
    ("from concurrent.futures.process import BrokenProcessPool as Broken; raise Broken('a process ended')", 2,
     b"x.py: error: one of its processes was killed, most often because memory was full; a smaller --num_workers needs "
     b"less\n"),
    ("raise KeyboardInterrupt", 130, b""),
    ("raise SystemExit(7)", 7, b""),
])
def test_each_error_is_one_line_and_a_status(body, status, line):
    assert ended(run(body)) == (status, line)


def test_memory_that_torch_does_not_get():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50)
    assert is_out_of_memory(error.value) and is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_faults_of_the_program_keep_their_traceback():
    done = run("raise RuntimeError('shapes differ')")
    assert done.returncode == 1 and b"Traceback" in done.stderr
    with pytest.raises(ValueError, match="not a user's"), one_line_errors("x.py"):
        raise ValueError("not a user's")


@pytest.mark.parametrize("text", ["one line", "x" * 100_000])
@pytest.mark.parametrize("end", ["", ", flush=True"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_in_silence(text, end, unbuffered):
    """As after `| head -1`: as a program ends that SIGPIPE kills, however much waits to be written."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    assert ended(run(f"print({text!r}{end})", stdout=write, env=environment)) == (141, b"")
    os.close(write)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("end", ["", ", flush=True"])
def test_a_full_disk_at_standard_output_is_named(end, unbuffered):
    with open("/dev/full", "wb") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        assert ended(run(f"print('a line'{end})", stdout=full, env=environment)) == (
            2, b"x.py: error: standard output: No space left on device\n")


def test_a_broken_pipe_elsewhere_is_an_error():
    body = "raise BrokenPipeError(32, 'Broken pipe', 'comet')"
    assert ended(run(body)) == (2, b"x.py: error: comet: Broken pipe\n")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-", "2>/dev/full"])
def test_streams_may_be_closed(closed, tmp_path):
    program = ("from utils.errors import *\nimport sys, pathlib\n"
               "with one_line_errors('x.py'):\n"
               f"    pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
               "    print('text'); print('note', file=sys.stderr)\n"
               "    raise UserError('reason')\n")
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], cwd=ROOT, timeout=60,
                          capture_output=True)
    assert done.returncode == 2 and (tmp_path / "ran").exists()
    assert b"Traceback" not in done.stderr and done.stdout in (b"", b"text\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("closed", ["pipe", "full"])
def test_a_program_that_is_not_run_for_its_output_goes_on_without(closed, unbuffered, tmp_path):
    """It says so once, whoever has gone: `| head -1`, a terminal, the log's disk."""
    program = ("from utils.errors import *\nimport sys, pathlib\n"
               "with one_line_errors('x.py', output_matters=False):\n"
               "    for i in range(9): print('x' * 5000, flush=i % 2 == 0)\n"
               f"    pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    read, write = os.pipe()
    os.close(read)
    output = write if closed == "pipe" else os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=60,
                          env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    reason = b"Broken pipe" if closed == "pipe" else b"No space left on device"
    assert (tmp_path / "ran").exists()
    assert ended(done) == (0, b"note: standard output: " + reason + b": what would come there is left out\n")


@pytest.mark.parametrize("output_matters", [True, False])
def test_standard_error_ends_nothing(output_matters):
    """A progress bar, or a note, whose terminal has gone."""
    read, write = os.pipe()
    os.close(read)
    program = ("from utils.errors import *\nimport sys\n"
               f"with one_line_errors('x.py', output_matters={output_matters}):\n"
               "    for _ in range(9): print('x' * 5000, file=sys.stderr, flush=True)\n    print('done')\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=write, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"done\n")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
    """C libraries write to standard error by its number, whatever has that."""
    program = ("from utils.errors import *\nimport os\n"
               "with one_line_errors('x.py'):\n"
               f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
               "        os.write(1, b'noise'); os.write(2, b'noise'); file.write(str(file.fileno() > 2))\n")
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], cwd=ROOT, timeout=60,
                          capture_output=True)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "True"


def test_every_name_can_be_printed_in_every_encoding():
    body = "print(os.fsdecode(b'caf\\xe9'), 'caf\\u00e9')"
    done = run(body, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9 caf\\xe9\n")
    done = run(body, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout) == (0, "caf\\udce9 café\n".encode())


def test_ctrl_c_from_the_keyboard():
    program = ("from utils.errors import *\nimport time\n"
               "with one_line_errors('x.py'):\n    print('ready', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             preexec_fn=from_keyboard)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert (child.wait(20), child.stderr.read()) == (130, b"")


PROGRAMS = ["train.py", "evaluate.py", "inference.py", "data.synthetic", "data.prepare", "data.convert",
            "data.shard", "utils.lm", "utils.checkpoint", "utils.report.curves"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_packages_are_imported(program, tmp_path):
    """Which takes seconds. The first package stands for them: it presses Ctrl-C."""
    for package in ("torch", "tqdm", "numpy"):
        (tmp_path / f"{package}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile 1: 1\n")
    command = [program] if program.endswith(".py") else ["-m", program]
    for handler, status in ((from_keyboard, -signal.SIGINT), (ignore_ctrl_c, -signal.SIGALRM)):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                              preexec_fn=handler, capture_output=True, timeout=60)
        assert ended(done) == (status, b"")


def ignore_ctrl_c() -> None:
    """As a shell starts what runs in its background; the alarm ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1.5)


def test_ctrl_c_while_more_packages_are_imported():
    """Some would go on without the one that was interrupted, and end with an error of their own."""
    for handler in (signal.default_int_handler, signal.SIG_IGN, print):
        before = signal.signal(signal.SIGINT, handler)
        with importing():
            assert signal.getsignal(signal.SIGINT) is (
                signal.SIG_DFL if handler is signal.default_int_handler else handler)
        assert signal.signal(signal.SIGINT, before) is handler


def test_printable():
    assert printable("two\nlines\tand \x1b[31m") == "two\\nlines\\tand \\x1b[31m"
    assert printable("naïve 字") == "naïve 字" and printable("abcdef", 3) == "abc..."
    assert printable(os.fsdecode(b"\xe9")) == "\\udce9"
    assert isinstance(UsageError("x"), ValueError)
