"""Everything that a GPU changes, in one command: what is right there, how fast it is, and what could not be seen.

    make gpu
    python -m benchmarks.gpu --output runs/gpu --minutes 9

Each part runs in processes of its own, so that none takes the others down, until the time is over. A part that
cannot run says why. Needed besides PyTorch: soundfile, lightning, jiwer, pytest, python-dotenv, PyYAML; where there is
no package index, `pip install --target FOLDER` elsewhere, and PYTHONPATH=FOLDER here.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.measure import machine

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/test_gpu.py", "tests/test_mingru_kernels.py"]  # the second is what can be said without a GPU
NEEDED = {"tests": ("soundfile", "pytest"), "minGRU": ("soundfile",), "training step": ("soundfile", "yaml"),
          "transcribing": ("soundfile",)}
SHARES = {"tests": 0.45, "minGRU": 0.2, "training step": 0.8, "transcribing": 1.0}  # of the time left by then


class Run:
    """The parts, their results, and the time that is left."""

    def __init__(self, output: Path, minutes: float):
        self.output, self.deadline = output, time.monotonic() + 60 * minutes
        self.rows: list[dict] = []

    def add(self, part: str, what: str, result: str, note: str, values: dict | None = None) -> None:
        """Adds a row of the table; `values` are for the JSON file alone."""
        self.rows.append({"part": part, "what": what, "result": result, "note": note, "values": values or {}})

    def run_part(self, part: str) -> None:
        """Runs a part, or says why it cannot run."""
        missing = [package for package in NEEDED[part] if find_spec(package) is None]
        if missing:
            self.add(part, "all", "skipped", f"not installed: {', '.join(missing)}")
        elif part != "tests" and not torch.cuda.is_available():
            self.add(part, "all", "skipped", "no CUDA device here")
        else:
            seconds = SHARES[part] * (self.deadline - time.monotonic())
            {"tests": self.test, "minGRU": self.time_mingru, "training step": self.time_training,
             "transcribing": self.time_transcribing}[part](seconds)

    def start(self, arguments: list[str], seconds: float) -> subprocess.CompletedProcess:
        """Runs a Python program; one that takes longer is ended with its children, and has status -SIGKILL."""
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def test(self, seconds: float) -> None:
        """Runs the tests: a row for each, whatever its parameters."""
        report = self.output / "tests.xml"
        report.unlink(missing_ok=True)
        files = TESTS[:1] if torch.cuda.is_available() else TESTS
        limit = [f"--session-timeout={seconds:.0f}"] if find_spec("pytest_timeout") else []
        done = self.start(["-m", "pytest", "-m", "not long", "-p", "no:cacheprovider", "-o", "junit_family=xunit1",
                           f"--junitxml={report}", *limit, *files], seconds + 60)
        if not report.is_file():
            self.add("tests", "all", "failed", reason_of(done))
            return
        for row in rows_of(report):
            self.add("tests", *row)
        if "session-timeout" in done.stdout:
            self.add("tests", "the others", "skipped", "the time was over")

    def time_mingru(self, seconds: float) -> None:
        """Adds minGRU next to cuDNN's layers, and next to the floor of memory and products."""
        for row in self.rows_of_benchmark("minGRU", "benchmarks.mingru", seconds):
            note = [f"{row[name]:.3g} {unit}" for name, unit in (
                ("times nn.GRU", "x nn.GRU's speed"), ("of floor", "x the floor's time")) if name in row]
            what = f"{row['case']}, T {row['T']}, B {row['B']}"
            self.add("minGRU", what, f"{row['ms']:.3g} ms", "; ".join(note), row)

    def time_transcribing(self, seconds: float) -> None:
        """Adds the real-time factor by the size of the batch."""
        for row in self.rows_of_benchmark("transcribing", "benchmarks.transcribe", seconds):
            self.add("transcribing", row["what"], f"{row['real-time factor']:.2g} of real time",
                     f"{row['hours an hour']:.0f} h per hour", row)

    def rows_of_benchmark(self, part: str, module: str, seconds: float) -> list[dict]:
        """Returns the rows of a benchmark on the GPU; none, and a row that says why, where it fails."""
        path = self.output / f"{part.replace(' ', '_')}.json"
        path.unlink(missing_ok=True)
        done = self.start(["-m", module, "--device", "cuda", "--json", str(path)], seconds)
        if not path.is_file():
            self.add(part, "all", "failed", reason_of(done))
            return []
        return json.loads(path.read_text())["rows"]

    def time_training(self, seconds: float) -> None:
        """Adds the training step's rows, one process each, until their time is over."""
        from benchmarks import training_step

        arguments = argparse.Namespace(device="cuda", threads=os.cpu_count(), budget=400.0, steps=10)
        end, plain = time.monotonic() + seconds, None
        for case in [*training_step.changes(torch.device("cuda")), training_step.RECIPE]:
            _, *command = training_step.command(case, arguments)
            done = self.start(command, end - time.monotonic())
            if done.returncode:
                self.add("training step", case, "failed", reason_of(done))
                continue
            row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
            plain = plain or row["audio s/s"]
            note = (f"{row['audio s/s'] / plain:.3g} x the first; {row['GB']:.3g} GB; features "
                    f"{row['features %']:.2g} %; GPU busy {row['busy %']:.0f} %; waits: {row['waits']}")
            self.add("training step", case, f"{row['audio s/s']:.0f} x real time", note, row)

    def write(self) -> None:
        """Prints the table and writes `gpu.json` and `gpu.md`."""
        where = f"{machine()}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"
        content = json.dumps({"machine": where, "rows": self.rows}, indent=2, default=str)
        (self.output / "gpu.json").write_text(content + "\n")
        cells = [["part", "what", "result", "note"], ["---"] * 4,
                 *([text.replace("|", "/") for text in list(row.values())[:4]] for row in self.rows)]
        table = f"{where}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"
        (self.output / "gpu.md").write_text(table)
        print(f"\n{table}\nwritten: {self.output / 'gpu.json'}, {self.output / 'gpu.md'}")


def reason_of(done: subprocess.CompletedProcess) -> str:
    """Why a program left no result: its last line, or its time."""
    if done.returncode == -signal.SIGKILL:
        return "the time was over"
    return (done.stdout.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]


def rows_of(report: Path) -> Iterator[tuple[str, str, str, dict]]:
    """Yields what, result, note and figures of each test function in a JUnit file, over all its parameters."""
    functions: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        functions.setdefault(case.get("name").split("[")[0], []).append(case)
    for function, cases in functions.items():
        outcomes, figures, reasons = Counter(map(outcome_of, cases)), {}, {}
        for case in cases:
            for one in case.iter("property"):
                figures[one.get("name")] = max(figures.get(one.get("name"), 0.0), float(one.get("value")))
            for fault in (child for child in case if child.tag in ("failure", "error", "skipped")):
                reasons.setdefault((fault.get("message").splitlines() or [""])[0][:200], case.get("name"))
        notes = [f"{name} at most {value:.2g}" for name, value in figures.items()]
        notes += [f"{name}: {reason}" if outcomes["failed"] else reason for reason, name in list(reasons.items())[:3]]
        notes.append(f"{sum(float(case.get('time')) for case in cases):.0f} s")
        result = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        yield function.removeprefix("test_").replace("_", " "), result, "; ".join(notes), figures


def outcome_of(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    run = Run(args.output.resolve(), args.minutes)
    for part in NEEDED:
        run.run_part(part)
        print(f"{part}: done", flush=True)
    run.write()


if __name__ == "__main__":
    main()
