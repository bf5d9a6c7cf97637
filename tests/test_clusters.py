"""Processes that torchrun or SLURM start are one run, the same as Lightning's own; docs/slurm.sh goes on by itself.

There is no SLURM here: `srun` and `scontrol` are stand-ins, which set the variables that Lightning reads.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from training_runs import arguments, assert_same_end, run, wait_for

FLAGS = ["--epochs", "4", "--batch_size", "1", "--ema_decay", "0.9", "--speed_perturb", "0.9", "1.1", "--test_sets"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys
ranks = [{{"SLURM_PROCID": rank, "SLURM_LOCALID": rank}} for rank in "01"]
tasks = [subprocess.Popen(sys.argv[1:], env={{**os.environ, **rank}}) for rank in ranks]
signal.signal(signal.SIGUSR1, lambda number, _: [task.send_signal(number) for task in tasks])
pathlib.Path(__file__).with_name("srun.pid").write_text(str(os.getpid()))
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$*" >> "$0.log"
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The folder of two processes that Lightning starts and nothing interrupts."""
    output = tmp_path_factory.mktemp("clusters") / "reference"
    done = run(*arguments(output, *FLAGS, "--cpu_processes", "2"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return output


def epochs_of(output: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (output / "history.jsonl").read_text().splitlines()]


def test_two_nodes_of_torchrun_are_one_run(tmp_path, reference):
    """Each node's command, on this machine; one Comet archive, and the weights of one node's two processes."""
    output = tmp_path / "run"
    command = ["train.py", *arguments(output, *FLAGS, "--nodes", "2", "--logger", "comet")]
    port = 20_000 + os.getpid() % 10_000
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMET_API_KEY": ""}
    nodes = [subprocess.Popen([*TORCHRUN, "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port",
                               str(port), *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert_same_end(reference, output)
    assert epochs_of(output) == epochs_of(reference) == list(range(4))
    archive, = (output / "comet").glob("*.zip")
    assert f"comet upload {archive}" in printed[0] and "Comet" not in printed[1]


def test_under_slurm_it_is_queued_again_and_goes_on(tmp_path, reference):
    """SIGUSR1 to the tasks, as --signal=USR1 sends it: a checkpoint, `scontrol requeue`, and the same end."""
    output, log = tmp_path / "run", tmp_path / "bin" / "scontrol.log"
    start = {"args": ["bash", "docs/slurm.sh", *arguments(output, *FLAGS, "--cpu_processes", "2")], "cwd": ROOT,
             "env": slurm(tmp_path / "bin"), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(**start) as job:
        wait_for(job, "epoch   0")
        os.kill(int((tmp_path / "bin" / "srun.pid").read_text()), signal.SIGUSR1)
        printed = job.communicate(timeout=180)[0]
    assert job.returncode == 128 + signal.SIGUSR1, printed
    assert "goes on from here" in printed and not list(output.glob("hpc_ckpt*"))
    assert log.read_text() == f"requeue {os.getpid()}\n"
    again = subprocess.run(**start, timeout=240)
    assert again.returncode == 0, again.stdout
    assert log.read_text().count("requeue") == 1
    assert_same_end(reference, output)
    assert epochs_of(output) == epochs_of(reference) == list(range(4))


def slurm(folder: Path) -> dict[str, str]:
    """The environment of a job of one node with two tasks, whose commands are the stand-ins."""
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "speech", "SLURM_NNODES": "1", "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
