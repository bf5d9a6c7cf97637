"""`train.py` as it is typed: what a run leaves, its flags and configs, and what it refuses."""

import itertools
import json
import os
import platform
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
import yaml
from conftest import CORPUS, ROOT, greedy_texts
from training_runs import arguments, weights

import train
from data.index import DataError
from models import Recognizer
from models.lightning_module import SpeechModule
from utils.checkpoint.reading import CheckpointError, original_of
from utils.errors import UsageError
from utils.metrics import ErrorCounts
from utils.process import find_device
from utils.training.launch import Devices
from utils.training.moving_average import MovingAverage
from utils.training.resuming import check_same_network, resume_from
from utils.training.trainer import build_trainer, choose_precision, refuse_log_scan, warn_of_slow_precision


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
    assert results["checkpoint"].startswith("checkpoints/epoch")
    assert original_of(unbroken / "checkpoints" / "best.ckpt") == unbroken / results["checkpoint"]
    history = [json.loads(line) for line in (unbroken / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    logged = {"train/loss", "train/grad_norm", "train/audio_seconds_per_second", "train/padding", "train/data_wait",
              "learning_rate", "val/wer", "val/cer", "val/loss", "test/wer"}
    assert logged <= history[-1].keys()
    assert "reference" in (unbroken / "samples" / "samples.txt").read_text()
    assert (unbroken / "samples" / "posteriors.png").stat().st_size > 10_000


def test_the_last_checkpoint_is_the_last(tmp_path):
    """Five epochs, of which three are kept as the best: the last one is kept besides, whatever its val WER."""
    train.main(arguments(tmp_path / "run", "--epochs", "5"))
    kept = list((tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"))
    assert len(kept) == 3
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 4


def test_the_configuration_is_kept(unbroken):
    kept = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert kept["epochs"] == 3 and kept["rnn_size"] == 16 and kept["precision"] == "32-true"
    flags = {action.dest for action in train.build_parser("deepspeech2")._actions} - {"help", "config"}
    assert kept.keys() == flags, "every flag is stated"
    again = vars(train.parse_arguments(["--config", str(unbroken / "config.yaml")]))
    assert {name: again[name] for name in flags} == kept
    checkpoint = torch.load(unbroken / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["recognizer"]["rnn_size"] == 16
    assert not [value for value in checkpoint["recognizer"].values() if not isinstance(value, int | float | str | None)]


def test_evaluation_sees_the_averaged_weights(tmp_path):
    args = train.parse_arguments(arguments(tmp_path / "run", "--epochs", "2", "--ema_decay", "0.9"))
    trainer, _ = train.train(args)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    name = "network.project.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    assert torch.equal(checkpoint["state_dict"][name], trainer.lightning_module.state_dict()[name])


def test_auto_takes_the_newest_checkpoint(unbroken):
    args = train.parse_arguments(arguments(unbroken, "--checkpoint_path", "auto"))
    path, saved = resume_from(args)
    assert path == str(unbroken / "checkpoints" / "last.ckpt")
    check_same_network(args, path, saved, train.build_network(args, saved))


def test_resuming_another_network_is_refused(unbroken):
    args = train.parse_arguments(arguments(unbroken, "--checkpoint_path", "auto", "--rnn_type", "lstm"))
    with pytest.raises(UsageError, match="--rnn_type was 'gru', is 'lstm'"):
        train.train(args)


def test_fast_dev_run_keeps_nothing(tmp_path):
    train.main(arguments(tmp_path / "run", "--fast_dev_run"))
    assert not list((tmp_path / "run").glob("**/*.ckpt"))


def test_overfit_validates_on_what_it_trains_on(tmp_path):
    args = train.parse_arguments(arguments(tmp_path / "run", "--overfit_batches", "1", "--epochs", "2"))
    trainer, _ = train.train(args)
    assert trainer.datamodule.val_sets == ["train"]
    assert trainer.num_training_batches == 1


def test_the_average_is_kept_on_the_training_device():
    """Lightning would copy all weights to the CPU at each step; its count on a GPU would make the host wait."""
    average, holder = MovingAverage(0.9), lightning.LightningModule()
    holder.layer = torch.nn.Linear(2, 2)
    average.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta"))), holder, "fit")
    assert {p.device.type for p in average._average_model.module.parameters()} == {"meta"}
    assert average._average_model.n_averaged.device.type == "cpu"


def test_the_average_is_that_of_its_formula():
    """The first step's weights, then a decay of (1 + n) / (10 + n) up to the given one; counters are copied."""
    holder = lightning.LightningModule()
    holder.layer = torch.nn.BatchNorm1d(1)
    average, expected = MovingAverage(0.3), None
    average.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))), holder, "fit")
    for n in range(6):
        with torch.no_grad():
            holder.layer.weight.fill_(n * n)
            holder.layer.num_batches_tracked.fill_(n)
        for _ in range(2):  # the second batch is part of the same optimiser step
            average.on_train_batch_end(SimpleNamespace(global_step=n + 1), holder, None, None, 0)
        decay = min(0.3, (1 + n) / (10 + n)) if n else 0.0
        expected = n * n if expected is None else decay * expected + (1 - decay) * n * n
        kept = average._average_model.module.layer
        assert kept.weight.item() == pytest.approx(expected, rel=1e-6) and int(kept.num_batches_tracked) == n


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed")])
def test_bfloat16_is_taken_where_the_gpu_computes_in_it(monkeypatch, capability, precision):
    """PyTorch says that a Turing card supports it, by emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation or capability >= (8, 0))
    assert choose_precision(Devices("gpu", 1, 1)) == precision


def test_a_scan_without_a_deterministic_form_is_refused():
    run = Namespace(rnn_type="mingru", mingru_scan="log", deterministic=True)
    refuse_log_scan(run, Devices("cpu", 1, 1))
    with pytest.raises(UsageError, match="take linear"):
        refuse_log_scan(run, Devices("gpu", 1, 1))


@pytest.mark.parametrize("supported", [True, False])
def test_a_processor_without_bfloat16_is_warned_of(supported, monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    for precision in ("32-true", "bf16-mixed"):
        warn_of_slow_precision(precision, Devices("cpu", 1, 1))
    assert ("--precision bf16-mixed: this processor" in capsys.readouterr().out) is not supported


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision):
    """A whole run in each precision that a CPU has; the checkpoint transcribes in float32."""
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--precision", precision))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["utterances"] == 5
    network = Recognizer.from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert len(greedy_texts(network, [torch.randn(16_000)])) == 1


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_local_loggers(tmp_path, logger):
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--logger", logger, "--test_sets"))
    assert list((tmp_path / "run" / logger).rglob("events*" if logger == "tensorboard" else "metrics.csv"))


@pytest.mark.parametrize("begin", [
    lambda: find_device("cpu"),
    lambda: build_trainer(train.parse_arguments(arguments(Path("unused"))), Devices("cpu", 1, 1), None)],
    ids=["evaluation", "training"])
def test_float32_is_not_tf32(begin, monkeypatch):
    """By torch's default cuDNN rounds to 10 bits, by which padding would matter."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    begin()
    assert not torch.backends.cudnn.allow_tf32


def test_print_model_counts_parameters(capsys):
    train.main(["--config", str(ROOT / "configs" / "deepspeech2_assemblyai_librispeech.yaml"), "--print_model"])
    assert capsys.readouterr().out.endswith("14,233,053 parameters\n")


def test_every_config_is_accepted_and_states_its_command_and_result():
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        args = train.parse_arguments(["--config", str(config)])
        train.build_network(args, saved={"vocabulary": None})  # which would be learnt from texts that are not here
        command, *head = itertools.takewhile(lambda line: line.startswith("#"), config.read_text().splitlines())
        beginnings = (f"# python train.py --config configs/{config.name}", "# make demo", "# make english")
        assert command.startswith(beginnings)
        assert config.stem.startswith(f"{args.model}_") and any(line.startswith("# Result: ") for line in head)


def test_the_command_line_wins_over_the_config(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("epochs: 7\nlearning_rate: 3e-4\nbidirectional: false\nspeed_perturb: [0.9, 1.1]\n")
    args = train.parse_arguments(["--config", str(config), "--epochs", "9"])
    assert (args.epochs, args.learning_rate, args.bidirectional) == (9, 3e-4, False)
    assert args.speed_perturb == [0.9, 1.1] and args.output_dir == "runs/x"


@pytest.mark.parametrize(("content", "message"), [
    ("epoch: 7", "epoch: no such flag"),
    ("epochs: many", "epochs: invalid int value: 'many'"),
    ("epochs: 0", "epochs: 0 must be at least 1"),
    ("epochs: 1.5", "epochs: invalid int value"),
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
    *((["--train_sets", "dev", given], f"--train_sets: '{re.escape(given)}' must be a name, or a name and how many")
      for given in ("a*0", "a*", "a*x", "a*nan", "a*inf", "a*-1", "a*1*2", "*2", "a*1001", "a*1e999")),
])
def test_a_wrong_flag_is_named(flags, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        train.parse_arguments(flags)


@pytest.mark.parametrize(("flags", "message"), [
    (["--time_stride", "3"], "time_stride 3 must be 2 or 4"),
    (["--rnn_conv", "4"], "rnn_conv 4 must be odd, or 0 for none"),
    (["--rnn_feedforward", "-1"], "--rnn_feedforward: -1 must be at least 0"),
    (["--train_sets", "absent"], "no split 'absent' under"),
    (["--train_sets", "absent*2"], "no split 'absent' under"),
    (["--checkpoint_path", "absent.ckpt"], "absent.ckpt: no such checkpoint file"),
    (["--checkpoint_path", str(ROOT / "README.md")], "not a checkpoint"),
    (["--strategy", "pigeons"], "Lightning refuses"),
    (["--strategy", "fsdp"], "no process with all the weights"),
    (["--strategy", "deepspeed"], "no process with all the weights"),
    (["--strategy", "ddp_spawn"], "take ddp"),
    (["--precision", "bf16-true"], "invalid choice: 'bf16-true'"),
    (["--gradient_checkpointing", "--rnn_norm", "batch"], "would count every batch twice"),
    (["--rnn_layers", "0"], "--rnn_layers: 0 must be at least 1"),
    (["--conv_channels", "0"], "--conv_channels: 0 must be at least 1"),
    (["--rnn_size", "0"], "--rnn_size: 0 must be at least 1"),
    (["--time_share", "2"], "network cannot be built: time_share 2.0 must be 0 to 1"),
    (["--time_masks", "-1"], "-1 must be at least 0"), (["--speed_perturb", "0.001"], "0.001 must be 0.1 to 10"),
])
def test_a_run_that_cannot_start_says_why_in_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", *flags))
    error = capsys.readouterr().err
    line, = [line for line in error.splitlines() if line.startswith("train.py: error:")]
    assert message in line and "Traceback" not in error


@pytest.mark.parametrize(("flags", "needs"), [
    (["--n_mfcc", "13"], "--features mfcc"), (["--mingru_scan", "log"], "--rnn_type mingru"),
    (["--lookahead", "5"], "--no-bidirectional"), (["--freq_width", "90"], "there are 80 bins")])
def test_flags_without_effect_are_named(capsys, flags, needs):
    """Those that have one, and defaults, are not."""
    train.parse_arguments(["--rnn_type", "gru", *flags])
    said = capsys.readouterr().err
    assert said.startswith(f"note: {' '.join(flags)}") and needs in said and len(said.splitlines()) == 1
    train.parse_arguments(["--features", "mfcc", "--rnn_type", "mingru", "--no-bidirectional", "--n_mels", "90",
                           "--n_mfcc", "90" if flags[0] == "--freq_width" else "40", *flags])
    assert not capsys.readouterr().err


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """A checkpoint is data: nothing in it is run."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"recognizer": {"model": "deepspeech2"}, "state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="more than plain values"):
        Recognizer.from_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("network", ["deepspeech2", "conformer", "las"])
def test_gradient_checkpointing_changes_no_number(tmp_path, network):
    """The same dropout in the second run of each layer: the same weights, but for the order of sums."""
    for name, more in (("kept", []), ("again", ["--gradient_checkpointing"])):
        train.main(arguments(tmp_path / name, "--epochs", "2", *more, model=network))
    kept, again = (weights(tmp_path / name) for name in ("kept", "again"))
    torch.testing.assert_close(again, kept, rtol=0, atol=0)


def test_a_set_called_val_is_one_of_several(tmp_path):
    """`val/wer` stays the WER over all validation sets, which chooses checkpoints."""
    data = tmp_path / "data"
    data.mkdir()
    for name, split in (("train", "train"), ("val", "dev"), ("other", "test")):
        (data / name).symlink_to(CORPUS / split)
    flags = ["--epochs", "1", f"--data_root={data}", "--val_sets", "val", "other", "--test_sets"]
    trainer, _ = train.train(train.parse_arguments(arguments(tmp_path / "run", *flags)))
    metrics, counts = trainer.callback_metrics, trainer.lightning_module.results
    assert set(counts) == {"val", "other"}
    assert metrics["val/cer"] == pytest.approx(sum(counts.values(), ErrorCounts()).cer)
    assert metrics["val_set/cer"] == pytest.approx(counts["val"].cer) != metrics["val/cer"]


def test_the_loss_of_an_epoch_is_per_token(tmp_path, monkeypatch):
    """Whatever its batches: here one utterance each, of two to sixty characters."""
    seen, step = [], SpeechModule.training_step

    def record(module, batch, index):
        loss = step(module, batch, index)
        seen.append((float(module.trainer.callback_metrics["train/loss_step"]), int(batch.token_counts.sum())))
        return loss

    monkeypatch.setattr(SpeechModule, "training_step", record)
    trainer, _ = train.train(train.parse_arguments(arguments(
        tmp_path / "run", "--epochs", "1", "--batch_size", "1", "--test_sets", "--log_every", "1")))
    expected = sum(loss * tokens for loss, tokens in seen) / sum(tokens for _, tokens in seen)
    assert len({tokens for _, tokens in seen}) > 3
    assert trainer.callback_metrics["train/loss_epoch"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("weight", "needed"), [("0.3", True), ("0", False)])
def test_las_without_ctc_keeps_text_that_ctc_could_not_align(tmp_path, monkeypatch, weight, needed):
    given = []

    def record(*args, output_frames, **more):
        given.append(output_frames)
        raise DataError("seen")

    monkeypatch.setattr("data.datamodule.LibriSpeechDataModule", record)
    with pytest.raises(DataError, match="seen"):
        train.train(train.parse_arguments(arguments(tmp_path / "run", "--ctc_weight", weight, model="las")))
    assert [one is not None for one in given] == [needed]


@pytest.mark.parametrize("decay", [[], ["--ema_decay", "0.9"]], ids=["trained", "ema"])
def test_the_mean_of_the_last_epochs(tmp_path, capsys, monkeypatch, decay):
    """It is validated like any other checkpoint, and tested only where its val WER is lower."""
    validated, validate = [], lightning.Trainer.validate

    def record(trainer, module, **options):
        trainer.callbacks.append(lightning.pytorch.callbacks.LambdaCallback(
            on_validation_batch_start=lambda *_: validated.append(module.network.project.weight.clone())))
        return validate(trainer, module, **options)

    monkeypatch.setattr(lightning.Trainer, "validate", record)
    train.main(arguments(tmp_path / "run", "--epochs", "5", "--average_last", "3", "-lr", "3e-3", *decay))
    folder = tmp_path / "run" / "checkpoints"
    recent = sorted(folder.glob("recent*.ckpt"))
    assert [path.name for path in recent] == ["recent002.ckpt", "recent003.ckpt", "recent004.ckpt"]
    averaged = torch.load(folder / "averaged.ckpt", weights_only=True)["state_dict"]
    name = "network.project.weight"
    mean = sum(torch.load(path, weights_only=True)["state_dict"][name] for path in recent) / 3
    torch.testing.assert_close(averaged[name], mean)
    assert validated and all(torch.equal(weights, averaged[name]) for weights in validated)
    assert "mean of the last 3 epochs: val WER" in (said := capsys.readouterr().out)
    tested = Path(json.loads((tmp_path / "run" / "results.json").read_text())["test"]["checkpoint"])
    assert (tested.name == "averaged.ckpt") == (", now the best" in said)
    assert tested.name == original_of(folder / "best.ckpt").name
    args = train.parse_arguments(arguments(tmp_path / "run", "--checkpoint_path", "auto"))
    for path in recent:
        path.unlink()
    with pytest.raises(SystemExit, match="2"):  # a finished run that kept no epoch
        train.main(arguments(tmp_path / "run", "--epochs", "5", "--average_last", "3", "--checkpoint_path", "auto"))
    assert "--average_last: no epoch was kept for it" in capsys.readouterr().err
    assert "averaged" not in resume_from(args)[0], "it has no optimiser to go on with"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_memory_is_kept_for_the_next_step():
    """Pages that are asked of Linux for the same 64 MB thirty times: each time, or a few times."""
    program = ("import resource, torch; from utils.process import keep_large_blocks; {}\n"
               "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
               "before = faults()\n"
               "for _ in range(30): torch.ones(1 << 24)\n"
               "print(faults() - before)")
    faults = [int(subprocess.run([sys.executable, "-c", program.format(call)], cwd=ROOT, check=True, text=True,
                                 stdout=subprocess.PIPE).stdout) for call in ("", "keep_large_blocks()")]
    assert faults[1] < faults[0] / 2, faults


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_ever_other_lengths_do_not_fill_memory():
    """By what oneDNN keeps for each: a convolution of 150 lengths, from the first to the last."""
    program = ("import torch; from utils.process import keep_few_kernels; {}\n"
               "conv, used = torch.nn.Conv2d(32, 32, 3), []\n"
               "for n in range(150):\n"
               "    conv(torch.zeros(1, 32, 50 + n, 40)).sum().backward()\n"
               "    used.append(int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]))\n"
               "print(used[-1] - used[0])")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    grown = [int(subprocess.run([sys.executable, "-c", program.format(call)], cwd=ROOT, check=True, text=True,
                                env=environment, stdout=subprocess.PIPE).stdout) for call in ("", "keep_few_kernels()")]
    assert grown[1] < grown[0] / 2, f"{grown} kB"


@pytest.mark.long
def test_compiled_layers_give_the_same_losses(tmp_path):
    """torch.compile of the convolutions and the recurrent layers; compiling takes minutes, and a C++ compiler."""
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        train.main(arguments(tmp_path / name, "--epochs", "2", "--rnn_type", "mingru", "--dropout", "0", *more))
    histories = [[json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
                 for name in ("eager", "compiled")]
    for eager, compiled in zip(*histories, strict=True):
        assert compiled["val/loss"] == pytest.approx(eager["val/loss"], rel=1e-3)


def test_the_environment_file(tmp_path, monkeypatch, capsys):
    """UTF-8, with a byte order mark as Windows writes it, or one line that names the file."""
    monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
    monkeypatch.delenv("SOME_KEY", raising=False)
    (tmp_path / ".env").write_bytes("\ufeffSOME_KEY=größer".encode())
    train.prepare_process()
    assert os.environ.pop("SOME_KEY") == "größer"
    (tmp_path / ".env").write_bytes("SOME_KEY=größer".encode("latin-1"))
    with pytest.raises(SystemExit, match="2"):
        train.main([])
    assert capsys.readouterr().err == f"train.py: error: {tmp_path / '.env'}: not UTF-8: save it as UTF-8\n"
