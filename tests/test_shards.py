"""Tar shards: written from any split, read by one seek, trained on as the files that they hold, a few at a time."""

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, SPEECH
from test_data import ALL, corpus, data_module, ids, row, write_manifest
from test_readers import kaldi
from test_resume import kill_within
from training_runs import arguments, assert_same_end, checkpoint, run

import train
from data import convert, shard
from data.dataset import SpeechDataset
from data.index import DataError
from data.readers.shards import read_index
from data.sampler import SampleRef
from utils.audio import AudioError, load_audio
from utils.files.members import Member
from utils.tokenizer import CharTokenizer

assert corpus  # a fixture


def waveforms(index) -> dict[str, torch.Tensor]:
    dataset = SpeechDataset(index.utterances, CharTokenizer())
    return {one.id: dataset[SampleRef(i, 0)][1] for i, one in enumerate(index.utterances)}


def test_shards_hold_the_same_utterances(tmp_path, capsys):
    """Ids, texts, speakers and durations, and the same samples; the same flags give the same bytes."""
    for name in ("one", "two"):
        shard.main(["train", "--data_root", str(CORPUS), "--output", str(tmp_path / name), "--shard_size", "4"])
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path}/one: 3 shards, 10 utterances, 0.00 h"
    tars = sorted((tmp_path / "one").glob("*.tar"))
    assert [len(read_index(tar)["utterances"]) for tar in tars] == [4, 3, 3]
    assert [tar.read_bytes() for tar in tars] == [(tmp_path / "two" / tar.name).read_bytes() for tar in tars]
    plain = data_module(CORPUS, cache_dir=str(tmp_path / "cache")).index("train")
    sharded = data_module(tmp_path).index("one")
    assert sharded.left_out == {} and ids(sharded.utterances) == ALL
    facts = [{one.id: one._replace(audio="") for one in index.utterances} for index in (plain, sharded)]
    assert facts[0] == facts[1]
    expected, found = waveforms(plain), waveforms(sharded)
    assert all(torch.equal(expected[name], found[name]) for name in ALL)


def test_ids_that_are_numbers_or_no_names_are_all_kept(corpus, monkeypatch):
    """Also those that are the number of another utterance; a shard that lacks one is refused."""
    names = ["clip.0", "000001", "clip/2", "000003", "000000", "clip.5"]
    rows = [row(path, "so", id=name) for path, name in zip(sorted((corpus / "train").rglob("*.opus")), names,
                                                          strict=False)]
    write_manifest(corpus / "x.jsonl", *rows)
    options = {"data_root": corpus, "cache_dir": corpus / "cache"}
    for seed in range(3):
        shard.build_shards("x.jsonl", corpus / f"shards{seed}", seed=seed, **options)
        assert ids(data_module(corpus).index(f"shards{seed}").utterances) == {*names}
    monkeypatch.setattr(shard, "read_index", lambda path: {"utterances": []})
    with pytest.raises(DataError, match=r"shard-000000.tar: 0 of 6 utterances can be read back: delete it and build"):
        shard.build_shards("x.jsonl", corpus / "lost", **options)


def test_parts_of_files_become_files(tmp_path):
    name = kaldi(tmp_path)
    shard.main([name, "--data_root", str(tmp_path), "--output", str(tmp_path / "shards")])
    plain, sharded = data_module(tmp_path).index(name), data_module(tmp_path).index("shards")
    expected, found = waveforms(plain), waveforms(sharded)
    assert expected.keys() == found.keys() and all(one.part is None for one in sharded.utterances)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def sharded(folder: Path) -> list[str]:
    """The flags that train on five shards of two utterances, in windows of about two shards."""
    shard.build_shards("train", folder / "shards", data_root=CORPUS, shard_size=2, cache_dir=folder / "cache")
    return ["--data_root", str(CORPUS), "--train_sets", str(folder / "shards"), "--shard_window", "4", "--test_sets",
            "--speed_perturb", "0.9", "1.1"]


def test_a_run_resumed_within_an_epoch_of_shards_ends_as_the_unbroken_one(tmp_path, capsys):
    """With data workers, in two windows of shards."""
    flags = [*sharded(tmp_path), "--epochs", "3", "--batch_size", "3", "--checkpoint_every", "5", "-w", "2"]
    train.main(arguments(tmp_path / "whole", *flags))
    assert checkpoint(tmp_path / "whole", "periodic")["LibriSpeechDataModule"]["segments"], "not within an epoch"
    path = str(tmp_path / "whole" / "checkpoints" / "periodic.ckpt")
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", path))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "other", *flags, "--checkpoint_path", path, "--shard_window", "1"))
    assert "within an epoch" in (error := capsys.readouterr().err) and "of another --shard_window" in error


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_killed_while_it_reads_shards_it_ends_as_the_unbroken_one(tmp_path, processes):
    """kill -9 within an epoch, with a data worker; the same command goes on."""
    flags = [*sharded(tmp_path), "--epochs", "8", "--batch_size", "2", "-w", "1", "--checkpoint_every", "1",
             "--checkpoint_path", "auto", "--cpu_processes", str(processes)]
    whole, killed = (arguments(tmp_path / name, *flags) for name in ("whole", "killed"))
    assert run(*whole).returncode == 0
    kill_within(tmp_path / "killed", *killed, seconds=0.05)
    done = run(*killed)
    assert done.returncode == 0, done.stderr
    assert "begins anew" not in done.stdout
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def write_tar(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_tars_of_other_programs(tmp_path):
    """With texts as `.txt`, in folders; what lacks its other half, and what is no sound, is counted."""
    sound, folder = SPEECH[0].read_bytes(), tmp_path / "web"
    folder.mkdir()
    write_tar(folder / "a.tar", **{"x/1.opus": sound, "x/1.txt": b"So it is\n", "2.opus": sound, "3.txt": b"so",
                                   "4.wav": b"no sound", "4.json": b'{"text": "so"}', "5.cls": b"5"})
    index = data_module(tmp_path).index("web")
    assert [(one.id, one.text) for one in index.utterances] == [("x/1", "so it is")]
    bad, = index.left_out.pop("with bad audio: not audio that can be read (format not recognised)")
    assert bad.startswith(f"{folder}/a.tar:")
    assert index.left_out == {"without a transcript": ["a.tar: 2"], "without audio": ["a.tar: 3"]}
    write_tar(folder / "a.tar", **{"6.opus": sound, "6.txt": b"now"})  # its index is of another tar
    assert [one.id for one in data_module(tmp_path).index("web").utterances] == ["6"]
    (folder / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=f"^{folder}/a.tar: not a tar of utterances that can be read"):
        data_module(tmp_path).index("web")


@pytest.mark.parametrize(("name", "content"), [
    ("1.txt", b"caf\xe9"), ("1.json", b"[1]"), ("1.json", b'{"text": "so'), ("1.json", b"[" * 100_000),
    ("1.json", b'{"text": "so", "id": "\\udce9"}')], ids=["encoding", "list", "cut off", "deep", "half a character"])
def test_a_bad_transcript_in_a_tar_is_left_out_alone(tmp_path, name, content):
    (tmp_path / "web").mkdir()
    sound = SPEECH[0].read_bytes()
    write_tar(tmp_path / "web/a.tar", **{"1.opus": sound, name: content, "2.opus": sound, "2.txt": b"so it is"})
    index = data_module(tmp_path).index("web")
    assert ids(index.utterances) == {"2"}
    (kind, rows), = index.left_out.items()
    assert kind == "with a bad transcript" and len(rows) == 1 and rows[0].startswith(f"a.tar: {name} (")


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"state": 5}', "[" * 100_000],
                         ids=["list", "cut off", "null", "state", "deep"])
def test_a_damaged_index_of_a_tar_is_made_anew(tmp_path, content):
    write_tar(tmp_path / "a.tar", **{"1.opus": SPEECH[0].read_bytes(), "1.txt": b"so it is"})
    expected = read_index(tmp_path / "a.tar")
    (tmp_path / "a.index.json").write_text(content)
    assert read_index(tmp_path / "a.tar") == expected == json.loads((tmp_path / "a.index.json").read_text())


def test_names_in_a_tar_that_are_no_utf_8(tmp_path):
    """Nothing that writes the ids as UTF-8 fails: the state of an epoch, and reports."""
    (tmp_path / "web").mkdir()
    sound, odd = SPEECH[0].read_bytes(), os.fsdecode(b"caf\xe9")
    write_tar(tmp_path / "web/a.tar", **{f"{odd}.opus": sound, f"{odd}.txt": b"so it is", "\u3000.opus": sound,
                                         "\u3000.txt": b"now"})
    data = data_module(tmp_path, train_sets=["web"])
    assert ids(data.index("web", training=True).utterances) == {"caf\\udce9", "\u3000"}
    data.train_dataloader()
    assert data.state_dict()


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """With the shards that it lacks; one that was being written is written anew."""
    options = {"data_root": CORPUS, "shard_size": 4, "cache_dir": tmp_path / "cache", "num_workers": 1}
    shard.build_shards("train", tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        sounds, sound = iter(range(100)), shard._sound
        patch.setattr(shard, "_sound", lambda *one: sound(*one) if next(sounds) < 6 else Path("/no/where").read_bytes())
        shard.build_shards("train", tmp_path / "stopped", **options)
    assert not (tmp_path / "stopped").exists()
    shard.build_shards("train", tmp_path / "stopped", **options)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == names
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_an_error_ends_a_build_before_all_other_shards_are_written(tmp_path, monkeypatch):
    """As does Ctrl-C."""
    for error, begun in ((OSError, []), (KeyboardInterrupt, [])):

        def write(path, utterances, audio_format, error=error, begun=begun):
            begun.append(path)
            time.sleep(0.05)
            raise error

        monkeypatch.setattr(shard, "_write_shard", write)
        with pytest.raises(error):
            shard.build_shards("train", tmp_path / "shards", data_root=CORPUS, shard_size=1, num_workers=1,
                               cache_dir=tmp_path / "cache")
        assert len(begun) < 10


def test_members_of_tars_are_read_as_files_and_listed_in_manifests(tmp_path, monkeypatch):
    shard.build_shards("train", tmp_path / "shards", data_root=CORPUS, cache_dir=tmp_path / "cache")
    convert.convert(str(tmp_path / "shards"), tmp_path / "mine.jsonl")
    assert json.loads((tmp_path / "mine.jsonl").read_text().splitlines()[0])["audio"].startswith("shards/shard-000000")
    index = data_module(tmp_path).index("mine.jsonl")
    assert ids(index.utterances) == ALL and index.left_out == {}
    tar = tmp_path / "shards/shard-000000.tar"
    for begin, size, reason in ((0, 0, "empty: 0 bytes"), (10**9, 5, "truncated"), (0, 512, "not audio")):
        with pytest.raises(AudioError, match=reason):
            load_audio(Member(str(tar), begin, size))
    with pytest.raises(AudioError, match="no such file"):
        load_audio(f"{tmp_path}/none.tar:0+5")
