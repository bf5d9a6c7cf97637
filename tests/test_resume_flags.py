"""A run that goes on with other flags: each applies, is refused in one line, or is said to be kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_resume import break_at_step
from training_runs import arguments, checkpoint

import train
from utils.training.callbacks import EarlyStop, History

FIRST = ["--epochs", "2", "-lr", "1e-3", "--early_stop_patience", "50"]


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run of two epochs."""
    train.main(arguments(tmp_path / "run", *FIRST, "--test_sets"))
    return tmp_path / "run"


def history(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def refused(capsys, *flags: str) -> str:
    """The one line with which a run is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train.main(list(flags))
    error = capsys.readouterr().err
    line, = [line for line in error.splitlines() if line.startswith("train.py: error:")]
    assert "Traceback" not in error
    return line


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_flags_of_the_optimizer_apply(tmp_path, optimizer):
    """Learning rate, weight decay, momentum, schedule and warm-up, in checkpoint, history and config.yaml alike."""
    flags = ["--optimizer", optimizer, "--test_sets", "--warmup_steps", "0"]
    output = tmp_path / "run"
    train.main(arguments(output, *FIRST, *flags))
    train.main(arguments(output, "--epochs", "4", "-lr", "2e-7", "--weight_decay", "0.5", "--momentum", "0.3", *flags,
                         "--schedule", "noam", "--warmup_steps", "1", "--checkpoint_path", "auto"))
    matrices, others = checkpoint(output)["optimizer_states"][0]["param_groups"]
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert (matrices["momentum"] if optimizer == "sgd" else matrices["betas"][0]) == 0.3
    rates = [row["learning_rate"] for row in history(output)]
    assert rates[0] > 1e-5 and rates[2:] == pytest.approx([2e-7 / 7**0.5, 2e-7 / 9**0.5])
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert [config[name] for name in ("learning_rate", "weight_decay", "momentum", "schedule", "warmup_steps")] == [
        2e-7, 0.5, 0.3, "noam", 1]


@pytest.mark.parametrize("schedule", ["cosine", "noam", "onecycle"])
def test_larger_batches_without_warmup(tmp_path, schedule):
    """As many steps per epoch as there are batches, of 2 and then of 5 utterances."""
    flags = ["--warmup_steps", "0", "--schedule", schedule, "--test_sets"]
    train.main(arguments(tmp_path / "run", *flags, "--epochs", "2", "--batch_size", "2"))
    train.main(arguments(tmp_path / "run", *flags, "--epochs", "4", "--batch_size", "5", "--checkpoint_path", "auto"))
    state, = checkpoint(tmp_path / "run")["lr_schedulers"]
    assert state["last_epoch"] == 2 * 5 + 2 * 2 and state["last_epoch"] + state["offset"] == 4 * 2


def test_another_optimizer_is_refused(run, capsys):
    before = (run / "config.yaml").read_text()
    line = refused(capsys, *arguments(run, "--epochs", "4", "--optimizer", "sgd", "--checkpoint_path", "auto"))
    assert "--optimizer was 'adamw', is 'sgd'" in line and "last.ckpt" in line
    assert (run / "config.yaml").read_text() == before, "it states a run that was not"


def test_fewer_epochs_are_refused(run, capsys):
    line = refused(capsys, *arguments(run, "--epochs", "1", "--checkpoint_path", "auto"))
    assert "--epochs 1:" in line and "last.ckpt stands after epoch 2 already" in line
    assert not (run / "results.json").exists()


def test_fewer_epochs_than_the_one_under_way_are_refused(tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        break_at_step(patch, 9)
        train.main(arguments(output, "--epochs", "3", "--batch_size", "3", "--checkpoint_every", "1"))
    line = refused(capsys, *arguments(output, "--epochs", "2", "--batch_size", "3", "--checkpoint_path", "auto"))
    assert "periodic.ckpt stands in epoch 3 already" in line


def test_as_many_epochs_elsewhere_are_refused(run, tmp_path, capsys):
    """No network's results under the name of another run; with more epochs it is a run of its own."""
    path = str(run / "checkpoints" / "last.ckpt")
    flags = arguments(tmp_path / "new", "--train_sets", "dev", "--checkpoint_path", path)
    line = refused(capsys, *flags, "--epochs", "2")
    assert f"--epochs 2: {path} has trained as many" in line
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    train.main([*flags, "--epochs", "3"])
    results = json.loads((tmp_path / "new" / "results.json").read_text())["test"]
    assert results["checkpoint"].startswith("checkpoints/epoch002")


def test_a_finished_run_says_so_and_tests_again(run, capsys):
    train.main(arguments(run, *FIRST, "--checkpoint_path", "auto"))
    assert "last.ckpt: all 2 epochs are trained" in capsys.readouterr().out
    assert (run / "results.json").is_file()


def test_checkpoints_of_two_runs_are_not_mixed(run, tmp_path, capsys):
    other = tmp_path / "other"
    train.main(arguments(other, "--epochs", "1", "--test_sets"))
    path = str(run / "checkpoints" / "last.ckpt")
    line = refused(capsys, *arguments(other, "--epochs", "4", "--checkpoint_path", path))
    assert "holds the checkpoints of an earlier run" in line
    train.main(arguments(run, "--epochs", "3", "--test_sets", "--checkpoint_path", path))  # its own, by name


def test_the_average_that_is_given_up_is_named(tmp_path, capsys):
    output = tmp_path / "run"
    train.main(arguments(output, "--epochs", "1", "--ema_decay", "0.9", "--test_sets"))
    train.main(arguments(output, "--epochs", "2", "--test_sets", "--checkpoint_path", "auto"))
    assert "training goes on from the moving average of the weights" in capsys.readouterr().out
    train.main(arguments(output, "--epochs", "3", "--ema_decay", "0.9", "--test_sets", "--checkpoint_path", "auto"))
    said = capsys.readouterr()
    assert "the moving average of the weights begins here" in said.out and "Warn" not in said.err


def test_patience_applies(tmp_path, capsys):
    """Of 3 epochs without a lower val WER; then more patience trains on, and the same does not."""
    flags = ["--epochs", "9", "-lr", "1e-9", "--test_sets", "--checkpoint_path", "auto"]
    output = tmp_path / "run"
    for patience, epochs in (("3", 4), ("3", 4), ("5", 6), ("1", 7)):
        train.main(arguments(output, *flags, "--early_stop_patience", patience))
        assert len(history(output)) == epochs
        assert f"no lower val WER for {patience} epochs: training ends" in capsys.readouterr().out


@pytest.mark.parametrize(("rates", "over"), [
    ([], False), ([0.5], False), ([0.5, 0.6], False), ([0.5, 0.6, 0.7], True), ([0.5, 0.5, 0.5], True),
    ([0.5, 0.6, 0.4, 0.5], False), ([0.3, 0.4, 0.2, 0.2, 0.2], True)])
def test_patience_counts_epochs_since_the_best(tmp_path, rates, over):
    """Rows of other validation sets, and half a line, do not count."""
    rows = [{"epoch": i, "dev/wer": rate, "val/wer": rate, "val/loss": 1.0} for i, rate in enumerate(rates)]
    others = [{"epoch": 0, "test/wer": 0.1, "dev/wer": 0.1, "val/wer": 0.1}, {"epoch": 1, "x/wer": 0, "val/wer": 0}]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*others, *rows]) + '{"epoch": 9, "dev/wer"')
    trainer = SimpleNamespace(datamodule=SimpleNamespace(val_sets=["dev"]), is_global_zero=True, should_stop=False,
                              strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision))
    EarlyStop(History(path), patience=2).on_train_epoch_end(trainer, None)
    assert trainer.should_stop == over


@pytest.mark.parametrize(("flags", "message"), [
    (["--limit_train_batches", "0"], "0 must be above 0"),
    (["--limit_train_batches", "0.0"], "0.0 must be above 0"),
    (["--limit_train_batches", "0.1"], "--limit_train_batches 0.1 of 2 batches is less than one"),
    (["--overfit_batches", "0.1"], "--overfit_batches 0.1 of 2 batches is less than one"),
])
def test_no_batch_at_all_is_refused(tmp_path, capsys, flags, message):
    assert message in refused(capsys, *arguments(tmp_path / "run", *flags))
    assert not (tmp_path / "run" / "config.yaml").exists()
