"""Small runs of `train.py` on real speech, for the tests of training."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from conftest import CORPUS, ROOT, TINY
from training_process import TrainingProcess

DATA = [f"--data_root={CORPUS}", "--train_sets", "train", "--val_sets", "dev", "test", "--test_sets", "test"]
RUN = ["-g", "0", "-w", "0", "--batch_size", "5", "--warmup_steps", "2", "--logger", "none", "--no-progress_bar"]


def arguments(output: Path, *more: str, model: str = "deepspeech2") -> list[str]:
    """The flags of a tiny network's run; `more` come after them and win."""
    small = [f"--{name}={value}" for name, value in TINY[model].items()]
    return ["-m", model, *small, *DATA, *RUN, f"--output_dir={output}", f"--cache_dir={output.parent / 'cache'}", *more]


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess:
    """`python train.py`, in a process of its own; where environment variables are given, in a new Python."""
    if not environment:
        process = start(*argv)
        stdout, stderr = process.communicate(timeout=200)
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
    return subprocess.run([sys.executable, "train.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=200,
                          env=os.environ | environment)


def run_together(processes: int, *argv: str) -> subprocess.CompletedProcess:
    """One run of several processes of this machine, started as torchrun starts them: Lightning starts none."""
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests"}
    started = [TrainingProcess(*argv, "--cpu_processes", str(processes), RANK=str(rank), LOCAL_RANK=str(rank), **shared)
               for rank in range(processes)]
    stdout, stderr = map("".join, zip(*[process.communicate(timeout=200) for process in started], strict=True))
    return subprocess.CompletedProcess(argv, max(abs(process.returncode) for process in started), stdout, stderr)


def free_port() -> int:
    """A port that nothing listens to, a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(*argv: str) -> TrainingProcess:
    """The same, under way: its output can be read, and it leads a session of its own, to be signalled as a whole."""
    return TrainingProcess(*argv)


def wait_for(process: TrainingProcess, beginning: str) -> None:
    """Reads the run's output up to a line that begins so."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError(f"it ended before {beginning!r}:\n{''.join(lines)}{process.communicate(timeout=10)[1]}")


def checkpoint(output: Path, name: str = "last") -> dict:
    """What a run's checkpoint holds."""
    return torch.load(output / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(output: Path, name: str = "last") -> dict:
    """The weights in a run's checkpoint."""
    return checkpoint(output, name)["state_dict"]


def assert_same_end(one: Path, other: Path) -> None:
    """Both runs' last checkpoints are the same, bit for bit: weights, their average, optimiser and schedule."""
    states = [checkpoint(output) for output in (one, other)]
    assert states[0]["global_step"] == states[1]["global_step"] and states[0]["epoch"] == states[1]["epoch"]
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(states[0].get(part), states[1].get(part), rtol=0, atol=0)
