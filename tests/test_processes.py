"""Several processes: the gradient, the error rates and the end of a run are those of one."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from test_resume import child_of
from training_runs import arguments, checkpoint, run, run_together, start, wait_for

STILL = ["--dropout", "0", "--freq_masks", "0", "--time_masks", "0", "--warmup_steps", "0", "--epochs", "1"]


@pytest.mark.parametrize("model", ["deepspeech2", "las"])
def test_two_processes_are_one(tmp_path, model):
    """One step on one global batch, cut over processes, over accumulated batches, or not: the same gradient.

    AdamW's first moment after one step is a tenth of it. Dev and test metrics are the same to the last error,
    and DDP itself refuses a parameter that a step leaves without a gradient.
    """
    cuts = {"whole": (1, ["--batch_size", "10"]),
            "processes": (2, ["--batch_size", "5"]),
            "accumulated": (1, ["--batch_size", "5", "--accumulate", "2"]),
            "both": (2, ["--batch_size", "3", "--accumulate", "2"])}
    for name, (processes, flags) in cuts.items():
        done = run_together(processes, *arguments(tmp_path / name, *STILL, "--grad_clip", "0", *flags, model=model))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test set") == 1
    whole = checkpoint(tmp_path / "whole")
    assert whole["global_step"] == 1
    for name in cuts:
        cut = checkpoint(tmp_path / name)
        assert cut["global_step"] == 1
        gradients = [{i: state["exp_avg"] for i, state in kept["optimizer_states"][0]["state"].items()}
                     for kept in (whole, cut)]
        largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
        for i, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][i], gradient, atol=1e-5 * largest, rtol=1e-3, msg=f"{name} {i}")
        for metric in ("val/loss", "val/wer", "val/cer", "test/wer"):
            expected, found = (history(tmp_path / run_name)[metric] for run_name in ("whole", name))
            assert found == pytest.approx(expected, rel=1e-4 if "loss" in metric else 1e-9), (name, metric)


def history(output) -> dict:
    """The metrics of a run's last epoch."""
    return json.loads((output / "history.jsonl").read_text().splitlines()[-1])


def test_error_rates_do_not_depend_on_the_number_of_processes(tmp_path):
    """1, 2 and 3 processes over 5 dev and 5 test utterances, of a network that has hardly learnt: many errors."""
    results = []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        done = run_together(processes, *arguments(output, *STILL, "-lr", "1e-12", "--batch_size", "2"))
        assert done.returncode == 0, done.stderr
        results.append({**json.loads((output / "results.json").read_text())["test"], "checkpoint": ""})
        results[-1]["dev"] = history(output)["val/wer"]
    assert results[0] == results[1] == results[2] and results[0]["utterances"] == 5 and results[0]["errors"] > 20


@pytest.mark.parametrize("whom", ["child", "first"])
def test_a_process_that_dies_takes_the_run_down(tmp_path, whom):
    """Within seconds, with the cause on the screen; and the run goes on."""
    flags = arguments(tmp_path / "run", "--epochs", "40", "--batch_size", "1", "--cpu_processes", "2",
                      "--checkpoint_every", "5", "--test_sets")
    process = start(*flags)
    wait_for(process, "epoch   0")
    child = child_of(process.pid)
    started = time.monotonic()
    os.kill(child if whom == "child" else process.pid, signal.SIGKILL)
    output = "".join(process.communicate(timeout=180))  # the child holds the screen too, so both have ended
    while is_running(child) and time.monotonic() - started < 30:  # it closes its files before it is gone
        time.sleep(0.01)
    assert time.monotonic() - started < 30
    assert "the connection to another process of the run broke" in output and "--checkpoint_path auto" in output
    assert process.returncode != 0 and not is_running(child)
    resumed = run(*flags, "--epochs", "2", "--checkpoint_path", "auto")
    assert resumed.returncode == 0, resumed.stderr


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False
