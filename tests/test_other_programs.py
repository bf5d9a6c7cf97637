"""What other programs leave in the environment, and loggers and figures that fail: none of it ends training."""

import json
import os
from pathlib import Path

import matplotlib.figure
import pytest
from conftest import CORPUS
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from training_runs import arguments, run

import train
from utils.errors import UsageError
from utils.training.launch import RANKS, Devices, forget_other_launchers
from utils.training.loggers import build_logger


@pytest.fixture
def alone(monkeypatch):
    """An environment without ranks; sets those that a test gives."""
    for name in [*sum(RANKS.values(), ()), "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"]:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_a_run_among_the_settings_of_others(tmp_path):
    """matplotlib's, a notebook's, a scheduler's, a locale; and a name that is a formula to TeX."""
    audio = tmp_path / "clip_$1_é_$2.opus"
    audio.write_bytes(sorted((CORPUS / "dev").rglob("*.opus"))[0].read_bytes())
    (tmp_path / "dev.jsonl").write_text(json.dumps({"audio": audio.name, "text": "he will follow us soon"}) + "\n")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\n")
    done = run(*arguments(tmp_path / "run", "--epochs", "1", "--val_sets", str(tmp_path / "dev.jsonl")),
               MPLBACKEND="no such backend", MPLCONFIGDIR=str(tmp_path), LC_ALL="C", PYTHONIOENCODING="ascii",
               RANK="1", LOCAL_RANK="1", WORLD_SIZE="4", SLURM_NTASKS="8", SLURM_PROCID="3",
               SLURM_JOB_NAME="somebody", MASTER_ADDR="192.0.2.1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    assert (tmp_path / "run" / "samples" / "posteriors.png").stat().st_size > 10_000
    assert done.stdout.count("left in the environment by") == 2
    assert "and ignored: WORLD_SIZE=4 RANK=1 LOCAL_RANK=1" in done.stdout and "SLURM_PROCID=3" in done.stdout


def test_two_processes_among_the_ranks_of_others(tmp_path):
    """Lightning would take this process for one of four, and wait for the others for ever."""
    done = run(*arguments(tmp_path / "run", "--epochs", "1", "--cpu_processes", "2", "--test_sets"),
               RANK="0", LOCAL_RANK="0", WORLD_SIZE="4", SLURM_NTASKS="1", SLURM_PROCID="0", MASTER_ADDR="192.0.2.1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(("devices", "values", "kept", "said"), [
    (Devices("cpu", 1, 1), {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, [], False),
    (Devices("cpu", 1, 1), {"RANK": "1"}, [], True),
    (Devices("cpu", 1, 1), {"RANK": ""}, [], True),
    (Devices("cpu", 1, 1), {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "1"}, [], False),
    (Devices("cpu", 1, 1), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [], True),
    (Devices("gpu", 2, 1), {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, "all", False),  # Lightning's
    (Devices("gpu", 4, 2), {"NODE_RANK": "1", "MASTER_ADDR": "a"}, "all", False),  # started by hand
    (Devices("gpu", 2, 2), {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_NODEID": "1"}, "all", False),
    (Devices("gpu", 4, 1), {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, [], True),  # a shell in a job
    (Devices("gpu", 4, 1), {"WORLD_SIZE": "8", "RANK": "5", "MASTER_ADDR": "a"}, [], True),
    (Devices("gpu", 4, 1), {"MASTER_ADDR": "a", "MASTER_PORT": "b"}, [], False),
    (Devices("cpu", 1, 1), {"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}, [], True),
    (Devices("gpu", 1, 1), {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}, "all", False)])
def test_whose_ranks_are_believed(alone, capsys, devices, values, kept, said):
    alone(**values)
    forget_other_launchers(devices)
    assert [name for name in values if name in os.environ] == (list(values) if kept == "all" else kept)
    assert bool(capsys.readouterr().out) == said


def test_another_number_of_tasks_is_refused(alone):
    alone(SLURM_NTASKS="4", SLURM_PROCID="0")
    with pytest.raises(UsageError, match="SLURM started 4 tasks, the flags ask for 2 processes: --gpus and --nodes"):
        forget_other_launchers(Devices("gpu", 2, 1))


def test_nodes_that_nothing_starts_are_not_waited_for(alone):
    with pytest.raises(UsageError, match="--nodes 2: nothing starts the other nodes: take torchrun or srun"):
        forget_other_launchers(Devices("cpu", 1, 2))


@pytest.mark.parametrize(("logger", "cls"), [("csv", CSVLogger), ("tensorboard", TensorBoardLogger)])
def test_a_logger_that_fails_is_named_once(tmp_path, monkeypatch, capsys, logger, cls):
    def fail(*_, **__):
        raise OSError(f"no {logger}")

    for method in ("log_metrics", "log_hyperparams", "save"):
        monkeypatch.setattr(cls, method, fail)
    train.main(arguments(tmp_path / "run", "--epochs", "2", "--logger", logger))
    assert (tmp_path / "run" / "results.json").is_file()
    note = f"note: the logger failed, training goes on without (OSError: no {logger})"
    assert capsys.readouterr().err.count(note) == 1


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_figure_that_fails_is_named_once(tmp_path, monkeypatch, capsys, logger):
    """The texts are written; and the checkpoint was, before the figure was drawn."""
    def fail(*_, **__):
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
        raise RuntimeError(f"no figure for {logger}")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    train.main(arguments(tmp_path / "run", "--epochs", "2", "--logger", logger, "--test_sets"))
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["samples.txt"]
    assert capsys.readouterr().err.count(f"(RuntimeError: no figure for {logger})") == 1


def test_samples_that_cannot_be_written_are_named_once(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file, no folder")
    train.main(arguments(tmp_path / "run", "--epochs", "2", "--test_sets"))
    assert capsys.readouterr().err.count("note: writing samples failed, training goes on without (FileExistsError") == 1


def test_a_folder_that_tensorboard_cannot_write_to_is_refused(tmp_path):
    """It takes names in UTF-8 alone."""
    with pytest.raises(UsageError, match="--logger tensorboard cannot be used here: 'utf-8' codec can't encode"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        build_logger("tensorboard", output_dir=folder, project="", name="")


def test_a_logger_that_is_missing_is_refused(tmp_path, monkeypatch, capsys):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(TensorBoardLogger, "__init__", missing)
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", "--logger", "tensorboard"))
    assert "--logger tensorboard cannot be used here: No module named 'tensorboard'" in capsys.readouterr().err
