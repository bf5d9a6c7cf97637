"""Faults of machines, disks and data in the middle of a run: what is said, what is kept, and that it goes on."""

import errno
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch
from conftest import CORPUS, ROOT
from training_runs import arguments, assert_same_end, checkpoint, run, start, wait_for, weights

import train
from models import DeepSpeech2
from models.lightning_module import SpeechModule
from utils.files.atomic import atomic_write


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "x.ckpt").write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "x.ckpt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"] and (tmp_path / "x.ckpt").read_bytes() == b"old"


def in_small_disk(folder: Path, size: str, *commands: str) -> subprocess.CompletedProcess:
    """Runs shell commands with `folder` on a file system in memory, of that size, which nobody else sees."""
    folder.mkdir()
    mounted = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mounted]).returncode:
        pytest.skip("no small file system can be mounted here (needs root)")
    script = "\n".join([mounted, *commands])
    return subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=200)


def command(script: str, *argv: str) -> str:
    """A line of shell."""
    return shlex.join([sys.executable, script, *argv])


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_room_lets_it_go_on(tmp_path):
    """The disk holds two of the checkpoints; each file on it is whole, and the run goes on from them."""
    flags = ["--epochs", "4", "--checkpoint_path", "auto"]
    disk, whole = tmp_path / "disk", arguments(tmp_path / "whole", *flags)
    filled = arguments(disk / "run", *flags, f"--cache_dir={tmp_path / 'cache'}")
    done = in_small_disk(disk, "350k", command("train.py", *filled), "echo status $?", f"ls -A {disk}/run/checkpoints",
                         f"mount -o remount,size=50m {disk}", command("train.py", *filled), "echo status $?",
                         f"cp -r {disk}/run {tmp_path}/kept")
    said = done.stdout.split()
    assert [said[i + 1] for i, word in enumerate(said) if word == "status"] == ["2", "0"], done.stdout + done.stderr
    error, = [line for line in done.stderr.splitlines() if line.startswith("train.py: error:")]
    assert "No space left on device" in error and ".ckpt" in error and "Traceback" not in done.stderr
    assert ".part" not in done.stdout and "passed over" not in done.stderr
    assert run(*whole).returncode == 0
    assert_same_end(tmp_path / "whole", tmp_path / "kept")


def test_durations_that_do_not_fit_the_disk_are_not_kept_and_the_run_goes_on(tmp_path):
    disk = tmp_path / "disk"
    flags = arguments(tmp_path / "run", "--epochs", "1", "--test_sets", f"--cache_dir={disk}/cache")
    done = in_small_disk(disk, "16k", f"head -c 1M /dev/zero > {disk}/full", command("train.py", *flags), "echo $?")
    assert done.stdout.split()[-1] == "0", done.stderr
    assert "durations are not kept" in done.stdout


def test_a_report_that_does_not_fit_the_disk_leaves_none_half_written(tmp_path):
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--test_sets"))
    disk = tmp_path / "disk"
    flags = ["--checkpoint", str(tmp_path / "run" / "checkpoints" / "best.ckpt"), f"--data_root={CORPUS}",
             "--test_sets", "test", f"--cache_dir={tmp_path / 'cache'}", "--report", str(disk / "report")]
    done = in_small_disk(disk, "8k", command("evaluate.py", *flags), "echo status $?", f"find {disk}/report -type f")
    assert "status 2" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert "report.html" not in done.stdout


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    disk = tmp_path / "disk"
    done = in_small_disk(disk, "1m", f"mount -o remount,ro {disk}", command("train.py", *arguments(disk / "run")),
                         "echo status $?")
    assert "status 2" in done.stdout
    assert f"train.py: error: {disk}/run: Read-only file system" in done.stderr and "Traceback" not in done.stderr


def break_loss(monkeypatch, steps) -> None:
    """The loss is not a number at these calls."""
    calls, loss = [], DeepSpeech2.loss

    def broken(network, encoding, batch):
        sums = loss(network, encoding, batch)
        calls.append(network.training)
        return {"loss": sums["loss"] * float("nan")} if network.training and sum(calls) - 1 in steps else sums

    monkeypatch.setattr(DeepSpeech2, "loss", broken)


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path, monkeypatch, capsys):
    """The weights stay finite, and a run of which every step is broken keeps the weights it began with."""
    break_loss(monkeypatch, steps={1})
    train.main(arguments(tmp_path / "run", "--epochs", "2"))
    assert "step 1 skipped, its gradient is not finite (1 so far); utterances: 9001-" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_skipped_step_of_several_batches_names_them_all(tmp_path, monkeypatch, capsys):
    """The first of the two batches is the broken one."""
    break_loss(monkeypatch, steps={0})
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--accumulate", "2", "--test_sets"))
    named = re.search(r"step 0 skipped.* utterances: (.*)", capsys.readouterr().out)[1].split()
    assert len(named) == len(set(named)) == len(list((CORPUS / "train").rglob("*.opus")))


def test_skipped_steps_leave_the_weights_as_they_were(tmp_path, monkeypatch, capsys):
    """Both steps of the only epoch; and they are named although the device was not asked at once."""
    break_loss(monkeypatch, steps={0, 1})
    flags = arguments(tmp_path / "run", "--epochs", "1", "--log_every", "2", "--test_sets")
    trainer, _ = train.train(train.parse_arguments(flags))
    assert trainer.global_step == 2 and "(2 so far)" in capsys.readouterr().out
    lightning.seed_everything(0, verbose=False)
    first = train.build_network(train.parse_arguments(flags), saved={}).state_dict()
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, first[name.removeprefix("network.")]), name
    moments = checkpoint(tmp_path / "run")["optimizer_states"][0]["state"].values()
    assert not any(state["exp_avg"].any() or state["step"] for state in moments)


def test_a_run_of_broken_steps_ends_in_one_line(tmp_path, monkeypatch, capsys):
    break_loss(monkeypatch, steps=range(100))
    with pytest.raises(SystemExit):
        train.main(arguments(tmp_path / "run", "--epochs", "9", "--batch_size", "2"))
    error = capsys.readouterr().err
    assert "10 steps in a row had a gradient that is not finite" in error and "--learning_rate" in error


def test_full_memory_names_the_batch_and_the_flag(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DeepSpeech2, "loss", full)
    with pytest.raises(SystemExit):
        train.main(arguments(tmp_path / "run", "--epochs", "1"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: error: the device's memory is full at a batch of 5 utterances")
    assert "--batch_seconds" in error


def test_a_file_that_turns_bad_stops_the_run_with_its_path(tmp_path, capsys):
    """Or is counted and left out, with --skip_bad_audio; the neighbours train on."""
    corpus = tmp_path / "corpus"
    subprocess.run(["cp", "-r", CORPUS, corpus], check=True)
    flags = ["--epochs", "1", f"--data_root={corpus}", "--test_sets"]
    train.main(arguments(tmp_path / "first", *flags))
    bad = sorted((corpus / "train").rglob("*.opus"))[0]
    keep = bad.stat()
    bad.write_bytes(b"x" * keep.st_size)  # the index still believes in it: same path, size and time
    os.utime(bad, ns=(keep.st_atime_ns, keep.st_mtime_ns))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "second", *flags))
    assert f"train.py: error: {bad}: not audio" in capsys.readouterr().err
    train.main(arguments(tmp_path / "third", *flags, "--skip_bad_audio"))
    assert f"skipped, cannot be read: {bad}" in capsys.readouterr().out


def at_step(monkeypatch, number: int, event) -> None:
    """Calls `event` before this optimiser step."""
    begin = SpeechModule.on_train_batch_start

    def hooked(module, batch, batch_idx):
        if module.global_step == number:
            event()
        begin(module, batch, batch_idx)

    monkeypatch.setattr(SpeechModule, "on_train_batch_start", hooked)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_disappears_within_an_epoch(tmp_path, monkeypatch, capsys, workers):
    """The run names it; with the file back in its place it goes on to the end of the unbroken run."""
    corpus = tmp_path / "corpus"
    shutil.copytree(CORPUS, corpus)
    lost = sorted((corpus / "train").rglob("*.opus"))[3]
    flags = ["--epochs", "3", f"--data_root={corpus}", "--batch_size", "1", "-w", workers, "--checkpoint_every", "1",
             "--test_sets", "--checkpoint_path", "auto"]
    with monkeypatch.context() as patch:
        at_step(patch, 12, lambda: lost.rename(corpus / "lost"))
        with pytest.raises(SystemExit, match="2"):
            train.main(arguments(tmp_path / "run", *flags))
    assert f"train.py: error: {lost}: no such file" in capsys.readouterr().err
    (corpus / "lost").rename(lost)
    for name in ("run", "whole"):
        train.main(arguments(tmp_path / name, *flags))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_data_worker_that_dies_is_named(tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda: multiprocessing.active_children()[0].kill())
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", "--epochs", "9", "--batch_size", "1", "-w", "2", "--test_sets"))
    error, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: error:")]
    assert "a process that reads audio has died" in error and "--num_workers" in error
    assert not multiprocessing.active_children()


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused, also where it would go on with the first; the first is not disturbed."""
    flags = ["--epochs", "8", "--batch_size", "1", "--test_sets"]
    first = start(*arguments(tmp_path / "run", *flags))
    wait_for(first, "epoch   0")
    second = run(*arguments(tmp_path / "run", *flags, "--checkpoint_path", "auto"))
    assert second.returncode == 2 and f"{tmp_path / 'run'} is in use by another run" in second.stderr
    output = first.communicate(timeout=300)
    assert first.returncode == 0, output


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    """By a year, in the middle of the run."""
    flags = ["--epochs", "3", "--batch_size", "2", "--checkpoint_every", "2"]
    train.main(arguments(tmp_path / "whole", *flags))
    now = time.time
    at_step(monkeypatch, 7, lambda: monkeypatch.setattr(time, "time", lambda: now() - 365 * 86400))
    train.main(arguments(tmp_path / "run", *flags))
    assert_same_end(tmp_path / "run", tmp_path / "whole")
