"""A run's folder that is moved or copied, or lies on a disk without links: everything in it is found again."""

import errno
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_resume import break_at_step
from training_runs import arguments, assert_same_end, checkpoint

import train
from utils.checkpoint.reading import newest_checkpoint, original_of
from utils.training.checkpointing import BestCheckpoints, LatestCheckpoints, publish_best


def names(output: Path) -> list[tuple[str, str]]:
    """The checkpoints of a run, and what each is a link to or a copy of."""
    return sorted((path.name, original_of(path).name) for path in (output / "checkpoints").glob("*.ckpt"))


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory) -> Path:
    """The folder of a run of four epochs, of which three are kept, and the last two for their mean."""
    output = tmp_path_factory.mktemp("runs") / "unmoved"
    train.main(arguments(output, "--epochs", "4", "--average_last", "2"))
    return output


@pytest.mark.parametrize("transfer", [shutil.move, shutil.copytree])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_goes_on_where_its_folder_is(tmp_path, monkeypatch, unmoved, transfer, finished):
    """Unfinished or finished, moved or copied: the same checkpoints, the same best one, the same results."""
    flags = ["--epochs", "4", "--average_last", "2", "--checkpoint_path", "auto"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) if not finished else nullcontext():
        if not finished:
            break_at_step(patch, 6)  # in the last epoch
        train.main(arguments(tmp_path / "before", *flags))
    transfer(tmp_path / "before", tmp_path / "after")
    left = names(tmp_path / "before")
    train.main(arguments(tmp_path / "after", *flags))
    assert_same_end(unmoved, tmp_path / "after")
    assert names(tmp_path / "after") == names(unmoved) and names(tmp_path / "before") == left
    results = [json.loads((output / "results.json").read_text())["test"] for output in (unmoved, tmp_path / "after")]
    assert results[0] == results[1] and (tmp_path / "after" / results[1]["checkpoint"]).is_file()


@pytest.mark.parametrize("missing", ["symlink", "link and symlink"])
def test_a_disk_without_links(tmp_path, monkeypatch, unmoved, missing):
    """exFAT, SMB, Google Drive: best.ckpt is a copy there."""
    def refuse(source, *_, **__):
        raise OSError(errno.ENOTSUP, "Operation not supported", str(source))

    for name in missing.split(" and "):
        monkeypatch.setattr(os, name, refuse)
    output = tmp_path / "run"
    for epochs in ("2", "4"):
        train.main(arguments(output, "--epochs", epochs, "--average_last", "2", "--checkpoint_path", "auto"))
    assert names(output) == names(unmoved)
    assert not any(path.is_symlink() for path in output.rglob("*"))
    linked = (output / "checkpoints" / "best.ckpt").stat().st_nlink > 1
    assert linked == (missing == "symlink")


@pytest.mark.parametrize("links", [True, False])
def test_best_is_replaced_in_one_piece(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")), False)
    for name in ("epoch001.ckpt", "epoch000.ckpt", "epoch000.ckpt"):
        (tmp_path / name).write_bytes(name.encode())
        publish_best(tmp_path / name)
        assert (tmp_path / "best.ckpt").read_bytes() == name.encode()
        assert original_of(tmp_path / "best.ckpt") == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "epoch000.ckpt", "epoch001.ckpt"]
    assert original_of(tmp_path / "epoch001.ckpt") == tmp_path / "epoch001.ckpt"


def test_scores_of_files_that_are_gone_are_forgotten(tmp_path):
    """And of more files than are to be kept now; the order in which they were saved stays."""
    state = LatestCheckpoints(tmp_path / "elsewhere", 4)
    state.best_k_models = {str(tmp_path / "elsewhere" / f"recent{i:03d}.ckpt"): torch.tensor(i) for i in range(4)}
    for i in (1, 2, 3):
        (tmp_path / f"recent{i:03d}.ckpt").touch()
    for count, kept in ((4, [1, 2, 3]), (2, [2, 3])):
        latest = LatestCheckpoints(tmp_path, count)
        latest.load_state_dict(state.state_dict())
        assert latest.paths == [str(tmp_path / f"recent{i:03d}.ckpt") for i in kept]
        assert Path(latest.kth_best_model_path).name == f"recent{kept[0]:03d}.ckpt"
        assert latest.kth_value == kept[0] and Path(latest.best_model_path).name == "recent003.ckpt"


def test_other_validation_sets_choose_anew(tmp_path, capsys):
    """The val WER on some sets says nothing about that on others."""
    def best_of(*val_sets: str) -> BestCheckpoints:
        callback = BestCheckpoints(tmp_path, 3)
        trainer = SimpleNamespace(datamodule=SimpleNamespace(val_sets=val_sets), is_global_zero=False,
                                  strategy=SimpleNamespace(broadcast=lambda path: path))
        callback.setup(trainer, None, "fit")
        return callback

    before, path = best_of("dev", "test"), tmp_path / "epoch000-wer0.5000.ckpt"
    before.best_k_models = {str(path): torch.tensor(0.5)}
    path.touch()
    for val_sets, kept in ((("dev", "test"), [str(path)]), (("dev",), [])):
        after = best_of(*val_sets)
        after.load_state_dict(before.state_dict())
        assert list(after.best_k_models) == kept
    assert capsys.readouterr().out == "--val_sets were dev test: the best checkpoints are chosen anew\n"
    assert not (tmp_path / "best.ckpt").exists()


def test_auto_takes_best_where_it_alone_is_left(tmp_path):
    """As when somebody kept but that file; it holds all that a run goes on from."""
    train.main(arguments(tmp_path / "run", "--epochs", "1", "--test_sets"))
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.glob("*.ckpt"):
        if path.name != "best.ckpt":
            path.unlink()
    assert newest_checkpoint(folder) == folder / "best.ckpt"
    train.main(arguments(tmp_path / "run", "--epochs", "2", "--test_sets", "--checkpoint_path", "auto"))
    assert checkpoint(tmp_path / "run")["epoch"] == 1
