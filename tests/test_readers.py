"""What the readers of corpora take: folders and manifests as people and other programs make them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import SPEECH
from test_data import ALL, ID, audio_of, corpus, data_module, ids, index_of, order, row, write_manifest

from data import index as index_module
from data.index import DataError
from utils.audio import SAMPLE_RATE, load_audio
from utils.types import Batch

assert corpus  # a fixture


# -- folders as people keep them -------------------------------------------------------------------


def test_folders_that_are_links_are_followed_once(corpus, tmp_path):
    """A speaker that lies elsewhere, linked twice; a folder in a circle; and a link to all splits, which is no part."""
    elsewhere = tmp_path / "elsewhere" / "9002"
    shutil.copytree(corpus / "train/9001/2", elsewhere / "1")
    (elsewhere / "2").symlink_to(corpus / "train/9001/3")  # which is in the split anyway
    (elsewhere / "round").symlink_to(elsewhere)
    shutil.rmtree(corpus / "train/9001/2")
    (corpus / "train/9002").symlink_to(elsewhere)
    (corpus / "train/9003").symlink_to(elsewhere)
    (corpus / "train/9001/all").symlink_to(corpus)
    index = index_of(corpus / "train")
    assert sorted(u.id for u in index.utterances) == sorted(ALL) and index.left_out == {}


def test_a_split_of_nothing_but_links(corpus, tmp_path):
    (tmp_path / "links").mkdir()
    for chapter in (corpus / "train/9001").iterdir():
        (tmp_path / "links" / chapter.name).symlink_to(chapter)
    (tmp_path / "linked").symlink_to(tmp_path / "links")
    assert ids(index_of(tmp_path / "linked").utterances) == ALL


def test_several_transcripts_in_one_folder(corpus):
    """What the one lists is not missing from the other."""
    flat = corpus / "flat"
    flat.mkdir()
    for path in (corpus / "train").rglob("*.*"):
        shutil.copy(path, flat)
    assert ids(index_of(flat).utterances) == ALL and index_of(flat).left_out == {}
    (flat / "9001-1.trans.txt").unlink()
    index = index_of(flat)
    assert len(index.utterances) == 8
    assert index.left_out == {"without a transcript": ["9001-1-00290", "9001-1-00781"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=repr)
def test_transcripts_in_encodings_that_say_so(corpus, encoding, line_end):
    path = corpus / "train/9001/1/9001-1.trans.txt"
    path.write_bytes(f"{ID}\tIT’S A CANOE{line_end}9001-1-00781 SO{line_end}".encode(encoding))
    index = index_of(corpus / "train")
    assert {u.id: u.text for u in index.utterances[:2]} == {ID: "it's a canoe", "9001-1-00781": "so"}
    assert index.left_out == {}


@pytest.mark.parametrize(("content", "reason"), [
    (f"{ID} CAFÉ".encode("latin-1"), "not UTF-8 (it has a byte 0xC9): convert it, from Windows-1252 or Latin-1 by "
                                     "`iconv -f CP1252 -t UTF-8`"),
    (f"{ID} CAFE".encode("utf-16-le"), "UTF-16 without a byte order mark, or no text: save it as UTF-8"),
    (f"{ID} {'A' * (1 << 20)}".encode(), "a line longer than 1 MB")], ids=lambda value: str(value)[:12])
def test_transcripts_in_encodings_that_nobody_can_know(corpus, content, reason):
    path = corpus / "train/9001/1/9001-1.trans.txt"
    path.write_bytes(content)
    index = index_of(corpus / "train")
    assert len(index.utterances) == 8 and index.left_out == {"in an unreadable transcript": [f"{path}: {reason}"]}


def test_what_a_mac_leaves_on_other_disks_is_no_sound(corpus):
    for path in list((corpus / "train").rglob("*.*")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(4000))
    index = index_of(corpus / "train")
    assert ids(index.utterances) == ALL and index.left_out == {}


def test_sound_of_a_kind_that_is_not_read_is_named(corpus):
    path = audio_of(corpus / "train")
    path.rename(path.with_suffix(".m4a"))
    index = index_of(corpus / "train")
    assert index.left_out == {"with audio that is none of .flac, .wav, .ogg, .opus, .mp3": [
        str(path.with_suffix(".m4a"))]}


@pytest.mark.parametrize(("names", "holds"), [([], "nothing"), (["a.m4a", "b.M4A", "list.csv", "notes"],
                                                                "2 .m4a, 1 .csv, 1 without extension")])
def test_a_folder_that_is_no_split_says_what_it_holds(tmp_path, names, holds):
    (tmp_path / "train" / "deeper").mkdir(parents=True)
    for name in names:
        (tmp_path / "train" / "deeper" / name).touch()
    with pytest.raises(DataError) as error:
        data_module(tmp_path).index("train")
    assert str(error.value) == (f"{tmp_path}/train: no *.trans.txt in this folder, which holds {holds}; other corpora "
                                "can be listed in a JSON-lines manifest")


def test_names_that_are_no_utf_8(corpus):
    """Of folders and of files, as old disks and archives have them; the cache, a manifest and the report take them."""
    odd = Path(os.fsdecode(os.fsencode(corpus) + b"/b\xfccher"))
    (corpus / "train").rename(odd)
    sound = odd / os.fsdecode(b"caf\xe9.opus")
    shutil.copy(audio_of(odd), sound)
    (odd / "x.jsonl").write_text(json.dumps(row(sound)))  # with escapes, as Python writes names that it was given
    data = data_module(corpus, train_sets=[odd.name], val_sets=[str(odd / "x.jsonl")])
    data.prepare_data()
    assert set(order(data.train_dataloader())) == ALL
    assert order(data.val_dataloader()[0]) == [f"{corpus}/b\\udcfccher/caf\\udce9.opus"]
    str(data.index(odd.name, training=True)).encode()
    assert [type(batch) for batch in data.train_dataloader()] == [Batch] * 3


# -- manifests of parts of files, and of other toolkits ----------------------------------------------


def joined(corpus: Path) -> tuple[Path, torch.Tensor]:
    """Three seconds of speech in one file, and its samples."""
    speech = torch.cat([load_audio(path) for path in SPEECH[:4]])[:48_000]
    soundfile.write(corpus / "long.wav", speech.numpy(), SAMPLE_RATE, subtype="FLOAT")
    return corpus / "long.wav", speech


def test_each_part_of_a_file_is_an_utterance_of_its_own(corpus):
    path, speech = joined(corpus)
    manifest_path = write_manifest(corpus / "x.jsonl", row(path.name, "one", offset=0.0, duration=1.0),
                                   row(path.name, "two", offset=1.0, duration=1.5), row(path.name, "rest", offset=2.5),
                                   row(path.name, "begin", duration=0.5),
                                   row(path.name, "whole", duration=3.02, id="w"))
    data = data_module(corpus, val_sets=[str(manifest_path)])
    index = data.index(str(manifest_path))
    assert index.left_out == {} and [u.id for u in index.utterances] == [
        "long.wav@0+1", "long.wav@1+1.5", "long.wav@2.5", "long.wav", "w"]
    assert [u.seconds for u in index.utterances] == [1.0, 1.5, 0.5, 0.5, 3.0]
    read = {id: waveform[:count] for batch in data.val_dataloader()[0]
            for id, waveform, count in zip(batch.ids, batch.waveforms, batch.sample_counts, strict=True)}
    expected = {"long.wav@0+1": speech[:16_000], "long.wav@1+1.5": speech[16_000:40_000], "w": speech,
                "long.wav@2.5": speech[40_000:], "long.wav": speech[:8_000]}
    assert read.keys() == expected.keys()
    for id, waveform in expected.items():
        torch.testing.assert_close(read[id], waveform, atol=0, rtol=0)


def test_a_part_may_be_of_a_file_that_is_too_long_for_an_utterance(corpus, monkeypatch):
    path, _ = joined(corpus)
    monkeypatch.setattr(index_module, "LONGEST", 2.0)
    manifest_path = write_manifest(corpus / "x.jsonl", row(path), row(path, "one", offset=1, duration=1))
    index = data_module(corpus).index(str(manifest_path))
    assert [u.text for u in index.utterances] == ["one"]
    assert index.left_out == {"with bad audio: longer than an hour: cut it into utterances": [str(path)]}


@pytest.mark.parametrize("part", [{"offset": 3.0}, {"offset": 9.0, "duration": 1.0}, {"offset": 2.0, "duration": 2.0},
                                  {"offset": 1.0, "duration": 0}, {"duration": 0.0}], ids=str)
def test_a_part_that_is_not_in_its_file_is_left_out(corpus, part):
    path, _ = joined(corpus)
    manifest_path = write_manifest(corpus / "x.jsonl", row(path, **part), row(path, id="good"))
    index = data_module(corpus).index(str(manifest_path))
    assert [u.id for u in index.utterances] == ["good"]
    assert index.left_out == {"with bad audio: a part that is not in it": [str(path)]}


@pytest.mark.parametrize("value", ["1.5", -1, True, [1], float("inf"), float("nan")], ids=repr)
@pytest.mark.parametrize("key", ["offset", "duration"])
def test_a_part_that_is_no_number_of_seconds(corpus, key, value):
    manifest_path = write_manifest(corpus / "x.jsonl", row(audio_of(corpus), **{key: value}), row(audio_of(corpus)))
    index = data_module(corpus).index(str(manifest_path))
    assert index.left_out == {"with a bad manifest line": [f"line 1: {key!r} is no number of seconds"]}


def lhotse_cut(path, *, start: float = 1.0, **more) -> dict:
    """A Lhotse MonoCut."""
    supervision = {"id": "s1", "recording_id": "r", "start": 0.25, "duration": 1.0, "channel": 0, "text": "he did not",
                   "speaker": "anna", **more.pop("supervision", {})}
    sources = [{"type": "file", "channels": [0], "source": str(path)}]
    return {"id": "c", "start": start, "duration": 2.0, "channel": 0, "supervisions": [supervision], "type": "MonoCut",
            "recording": {"id": "r", "sources": sources, "sampling_rate": 16_000, "duration": 3.0}, **more}


def test_manifests_of_nemo_and_cuts_of_lhotse(corpus):
    path, _ = joined(corpus)
    rows = [{"audio_filepath": path.name, "text": "nemo", "duration": 3.0, "offset": 0}, lhotse_cut(path.name),
            lhotse_cut(path.name, supervisions=[])]
    index = data_module(corpus).index(str(write_manifest(corpus / "x.jsonl", *rows)))
    assert [(u.id, u.text, u.speaker, u.part, u.seconds) for u in index.utterances] == [
        ("long.wav@0+3", "nemo", "", None, 3.0), ("s1", "he did not", "anna", (1.25, 1.0), 1.0)]
    assert index.left_out == {"with a bad manifest line": [
        "line 3: not a Lhotse cut of one supervision, in a file of one channel"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_manifests_in_other_encodings(corpus, encoding):
    path = corpus / "x.jsonl"
    path.write_bytes(json.dumps(row(audio_of(corpus), id="é"), ensure_ascii=False).encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(DataError, match=f"^{path}: cannot be read as a JSON-lines manifest .not UTF-8.*E9.*iconv"):
            data_module(corpus).index(str(path))
    else:
        assert [u.id for u in data_module(corpus).index(str(path)).utterances] == ["é"]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.manifest", "train.txt", "train.jsonl.gz"])
def test_tables_of_another_kind_say_what_is_read_instead(corpus, name):
    (corpus / name).write_text("audio,text\n")
    for given in (name, str(corpus / name)):
        with pytest.raises(DataError) as error:
            data_module(corpus, train_sets=[given]).prepare_data()
        assert str(error.value).startswith(f"{corpus / name}: a manifest is a .jsonl file with one JSON object per")


