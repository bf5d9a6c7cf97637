"""`train.py` as it is typed: train, resume, several processes, and what it refuses."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from conftest import CORPUS, ROOT, TINY

import train
from models import DeepSpeech2, Recognizer
from utils.checkpoint import CheckpointError, newest_checkpoint
from utils.cli import UsageError
from utils.files import write_whole

DATA = [f"--data_root={CORPUS}", "--train_sets", "train", "--val_sets", "dev", "test", "--test_sets", "test"]
RUN = ["-g", "0", "-w", "0", "--batch_size", "5", "--warmup_steps", "2", "--logger", "none", "--no-progress_bar"]


def arguments(output: Path, *more: str, model: str = "deepspeech2") -> list[str]:
    small = [f"--{name}={value}" for name, value in TINY[model].items()]
    return ["-m", model, *small, *DATA, *RUN, f"--output_dir={output}", f"--cache_dir={output.parent / 'cache'}", *more]


def run(*argv: str) -> subprocess.CompletedProcess:
    """`python train.py`, in a process of its own, as a user starts it."""
    return subprocess.run([sys.executable, "train.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=200)


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The output folder of three epochs, in this process."""
    output = tmp_path_factory.mktemp("run") / "unbroken"
    train.main(arguments(output, "--epochs", "3", "--logger", "csv", "--speed_perturb", "0.9", "1.1"))
    return output


def test_a_run_leaves_its_results(unbroken):
    results = json.loads((unbroken / "results.json").read_text())["test"]
    assert results["utterances"] == 5 and results["words"] == 27
    assert results["wer"] == results["errors"] / results["words"]
    assert Path(results["checkpoint"]).is_file()
    assert (unbroken / "checkpoints" / "best.ckpt").resolve() == Path(results["checkpoint"]).resolve()
    history = [json.loads(line) for line in (unbroken / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    logged = {"train/loss", "train/grad_norm", "train/audio_seconds_per_second", "train/padding", "learning_rate",
              "dev/wer", "dev/cer", "dev/loss", "test/wer"}
    assert logged <= history[-1].keys()
    assert "reference" in (unbroken / "samples" / "samples.txt").read_text()
    assert (unbroken / "samples" / "posteriors.png").stat().st_size > 10_000


def test_the_last_checkpoint_is_the_last(tmp_path):
    """Five epochs, of which three are kept as the best: the last one is kept besides, whatever its dev WER."""
    train.main(arguments(tmp_path / "run", "--epochs", "5"))
    kept = list((tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"))
    assert len(kept) == 3
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 4


def test_the_configuration_is_kept(unbroken):
    kept = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert kept["epochs"] == 3 and kept["rnn_size"] == 16 and kept["precision"] == "32-true"
    checkpoint = torch.load(unbroken / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["recognizer"]["rnn_size"] == 16
    assert not [value for value in checkpoint["recognizer"].values() if not isinstance(value, int | float | str)]


@pytest.mark.parametrize(("model", "more"), [
    ("deepspeech2", ["--rnn_type", "gru"]), ("deepspeech2", ["--rnn_type", "lstm"]),
    ("deepspeech2", ["--rnn_type", "mingru", "--ema_decay", "0.9"]),
    ("las", ["--sampling_rate", "0.5", "--sampling_ramp", "4", "--guided_weight", "1", "--ema_decay", "0.9"]),
], ids=["gru", "lstm", "mingru", "las"])
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path, model, more):
    """Bit for bit: weights, average and optimiser, with all that is random in training at work."""
    flags = ["--epochs", "3", "--speed_perturb", "0.9", "1.1", *more]
    whole = tmp_path / "whole"
    train.main(arguments(whole, *flags, model=model))
    first = next((whole / "checkpoints").glob("epoch000*.ckpt"))
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", str(first), model=model))
    expected, found = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
                       for folder in (whole, tmp_path / "resumed"))
    assert found["epoch"] == expected["epoch"] == 2
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name
    states = [(kept["optimizer_states"][0]["state"], kept.get("current_model_state", {})) for kept in (expected, found)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("model", "workers"), [("deepspeech2", "2"), ("las", "0")])
def test_a_run_resumed_within_an_epoch_ends_as_the_unbroken_one(tmp_path, model, workers):
    """From step 10, the second of four in the last epoch, bit for bit."""
    flags = ["--epochs", "3", "--batch_size", "3", "--speed_perturb", "0.9", "1.1", "--ema_decay", "0.9", "-w", workers]
    train.main(arguments(tmp_path / "whole", *flags, "--checkpoint_every", "5", model=model))
    periodic = tmp_path / "whole" / "checkpoints" / "periodic.ckpt"
    assert torch.load(periodic, weights_only=True)["global_step"] == 10
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", str(periodic), model=model))
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
              for name in ("whole", "resumed")]
    assert states[0]["global_step"] == states[1]["global_step"] == 12
    for part in ("current_model_state", "state_dict"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    optimizers = [state["optimizer_states"][0]["state"] for state in states]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)


def test_auto_begins_anew_where_there_is_nothing(tmp_path, capsys):
    """So that a scheduler can repeat one command from the start."""
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--checkpoint_path", "auto"))
    assert "no checkpoint yet, so this run begins anew" in capsys.readouterr().out


@pytest.mark.parametrize(("processes", "kills"), [
    (1, 3), pytest.param(1, 20, marks=pytest.mark.long), pytest.param(2, 20, marks=pytest.mark.long)])
def test_killed_again_and_again_it_ends_as_the_unbroken_one(tmp_path, processes, kills):
    """kill -9 at moments that chance chooses; the same command goes on each time. Bit for bit."""
    random = Random(0)
    flags = ["--epochs", str(max(12, kills)), "--batch_size", "3", "--cpu_processes", str(processes),
             "--ema_decay", "0.9", "--speed_perturb", "0.9", "1.1", "--checkpoint_every", "1",
             "--checkpoint_path", "auto", "--test_sets"]
    whole, killed = arguments(tmp_path / "whole", *flags), arguments(tmp_path / "killed", *flags)
    assert run(*whole).returncode == 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "train.py", *killed], cwd=ROOT, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = steps_of(tmp_path / "killed")
        deadline = time.monotonic() + 100
        while steps_of(tmp_path / "killed") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3 * random.random())
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run(*killed)
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
              for name in ("whole", "killed")]
    assert states[0]["global_step"] == states[1]["global_step"]
    for part in ("current_model_state", "state_dict"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def test_terminated_it_saves_and_goes_on_exactly(tmp_path):
    """SIGTERM in the middle of an epoch, as a scheduler sends it: no step is lost."""
    flags = ["--epochs", "8", "--batch_size", "2", "--ema_decay", "0.9", "--speed_perturb", "0.9", "1.1", "--test_sets"]
    whole, cut = arguments(tmp_path / "whole", *flags), arguments(tmp_path / "cut", *flags)
    process = subprocess.Popen([sys.executable, "train.py", *cut], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("epoch   1"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    if "goes on from here" in rest:  # else the signal came after the last batch of an epoch, and that was saved
        assert (tmp_path / "cut" / "checkpoints" / "periodic.ckpt").is_file()
    assert process.returncode == train.TERMINATED
    for command in (whole, [*cut, "--checkpoint_path", "auto"]):  # processes like the first, with as many threads
        assert run(*command).returncode == 0
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")]
    torch.testing.assert_close(states[0]["current_model_state"], states[1]["current_model_state"], rtol=0, atol=0)


def steps_of(run: Path) -> int:
    """When the run's newest checkpoint was written, in nanoseconds; 0 where there is none."""
    return max((path.stat().st_mtime_ns for path in (run / "checkpoints").glob("*.ckpt") if path.exists()), default=0)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "x.ckpt").write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x.ckpt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"] and (tmp_path / "x.ckpt").read_bytes() == b"old"


def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "last.ckpt"))

    monkeypatch.setattr("utils.callbacks.write_whole", full)
    with pytest.raises(SystemExit):
        train.main(arguments(tmp_path / "run", "--epochs", "1"))
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("last.ckpt: No space left on device")


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
    assert all(value.isfinite().all() for value in weights(tmp_path / "run" / "checkpoints" / "last.ckpt").values())


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


def test_auto_passes_over_what_cannot_be_read(unbroken, tmp_path, capsys):
    """A checkpoint that was cut off; and steps decide, not the clock."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(unbroken / "checkpoints", folder, symlinks=True)
    first = next(folder.glob("epoch000*.ckpt"))
    os.utime(first)  # the newest by the clock
    (folder / "periodic.ckpt").write_bytes(first.read_bytes()[:5000])
    found = newest_checkpoint(folder)
    assert torch.load(found, weights_only=True)["epoch"] == 2
    assert "passed over" in (error := capsys.readouterr().err) and "periodic.ckpt" in error


def test_evaluation_sees_the_averaged_weights(tmp_path):
    args = train.parse_arguments(arguments(tmp_path / "run", "--epochs", "2", "--ema_decay", "0.9"))
    trainer, _ = train.train(args)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    name = "network.project.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    assert torch.equal(checkpoint["state_dict"][name], trainer.lightning_module.state_dict()[name])


def test_auto_takes_the_newest_checkpoint(unbroken):
    args = train.parse_arguments(arguments(unbroken, "--checkpoint_path", "auto"))
    assert train.resume_path(args, train.build_network(args)) == str(unbroken / "checkpoints" / "last.ckpt")


def test_resuming_another_network_is_refused(unbroken):
    args = train.parse_arguments(arguments(unbroken, "--checkpoint_path", "auto", "--rnn_type", "lstm"))
    with pytest.raises(UsageError, match="--rnn_type was 'gru', is 'lstm'"):
        train.resume_path(args, train.build_network(args))


@pytest.mark.parametrize("model", ["deepspeech2", "las"])
def test_two_processes_are_one(tmp_path, model):
    """One step on one global batch, cut in two or not: the same weights, and the same dev and test metrics.

    DDP itself refuses a parameter that a step leaves without a gradient.
    """
    still = ["--epochs", "1", "--dropout", "0", "--freq_masks", "0", "--time_masks", "0", "--warmup_steps", "0"]
    one = run(*arguments(tmp_path / "one", *still, "--batch_size", "10", model=model))
    two = run(*arguments(tmp_path / "two", *still, "--batch_size", "5", "--cpu_processes", "2", model=model))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    expected, found = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    histories = [json.loads((tmp_path / name / "history.jsonl").read_text()) for name in ("one", "two")]
    for metric in ("dev/wer", "dev/cer", "test/wer"):
        assert histories[0][metric] == histories[1][metric]
    assert histories[0]["dev/loss"] == pytest.approx(histories[1]["dev/loss"], rel=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("one", "two")]
    for metric in ("wer", "cer", "errors", "words", "utterances"):
        assert results[0][metric] == results[1][metric]
    assert two.stdout.count("test set") == 1


def test_comet_writes_one_archive_for_two_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    done = run(*arguments(tmp_path / "run", "--epochs", "1", "--logger", "comet", "--log_every", "1",
                          "--cpu_processes", "2"))
    assert done.returncode == 0, done.stderr
    archive, = (tmp_path / "run" / "comet").glob("*.zip")
    assert f"comet upload {archive}" in done.stdout
    with zipfile.ZipFile(archive) as content:
        messages = b"".join(content.read(name) for name in content.namelist() if name.endswith("messages.json"))
    for logged in (b"dev/wer", b"train/grad_norm", b"posteriors", b"samples-", b"git_revision"):
        assert logged in messages, logged


def test_fast_dev_run_keeps_nothing(tmp_path):
    train.main(arguments(tmp_path / "run", "--fast_dev_run"))
    assert not list((tmp_path / "run").glob("**/*.ckpt"))


def test_overfit_validates_on_what_it_trains_on(tmp_path):
    args = train.parse_arguments(arguments(tmp_path / "run", "--overfit_batches", "1", "--epochs", "2"))
    trainer, _ = train.train(args)
    assert trainer.datamodule.val_sets == ["train"]
    assert trainer.num_training_batches == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
def test_precisions(tmp_path, precision):
    """A whole run in each precision that a CPU has; the checkpoint transcribes in float32."""
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--precision", precision))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["utterances"] == 5
    network = Recognizer.from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert len(network.transcribe([torch.randn(16_000)])) == 1


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_local_loggers(tmp_path, logger):
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--logger", logger, "--test_sets"))
    assert list((tmp_path / "run" / logger).rglob("events*" if logger == "tensorboard" else "metrics.csv"))


def test_print_model_counts_parameters(capsys):
    train.main(["--config", str(ROOT / "configs" / "deepspeech2_assemblyai.yaml"), "--print_model"])
    assert capsys.readouterr().out.endswith("14,233,053 parameters\n")


def test_every_config_is_accepted_and_states_its_command():
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        train.build_network(train.parse_arguments(["--config", str(config)]))
        assert config.read_text().startswith(("# python train.py --config configs/" + config.name, "# make demo"))


def test_the_command_line_wins_over_the_config(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("epochs: 7\nlearning_rate: 3e-4\nbidirectional: false\nspeed_perturb: [0.9, 1.1]\n")
    args = train.parse_arguments(["--config", str(config), "--epochs", "9"])
    assert (args.epochs, args.learning_rate, args.bidirectional) == (9, 3e-4, False)
    assert args.speed_perturb == [0.9, 1.1] and args.output_dir == "runs/x"


@pytest.mark.parametrize(("content", "message"), [
    ("epoch: 7", "epoch: no such flag"),
    ("epochs: many", "epochs: invalid positive_int value: 'many'"),
    ("epochs: 0", "epochs: 0 must be at least 1"),
    ("epochs: 1.5", "epochs: invalid positive_int value"),
    ("epochs: true", "epochs: True is not a value"),
    ("epochs:", "epochs: None is not a value"),
    ("epochs: [1, 2]", "epochs: takes one value"),
    ("rnn_type: rnn", "rnn_type: invalid choice: 'rnn'"),
    ("bidirectional: 1", "bidirectional: must be true or false"),
    ("model: hmm", "model: 'hmm' is none of"),
    ("- epochs", "must hold one"),
    ("a: [", "not YAML"),
    ("", "must hold one"),
])
def test_a_wrong_config_is_named(tmp_path, content, message):
    config = tmp_path / "x.yaml"
    config.write_text(content)
    with pytest.raises(UsageError) as error:
        train.parse_arguments(["--config", str(config)])
    assert message in str(error.value) and str(config) in str(error.value)


@pytest.mark.parametrize(("flags", "message"), [
    (["--epochs", "0"], "--epochs: 0 must be at least 1"),
    (["--epoch", "3"], "unrecognized arguments: --epoch"),
    (["-lr", "nan"], "nan must be above 0"),
    (["--precision", "8"], "--precision: invalid choice"),
    (["-m", "hmm"], "'hmm' is none of"),
    (["--config", "no.yaml"], "no.yaml: No such file"),
    (["--limit_train_batches", "1.5"], "share between 0.0 and 1.0"),
])
def test_a_wrong_flag_is_named(flags, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        train.parse_arguments(flags)


@pytest.mark.parametrize(("flags", "message"), [
    (["--time_stride", "3"], "time_stride 3 must be 2 or 4"),
    (["--train_sets", "absent"], "no split 'absent' under"),
    (["--checkpoint_path", "absent.ckpt"], "absent.ckpt: no such checkpoint file"),
    (["--checkpoint_path", str(ROOT / "README.md")], "not a checkpoint"),
    (["-db", "pigeons"], "Lightning refuses"),
])
def test_a_run_that_cannot_start_says_why_in_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", *flags))
    error = capsys.readouterr().err
    line, = [line for line in error.splitlines() if line.startswith("train.py: error:")]
    assert message in line and "Traceback" not in error


def test_a_file_that_turns_bad_stops_the_run_with_its_path(tmp_path, capsys):
    """Or is counted and left out, with --skip_bad_audio; the neighbours train on."""
    corpus = tmp_path / "corpus"
    subprocess.run(["cp", "-r", CORPUS, corpus], check=True)
    flags = ["--epochs", "1", f"--data_root={corpus}", "--test_sets"]
    train.main(arguments(tmp_path / "first", *flags))
    bad = sorted((corpus / "train").rglob("*.opus"))[0]
    keep = bad.stat()
    bad.write_bytes(b"x" * keep.st_size)  # the index still believes in it: same path, size and time
    import os

    os.utime(bad, ns=(keep.st_atime_ns, keep.st_mtime_ns))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "second", *flags))
    assert f"train.py: error: {bad}: not audio" in capsys.readouterr().err
    train.main(arguments(tmp_path / "third", *flags, "--skip_bad_audio"))
    assert f"skipped, cannot be read: {bad}" in capsys.readouterr().out


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """A checkpoint is data: nothing in it is run."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"recognizer": {"model": "deepspeech2"}, "state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="more than plain values"):
        Recognizer.from_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
