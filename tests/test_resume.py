"""A run that is stopped, in whatever way and wherever, and goes on: it ends as the run that never was."""

import json
import os
import signal
import time
from pathlib import Path
from random import Random

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from training_runs import arguments, assert_same_end, checkpoint, run, run_together, start, wait_for

import train
from data.sampler import BatchConfig
from models.lightning_module import SpeechModule
from utils.checkpoint.reading import newest_checkpoint, original_of

AUGMENTED = ["--speed_perturb", "0.9", "1.1"]
NETWORKS = {  # every kind of recurrence, and all that is random in training
    "gru": ("deepspeech2", ["--rnn_type", "gru"]),
    "lstm": ("deepspeech2", ["--rnn_type", "lstm"]),
    "mingru": ("deepspeech2", ["--rnn_type", "mingru", "--ema_decay", "0.9"]),
    "las": ("las", ["--scheduled_sampling", "0.5", "--scheduled_sampling_steps", "4", "--guided_weight", "1",
                    "--ema_decay", "0.9"]),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path, network):
    """From the end of an epoch."""
    model, more = NETWORKS[network]
    flags = ["--epochs", "3", *AUGMENTED, *more]
    train.main(arguments(tmp_path / "whole", *flags, model=model))
    first = next((tmp_path / "whole" / "checkpoints").glob("epoch000*.ckpt"))
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", str(first), model=model))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize(("network", "more"), [
    ("gru", ["-w", "2"]), ("las", ["--accumulate", "2", "--checkpoint_every", "3"]),
    ("gru", ["--train_sets", "train*1.5", "dev*0.5"]), ("lstm", ["-w", "2", "--train_sets", "train*0.7", "dev*2"]),
    ("lstm", ["--gradient_checkpointing"]), ("mingru", ["--deterministic"])], ids=str)
def test_a_run_resumed_within_an_epoch_ends_as_the_unbroken_one(tmp_path, network, more):
    """From between the steps of an epoch."""
    model, options = NETWORKS[network]
    flags = ["--epochs", "3", "--batch_size", "3", *AUGMENTED, *options, "--checkpoint_every", "5", *more]
    train.main(arguments(tmp_path / "whole", *flags, model=model))
    periodic = checkpoint(tmp_path / "whole", "periodic")
    assert periodic["LibriSpeechDataModule"]["segments"], "not within an epoch"
    path = tmp_path / "whole" / "checkpoints" / "periodic.ckpt"
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", str(path), model=model))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")


def record_utterances(monkeypatch) -> list[tuple[int, list[str]]]:
    """The epoch and the utterances of each training batch from now on."""
    seen, begin = [], SpeechModule.on_train_batch_start

    def recorded(module, batch, batch_idx):
        seen.append((module.current_epoch, batch.ids))
        begin(module, batch, batch_idx)

    monkeypatch.setattr(SpeechModule, "on_train_batch_start", recorded)
    return seen


def test_an_epoch_goes_on_in_other_batches(tmp_path, monkeypatch, capsys):
    """Stopped at step 10, two batches of three utterances into epoch 2, and resumed with batches of two."""
    seen = record_utterances(monkeypatch)
    flags = ["--epochs", "5", "--learning_rate", "1e-3"]
    with pytest.raises(SystemExit):
        break_at_step(monkeypatch, 10)
        train.main(arguments(tmp_path / "run", *flags, "--batch_size", "3", "--checkpoint_every", "1"))
    monkeypatch.undo()
    resumed = record_utterances(monkeypatch)
    capsys.readouterr()
    train.main(arguments(tmp_path / "run", *flags, "--batch_size", "2", "--checkpoint_path", "auto"))
    assert ("going on within epoch 2 with 1 process with --batch_size 2; it was 1 process with --batch_size 3"
            in capsys.readouterr().out)
    before = [id for epoch, ids in seen[:10] if epoch == 2 for id in ids]
    after = [id for epoch, ids in resumed if epoch == 2 for id in ids]
    everything = sorted(id for epoch, ids in seen if epoch == 0 for id in ids)
    assert len(before) > 0 < len(after) and sorted(before + after) == everything
    for epoch in (3, 4):
        assert sorted(id for e, ids in resumed if e == epoch for id in ids) == everything
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(5))
    rates = [row["learning_rate"] for row in history]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(1e-5, rel=0.3), "the schedule's floor"


def break_at_step(monkeypatch, steps: int) -> None:
    """The run meets an error of the machine at this optimiser step."""
    step = SpeechModule.training_step

    def broken(module, batch, batch_idx):
        if module.global_step == steps:
            raise OSError(5, "Input/output error")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(SpeechModule, "training_step", broken)


def test_an_epoch_goes_on_in_fewer_processes(tmp_path, monkeypatch):
    """Four of five batches of two processes, then the rest by one."""
    flags = ["--batch_size", "1", "--checkpoint_every", "4", "--test_sets"]
    done = run_together(2, *arguments(tmp_path / "two", *flags, "--epochs", "1"))
    assert done.returncode == 0, done.stderr
    (*config, batches), = checkpoint(tmp_path / "two", "periodic")["LibriSpeechDataModule"]["segments"]
    assert BatchConfig(*config).processes == 2 and batches == 4
    resumed = record_utterances(monkeypatch)
    path = str(tmp_path / "two" / "checkpoints" / "periodic.ckpt")
    train.main(arguments(tmp_path / "one", *flags, "--epochs", "2", "--checkpoint_path", path))
    assert [len([id for epoch, ids in resumed if epoch == e for id in ids]) for e in (0, 1)] == [2, 10]


def test_the_mean_of_the_last_epochs_is_the_same(tmp_path, monkeypatch):
    """Stopped at the beginning of the last epoch of four."""
    flags = ["--epochs", "4", "--average_last", "2", "--test_sets", "--checkpoint_path", "auto"]
    train.main(arguments(tmp_path / "whole", *flags))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        break_at_step(patch, 6)
        train.main(arguments(tmp_path / "cut", *flags))
    train.main(arguments(tmp_path / "cut", *flags))
    whole, cut = (checkpoint(tmp_path / name, "averaged")["state_dict"] for name in ("whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


@pytest.mark.parametrize(("flags", "message"), [
    (["--seed", "1"], "within an epoch that --seed 0 shuffled"),
    (["--train_sets", "train", "dev"], "within an epoch of other training utterances"),
    (["--train_sets", "train*2"], "of other factors of --train_sets"),
    (["--speed_perturb", "0.5", "1.0"], "or of another --speed_perturb"),
    (["--speed_perturb", "1.0", "1.1"], "or of another --speed_perturb"),
    (["--batch_size", "2", "--limit_train_batches", "3"], "--limit_train_batches"),
    (["--batch_size", "1", "--cpu_processes", "1"], ""),
])
def test_an_epoch_that_cannot_go_on_is_refused(tmp_path, capsys, flags, message):
    flags = ["--epochs", "2", "--batch_size", "3", "--checkpoint_every", "2", *flags]
    first = [*flags[:6]]
    train.main(arguments(tmp_path / "first", *first))
    path = str(tmp_path / "first" / "checkpoints" / "periodic.ckpt")
    capsys.readouterr()
    if not message:
        train.main(arguments(tmp_path / "second", *flags, "--checkpoint_path", path))
        return
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "second", *flags, "--checkpoint_path", path))
    assert message in capsys.readouterr().err


def test_other_factors_apply_from_the_next_epoch(tmp_path, monkeypatch):
    """Where the checkpoint stands at the end of an epoch."""
    flags = ["--batch_size", "3", "--test_sets"]
    train.main(arguments(tmp_path / "run", *flags, "--epochs", "1"))
    resumed = record_utterances(monkeypatch)
    more = ["--epochs", "2", "--train_sets", "train*2", "--checkpoint_path", "auto"]
    train.main(arguments(tmp_path / "run", *flags, *more))
    assert {epoch for epoch, _ in resumed} == {1}
    ids = sorted(id for _, ids in resumed for id in ids)
    assert len(ids) == 20 and ids[::2] == ids[1::2] and len(set(ids)) == 10


def test_auto_begins_anew_where_there_is_nothing(tmp_path, capsys):
    """So that a scheduler can repeat one command from the start."""
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--checkpoint_path", "auto"))
    assert "no checkpoint yet, so this run begins anew" in capsys.readouterr().out


def test_the_gradient_scaler_goes_on(tmp_path, monkeypatch):
    """Float16 with a scale that grows every second step, as on a GPU."""
    build = lightning.Trainer

    def with_scaler(*, precision, plugins, **options):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return build(plugins=[*plugins, MixedPrecision("16-mixed", "cpu", scaler)], **options)

    monkeypatch.setattr(lightning, "Trainer", with_scaler)
    flags = ["--epochs", "3", "--batch_size", "3", "--checkpoint_every", "5"]
    train.main(arguments(tmp_path / "whole", *flags))
    kept = checkpoint(tmp_path / "whole", "periodic")["MixedPrecision"]
    assert kept["scale"] > 4.0
    path = str(tmp_path / "whole" / "checkpoints" / "periodic.ckpt")
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", path))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")
    assert (checkpoint(tmp_path / "whole")["MixedPrecision"] == checkpoint(tmp_path / "resumed")["MixedPrecision"])


@pytest.mark.parametrize(("network", "processes", "kills"), [
    ("gru", 1, 2),
    *(pytest.param(network, processes, 20, marks=pytest.mark.long) for network in NETWORKS for processes in (1, 2))])
def test_killed_again_and_again_it_ends_as_the_unbroken_one(tmp_path, network, processes, kills):
    """kill -9 at moments that chance chooses; the same command goes on each time."""
    random = Random(0)
    model, more = NETWORKS[network]
    flags = ["--epochs", str(max(12, kills)), "--batch_size", "3", "--cpu_processes", str(processes), *AUGMENTED, *more,
             "--checkpoint_every", "1", "--checkpoint_path", "auto", "--test_sets"]
    whole, killed = (arguments(tmp_path / name, *flags, model=model) for name in ("whole", "killed"))
    assert run(*whole).returncode == 0
    for _ in range(kills):
        kill_within(tmp_path / "killed", *killed, seconds=0.3 * random.random())
    done = run(*killed)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    history = [json.loads(line)["epoch"] for line in (tmp_path / "killed" / "history.jsonl").read_text().splitlines()]
    assert history == list(range(max(12, kills))), "an epoch's line is lost, or there twice"
    kept = [sorted((path.name, original_of(path).name) for path in (tmp_path / name / "checkpoints").glob("*.ckpt"))
            for name in ("whole", "killed")]
    assert kept[0] == kept[1] and len(kept[0]) == 3 + len(["last", "periodic", "best"])


def kill_within(output: Path, *command: str, seconds: float) -> None:
    """Starts a run that writes to `output`, and kills it so long after its first checkpoint."""
    before, process = newest(output), start(*command)
    deadline = time.monotonic() + 100
    while newest(output) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(seconds)
    assert process.poll() is None, f"it ended before it was killed: {process.communicate(timeout=10)}"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=100)


def newest(output: Path) -> int:
    """When the run's newest checkpoint was written, in nanoseconds; 0 where there is none."""
    paths = (output / "checkpoints").glob("*.ckpt")
    return max((path.stat().st_mtime_ns for path in paths if path.exists()), default=0)


@pytest.mark.parametrize(("network", "number", "whom", "more"), [
    ("gru", signal.SIGTERM, "group", ["--cpu_processes", "2", "-w", "1"]),
    ("las", signal.SIGINT, "group", ["-w", "2", "--accumulate", "2"]),
    pytest.param("mingru", signal.SIGUSR1, "child", ["--cpu_processes", "2"], marks=pytest.mark.long),
    pytest.param("lstm", signal.SIGTERM, "first", ["-w", "2"], marks=pytest.mark.long),
    pytest.param("mingru", signal.SIGTERM, "first", ["--cpu_processes", "2"], marks=pytest.mark.long),
])
def test_told_to_end_it_saves_and_goes_on_exactly(tmp_path, network, number, whom, more):
    """As a scheduler signals every process of a run, its data workers among them, or one; or as Ctrl-C does."""
    model, options = NETWORKS[network]
    flags = ["--epochs", "4", "--batch_size", "1", *AUGMENTED, *options, *more, "--test_sets"]
    whole, cut = (arguments(tmp_path / name, *flags, model=model) for name in ("whole", "cut"))
    process = start(*cut)
    wait_for(process, "epoch   1")
    if whom == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "first" else child_of(process.pid), number)
    rest = "".join(process.communicate(timeout=180))
    assert process.returncode == 128 + number, rest
    assert f"{number.name} at step" in rest and "goes on from here" in rest and "Traceback" not in rest
    # Processes like the first, with as many threads.
    for done in (run_together(1 + ("--cpu_processes" in more), *whole), run(*cut, "--checkpoint_path", "auto")):
        assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def child_of(pid: int) -> int:
    """The process that Lightning started beside the first one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_folder_of_damaged_checkpoints_says_how_to_begin_anew(tmp_path, capsys):
    """Leaving --checkpoint_path out would be refused, for the checkpoints that are there."""
    (folder := tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(SystemExit):
        train.main(arguments(tmp_path / "run", "--checkpoint_path", "auto"))
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"train.py: error: {folder}: no checkpoint to resume from; delete its *.ckpt files, or choose another "
        "--output_dir, to start anew")
    (folder / "last.ckpt").unlink()
    train.main(arguments(tmp_path / "run", "--checkpoint_path", "auto", "--epochs", "1"))


def test_auto_passes_over_what_cannot_be_read(tmp_path, capsys):
    """A checkpoint that was cut off; and steps decide, not the clock."""
    train.main(arguments(tmp_path / "run", "--epochs", "3"))
    folder = tmp_path / "run" / "checkpoints"
    first = next(folder.glob("epoch000*.ckpt"))
    os.utime(first)  # the newest by the clock
    (folder / "periodic.ckpt").write_bytes(first.read_bytes()[:5000])
    found = newest_checkpoint(folder)
    assert torch.load(found, weights_only=True)["epoch"] == 2
    assert "passed over" in (error := capsys.readouterr().err) and "periodic.ckpt" in error
