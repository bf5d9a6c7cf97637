"""Checkpoints from strangers: no code in them runs, none takes more memory than its own size, by every door."""

import io
import json
import pickle
import re
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, SPEECH, tiny_network
from little_memory import in_little_memory

import evaluate
import inference
import train
from models import Recognizer, Transcriber
from utils.checkpoint import __main__ as checkpoint_module
from utils.checkpoint.__main__ import export
from utils.checkpoint.averaging import average_checkpoints
from utils.checkpoint.reading import CheckpointError, read_checkpoint, read_resumable

VARIANT = "mingru"


def content_of(network) -> dict:
    return {"recognizer": network.config,
            "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("good") / "good.ckpt", content_of(tiny_network(VARIANT)))


class Evil:
    """Makes a file where it is unpickled without care."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def evil_archive(path: Path, mark: Path) -> Path:
    """A checkpoint that is good but for one value."""
    return save(path, {**content_of(tiny_network(VARIANT)), "optimizer_states": [], "x": Evil(mark)})


def evil_pickle(path: Path, mark: Path) -> Path:
    """No archive: a plain pickle, as torch.save once wrote them."""
    path.write_bytes(pickle.dumps(Evil(mark)))
    return path


def evil_old_format(path: Path, mark: Path) -> Path:
    torch.save({"x": Evil(mark)}, path, _use_new_zipfile_serialization=False)
    return path


def auto(path: Path) -> list[str]:
    """A run's folder that holds it."""
    folder = path.parent / "run" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "last.ckpt")
    return ["--checkpoint_path", "auto", "--output_dir", str(folder.parent)]


DOORS = {  # main, and the flags that hand it a checkpoint
    "inference.py": (inference.main, lambda path: ["--checkpoint", str(path), "--audio", str(SPEECH[0])]),
    "evaluate.py": (evaluate.main, lambda path: ["--checkpoint", str(path), "--data_root", str(CORPUS),
                                                 "--test_sets", "dev"]),
    "train.py": (train.main, lambda path: ["--checkpoint_path", str(path), "--output_dir", str(path.parent / "run")]),
    "train.py auto": (train.main, auto),
    "train.py --init_from": (train.main, lambda path: ["--init_from", str(path), "--output_dir",
                                                       str(path.parent / "run")]),
    "evaluate.py --tune": (evaluate.main, lambda path: ["--tune", "--checkpoint", str(path), "--val_sets", "dev",
                                                        "--data_root", str(CORPUS), "--lm", str(arpa(path)),
                                                        "--output", str(path.parent / "x.yaml")]),
    "utils.checkpoint flags": (checkpoint_module.main, lambda path: ["flags", str(path)]),
    "utils.checkpoint": (checkpoint_module.main, lambda path: ["export", str(path), str(path) + ".safetensors"]),
}


def arpa(path: Path) -> Path:
    """A language model beside it."""
    from test_ngram import ARPA

    (path.parent / "x.arpa").write_text(ARPA)
    return path.parent / "x.arpa"


def last_line(capsys, main, argv: list[str]) -> str:
    """The one line of error that a program ends with, status 2."""
    with pytest.raises(SystemExit) as leave:
        main(argv)
    error = capsys.readouterr().err
    assert leave.value.code == 2 and "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize("evil", [evil_archive, evil_pickle, evil_old_format], ids=lambda evil: evil.__name__)
@pytest.mark.parametrize("door", DOORS)
def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys, monkeypatch, door, evil):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    main, flags = DOORS[door]
    line = last_line(capsys, main, flags(evil(tmp_path / "evil.ckpt", mark)))
    assert re.search("error: .*(not a checkpoint|no checkpoint to resume from)", line), line
    assert not mark.exists()


def test_the_evil_ones_are_evil(tmp_path):
    """Or the test above would show nothing."""
    for number, make in enumerate((evil_archive, evil_pickle, evil_old_format)):
        mark = tmp_path / str(number)
        path = make(tmp_path / "evil.ckpt", mark)
        if make is evil_pickle:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert mark.exists()


def test_what_would_have_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"more than plain values \(pathlib\.Path\.touch|getattr"):
        read_checkpoint(evil_archive(tmp_path / "evil.ckpt", tmp_path / "ran"))


# -- files that state more than they hold ----------------------------------------------------------


class Call:
    """Pickled as a call of something that weights_only=True allows."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def terabyte(path):
    save(path, {**content_of(tiny_network(VARIANT)), "x": Call(bytearray, 1 << 40)})


def packed(path):
    """A gigabyte of zeros in a megabyte, as zip files can hold it."""
    save(path, content_of(tiny_network(VARIANT)))
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data if not name.endswith("/data/0") else bytes(1 << 27))


def expanded(path):
    """One number that stands for 2 ** 40."""
    content = content_of(tiny_network(VARIANT))
    content["state_dict"]["network.more"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    save(path, content)


def shape_in_the_pickle(path):
    """The shape of a weight, 2 ** 33 times too large."""
    save(path, {**content_of(tiny_network(VARIANT)), "x": torch.zeros(7, 11, 13)})
    content = path.read_bytes()
    old, new = b"K\x07K\x0bK\x0d\x87", b"\x8a\x05\0\0\0\0\x01K\x0bK\x0d\x87"
    assert old in content
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            changed.writestr(name, data.replace(old, new) if name.endswith(".pkl") else data)


def itself(path):
    """A list that holds itself, in the place of a weight."""
    content = content_of(tiny_network(VARIANT))
    content["state_dict"]["network.more"] = loop = []
    loop.append(loop)
    save(path, content)


def option(name, value, **others):
    def write(path):
        content = content_of(tiny_network(VARIANT))
        save(path, {**content, "recognizer": {**content["recognizer"], name: value, **others}})

    write.__name__ = f"{name} of a {type(value).__name__}"
    return write


def laughs():
    """Ten lists of ten lists of ten ..., in a few bytes."""
    value = ["ha"]
    for _ in range(12):
        value = [value] * 10
    return value


BOMBS = [terabyte, packed, expanded, shape_in_the_pickle, itself, option("rnn_size", 10**9),
         option("rnn_layers", 10**12), option("window_ms", 1e300), option("window_ms", float("inf")),
         option("hop_ms", float("nan")), option("alphabet", laughs()), option("model", ["deepspeech2"]),
         option("conv_channels", {"a": 1}), option("rnn_size", "x" * 10**6), option("rnn_size", -5),
         option("dropout", OrderedDict(a=1)), option("alphabet", 7), option("rnn_size", 20_000),
         option("rnn_type", None), option("norm", "none"), option("n_mels", 90_000), option("tokenizer", "words"),
         option("tokenizer", ["bpe"]), option("vocabulary", ["ab"]), option("vocabulary", 7, tokenizer="bpe"),
         option("vocabulary", "ab", tokenizer="bpe"), option("vocabulary", [7, "ab"], tokenizer="bpe"),
         option("vocabulary", laughs(), tokenizer="bpe"), option("vocabulary", ["ab"] * 99_999, tokenizer="bpe"),
         option("vocabulary", ["ab"] * 100_001, tokenizer="bpe"), option("vocabulary", ["ab" * 10**6], tokenizer="bpe"),
         option("vocabulary", [f"a{'b' * i}" for i in range(1, 2_000)], tokenizer="bpe"),
         option("vocabulary", ["aa"], tokenizer="bpe", alphabet="".join(map(chr, range(32, 50_000)))),
         option("vocabulary", ["aa"] * 99_999, tokenizer="bpe", alphabet="".join(map(chr, range(32, 9_000))))]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_checkpoint_cannot_state_more_than_it_holds(tmp_path, bomb):
    path = tmp_path / "bomb.ckpt"
    bomb(path)

    def read():
        with pytest.raises(CheckpointError) as error:
            Recognizer.from_checkpoint(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500 + len(str(path))

    in_little_memory(read)


def test_the_mean_of_checkpoints_reads_each_with_care(good, tmp_path):
    expanded(tmp_path / "bomb.ckpt")
    with pytest.raises(CheckpointError, match="bomb.ckpt: damaged: it states"):
        average_checkpoints([good, tmp_path / "bomb.ckpt"])


def test_tied_weights_and_views_are_no_bombs(tmp_path):
    """Two names for one storage, and a part of one, take no more than they say."""
    content = content_of(tiny_network("las-location"))
    assert read_checkpoint(save(tmp_path / "las.ckpt", content))["recognizer"] == content["recognizer"]
    part = torch.arange(10.0)[2:5]
    assert read_checkpoint(save(tmp_path / "x.ckpt", {**content, "part": part}))["part"].tolist() == [2, 3, 4]


# -- safetensors -----------------------------------------------------------------------------------


def transcripts(capsys, path) -> str:
    with pytest.raises(SystemExit, match="0"):
        inference.main(["--checkpoint", str(path), "--audio", *map(str, SPEECH[:3]), "--output_format", "json"])
    return capsys.readouterr().out


@pytest.mark.parametrize("variant", ["mingru", "batchnorm", "las-location", "global", "bpe", "las-bpe"])
def test_an_exported_network_writes_the_same_bit_for_bit(tmp_path, capsys, variant):
    """Texts, times and confidences; every weight, and every option of the network."""
    source = save(tmp_path / "x.ckpt", content_of(tiny_network(variant)))
    checkpoint_module.main(["export", str(source), str(tmp_path / "x.safetensors")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'x.safetensors'}: ")
    before, after = (Recognizer.from_checkpoint(tmp_path / name) for name in ("x.ckpt", "x.safetensors"))
    assert before.config == after.config
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert transcripts(capsys, source) == transcripts(capsys, tmp_path / "x.safetensors")


def test_other_programs_read_it(good, tmp_path):
    from safetensors import safe_open

    export([good], tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert set(file.keys()) == set(tiny_network(VARIANT).state_dict())
        assert json.loads(file.metadata()["config"])["model"] == "deepspeech2"
        assert file.metadata()["format_version"] == "1"


def test_it_is_evaluated_like_the_checkpoint(good, tmp_path, capsys):
    export([good], tmp_path / "x.safetensors")
    for path, report in ((good, "a"), (tmp_path / "x.safetensors", "b")):
        evaluate.main(["--checkpoint", str(path), "--data_root", str(CORPUS), "--test_sets", "dev", "-w", "0",
                       "--cache_dir", str(tmp_path / "cache"), "--report", str(tmp_path / report), "--worst", "0"])
    first, second = (tmp_path / report / "hypotheses.jsonl" for report in "ab")
    assert first.read_text() == second.read_text() and len(first.read_text().splitlines()) == 5
    assert Transcriber(tmp_path / "x.safetensors").transcribe(SPEECH[0]).text == Transcriber(good).transcribe(
        SPEECH[0]).text


def test_no_run_goes_on_from_it(good, tmp_path):
    export([good], tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="x.safetensors: holds weights alone.* last.ckpt$"):
        read_resumable(tmp_path / "x.safetensors")
    assert read_resumable(save(tmp_path / "x.ckpt", {**content_of(tiny_network(VARIANT)), "optimizer_states": []}))


def header(change) -> bytes:
    """A safetensors file of four bytes of numbers with a header of one's own."""
    content = {"__metadata__": {"format_version": "1", "config": '{"model": "deepspeech2"}'},
               "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    change(content)
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


DAMAGED = {
    "not one": b"not at all",
    "a pickle": pickle.dumps({"a": 1}),
    "endless header": (1 << 62).to_bytes(8, "little") + b"{}",
    "enormous tensor": header(lambda c: c["a"].update(shape=[1 << 40], data_offsets=[0, 1 << 42])),
    "another shape": header(lambda c: c["a"].update(shape=[1 << 40])),
    "overflowing shape": header(lambda c: c["a"].update(shape=[1 << 62, 1 << 62])),
    "without metadata": header(lambda c: c.pop("__metadata__")),
    "another version": header(lambda c: c["__metadata__"].update(format_version="2")),
    "no config": header(lambda c: c["__metadata__"].pop("config")),
    "config is no JSON": header(lambda c: c["__metadata__"].update(config="{")),
    "deep config": header(lambda c: c["__metadata__"].update(config="[" * 100_000)),
    "config of a list": header(lambda c: c["__metadata__"].update(config="[]")),
    "other weights": header(lambda c: None),
}


@pytest.mark.parametrize("name", ["rnn_layers", "residual_blocks"])
def test_more_layers_than_weights_are_refused_unbuilt(tmp_path, monkeypatch, name):
    """Even without memory for their weights, 100,000 layers take minutes and gigabytes to build."""
    path = save(tmp_path / "x.ckpt", content_of(tiny_network(VARIANT)))
    content = torch.load(path, weights_only=True)
    content["recognizer"][name] = 100_000
    torch.save(content, path)
    monkeypatch.setattr(Recognizer, "build", None)
    with pytest.raises(CheckpointError, match=rf"states {name} 100,000, and holds \d+ weights$"):
        Recognizer.from_checkpoint(path)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_safetensors_file_is_refused(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[kind])

    def read():
        with pytest.raises(CheckpointError) as error:
            Recognizer.from_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

    in_little_memory(read)


def test_export_refuses_in_one_line(good, tmp_path, capsys, monkeypatch):
    for argv, message in [([str(good), str(tmp_path / "x.ckpt")], "must end in .safetensors"),
                          ([str(tmp_path / "no.ckpt"), str(tmp_path / "x.safetensors")], "no such checkpoint file"),
                          ([str(good), str(tmp_path / "no" / "x.safetensors")], "No such file or directory"),
                          ([str(good)], "required: target")]:
        assert message in last_line(capsys, checkpoint_module.main, ["export", *argv])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "safetensors" in last_line(capsys, checkpoint_module.main,
                                      ["export", str(good), str(tmp_path / "x.safetensors")])
