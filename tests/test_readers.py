"""What the readers of corpora take: folders and manifests as people and other programs make them."""

import csv
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import CORPUS, SPEECH
from test_data import ALL, ID, audio_of, corpus, data_module, edit_line, ids, index_of, order, row, write_manifest
from training_runs import arguments, checkpoint

import train
from data import convert, readers, shard
from data import index as index_module
from data.dataset import SpeechDataset
from data.index import DataError
from data.sampler import SampleRef
from utils.audio import SAMPLE_RATE, load_audio, resample
from utils.files import frames
from utils.tokenizer import CharTokenizer
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


def test_links_to_nothing_are_counted(corpus, tmp_path):
    """As of a disk that is not mounted; what is there is used."""
    for name in ("9002", "9003.trans.txt"):
        (corpus / "train" / name).symlink_to(tmp_path / "absent")
    (corpus / "train" / "loop").symlink_to("loop")
    index = data_module(corpus).index("train")
    assert len(index.utterances) == 10
    assert index.left_out == {"of links to nothing": [
        str(corpus / "train" / name) for name in ("9002", "9003.trans.txt", "loop")]}


def test_hidden_folders_are_no_part_of_a_split(corpus):
    """A wastebasket, a notebook's copies, an archive that is being unpacked."""
    for name in (".Trash-1000", ".ipynb_checkpoints"):
        shutil.copytree(corpus / "train" / "9001", corpus / "train" / name)
    index = data_module(corpus).index("train")
    assert len(index.utterances) == 10 and not index.left_out


def test_no_name_is_no_split(corpus):
    """As of a variable that is not set: it would mean all that is under the root, test sets among it."""
    with pytest.raises(DataError, match="no split ''"):
        data_module(corpus).index("")


@pytest.mark.parametrize("name", [".", "..", "{root}", "LibriSpeech", "LibriSpeech/test/.."])
def test_a_folder_around_all_splits_is_no_split(corpus, name):
    """It would train on test sets; so would the folder of LibriSpeech's archives."""
    if "LibriSpeech" in name:
        (corpus / "LibriSpeech").mkdir()
        for split in ("train", "test"):
            (corpus / split).rename(corpus / "LibriSpeech" / split)
    name = name.format(root=corpus)
    with pytest.raises(DataError) as error:
        data_module(corpus, train_sets=[name]).prepare_data()
    assert str(error.value) == (f"{name}: all that is under --data_root {corpus}, test sets among it: name a folder of "
                                "one split")


def test_names_are_of_the_root_or_else_of_the_working_directory(tmp_path, monkeypatch, capsys):
    """Of whatever layout; the root comes first."""
    for folder in ("root", "."):
        shutil.copytree(CORPUS / "dev", tmp_path / folder / "mine")
        (tmp_path / folder / "x.jsonl").write_text(json.dumps(row(next(tmp_path.rglob("*.opus")), folder)) + "\n")
        write_lines(tmp_path / folder / "x.tsv", "path\tsentence", f"a.mp3\t{folder}")
        (tmp_path / folder / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "x.tsv"):
        assert [entry.text for entry in readers.list_split(Path("root"), name)[0]] == ["root"]
    assert all("root/mine/" in entry.audio for entry in readers.list_split(Path("root"), "mine")[0])
    convert.main(["root/mine", "--output", "mine.jsonl"])
    assert capsys.readouterr().out == "mine.jsonl: 5 utterances\n"


def test_names_in_capitals(corpus):
    """As disks of other systems have them."""
    for path in (corpus / "train").rglob("*.trans.txt"):
        path.rename(path.with_name(path.name.upper()))
    index = data_module(corpus).index("train")
    assert len(index.utterances) == 10 and not index.left_out
    (corpus / "A.JSONL").write_text(json.dumps({"audio": index.utterances[0].audio, "text": "hello"}))
    assert len(data_module(corpus).index("A.JSONL").utterances) == 1
    (corpus / "A.CSV").touch()
    with pytest.raises(DataError, match="A.CSV: a manifest is a .jsonl file"):
        data_module(corpus).index("A.CSV")


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
    assert str(error.value) == (f"{tmp_path}/train: no *.trans.txt, wav.scp, metadata.csv or *.tar in this folder, "
                                f"which holds {holds}; other corpora can be listed in a JSON-lines manifest")


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


# -- manifests of parts of files ----------------------------------------------


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


def test_a_part_that_may_round_to_no_samples_is_left_out(corpus):
    path, _ = joined(corpus)
    manifest_path = write_manifest(corpus / "x.jsonl", row(path, offset=2.99999), row(path, offset=1, duration=0.00001),
                                   row(path, id="good", offset=2.98))
    index = data_module(corpus).index(str(manifest_path))
    assert [u.id for u in index.utterances] == ["good"]
    assert index.left_out == {"with bad audio: a part of less than 0.01 s": [str(path)] * 2}


@pytest.mark.parametrize("value", ["1.5", -1, True, [1], float("inf"), float("nan"), pytest.param(10**309, id="long")],
                         ids=repr)
@pytest.mark.parametrize("key", ["offset", "duration"])
def test_a_part_that_is_no_number_of_seconds(corpus, key, value):
    manifest_path = write_manifest(corpus / "x.jsonl", row(audio_of(corpus), **{key: value}), row(audio_of(corpus)))
    index = data_module(corpus).index(str(manifest_path))
    assert index.left_out == {"with a bad manifest line": [f"line 1: {key!r} is no number of seconds"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_manifests_in_other_encodings(corpus, encoding):
    path = corpus / "x.jsonl"
    path.write_bytes(json.dumps(row(audio_of(corpus), id="é"), ensure_ascii=False).encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(DataError, match=f"^{path}: cannot be read as a JSON-lines manifest .not UTF-8.*E9.*iconv"):
            data_module(corpus).index(str(path))
    else:
        assert [u.id for u in data_module(corpus).index(str(path)).utterances] == ["é"]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.manifest", "train.txt", "train.csv.gz"])
def test_tables_of_another_kind_say_what_is_read_instead(corpus, name):
    (corpus / name).write_text("audio,text\n")
    for given in (name, str(corpus / name)):
        with pytest.raises(DataError) as error:
            data_module(corpus, train_sets=[given]).prepare_data()
        assert str(error.value).startswith(f"{corpus / name}: a manifest is a .jsonl file with one JSON object per")


# -- corpora in the layouts of other toolkits --------------------------------------------------------

WORDS = ["he did not", "I had faith", "in them", "it's a canoe"]


def write_mp3(folder: Path, pattern: str) -> list[tuple[str, str]]:
    """Writes speech as MP3 at 48 kHz; returns name and text of each file."""
    folder.mkdir()
    named = [(path, pattern.format(i), text) for i, (path, text) in enumerate(zip(SPEECH, WORDS, strict=False))]
    for path, name, _ in named:
        soundfile.write(folder / name, resample(load_audio(path), SAMPLE_RATE, 48_000).numpy(), 48_000)
    return [(name, text) for _, name, text in named]


def common_voice(root: Path) -> str:
    """A language of Common Voice: MP3 at 48 kHz, and a table as its releases have it."""
    rows = [f"{'ab' * 64}\t{name}\t{text}\t2\ten" for name, text in write_mp3(root / "clips", "common_voice_en_{}.mp3")]
    write_lines(root / "train.tsv", "client_id\tpath\tsentence\tup_votes\tlocale", *rows)
    return "train.tsv"


def common_voice_1(root: Path) -> str:
    """A split of Common Voice's first release: a table with commas, whose clips it names with their folder."""
    clips = write_mp3(root / "cv-valid-dev", "sample-{:06}.mp3")
    write_lines(root / "cv-valid-dev.csv", "filename,text,up_votes,down_votes,age,gender,accent,duration",
                *(f"cv-valid-dev/{name},{text},1,0,,,," for name, text in clips))
    return "cv-valid-dev.csv"


def kaldi(root: Path) -> str:
    """A data folder of Kaldi with two recordings, each of two segments."""
    folder = root / "data" / "train"
    folder.mkdir(parents=True)
    seconds = [len(load_audio(path)) / SAMPLE_RATE for path in SPEECH[:4]]
    for name, pair in {"rec1": SPEECH[:2], "rec2": SPEECH[2:4]}.items():
        soundfile.write(root / f"{name}.flac", torch.cat([load_audio(path) for path in pair]).numpy(), SAMPLE_RATE)
    write_lines(folder / "wav.scp", f"rec1 {root}/rec1.flac", f"rec2  {root}/rec2.flac")
    write_lines(folder / "text", *(f"utt{i} {text}" for i, text in enumerate(WORDS)))
    write_lines(folder / "utt2spk", *(f"utt{i} anna" for i in range(4)))
    write_lines(folder / "segments", f"utt0 rec1 0.0 {seconds[0]:.6f}", f"utt1 rec1 {seconds[0]:.6f} -1",
                f"utt2 rec2 0.00 {seconds[2]:.6f}", f"utt3 rec2 {seconds[2]:.6f} {sum(seconds[2:]):.6f}")
    return "data/train"


def audiofolder(root: Path) -> str:
    """A folder as Hugging Face's audiofolder has it."""
    (root / "hf" / "clips").mkdir(parents=True)
    rows = []
    for path, text in zip(SPEECH, WORDS, strict=False):
        shutil.copy(path, root / "hf" / "clips")
        rows.append({"file_name": f"clips/{path.name}", "transcription": text, "speaker_id": "anna"})
    with open(root / "hf" / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    return "hf"


def audiofolder_jsonl(root: Path) -> str:
    """The same with its table as JSON lines."""
    name = audiofolder(root)
    with open(root / name / "metadata.csv", encoding="utf-8") as file:
        write_manifest(root / name / "metadata.jsonl", *csv.DictReader(file))
    (root / name / "metadata.csv").unlink()
    return name


def nemo(root: Path) -> str:
    """A manifest of NeMo."""
    rows = [{"audio_filepath": str(path), "text": text, "duration": len(load_audio(path)) / SAMPLE_RATE}
            for path, text in zip(SPEECH, WORDS, strict=False)]
    return str(write_manifest(root / "nemo.json", *rows))


def lhotse_cut(path, text: str = "he did not", *, start: float = 0.0, duration: float | None = None, **more) -> dict:
    """A cut as Lhotse 1.33 writes it (`CutSet.from_manifests(...).to_file`)."""
    total = len(load_audio(path)) / SAMPLE_RATE
    name, duration = Path(path).stem, duration or total
    supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": duration, "channel": 0, "text": text,
                   "language": "English", "speaker": "anna"}
    recording = {"id": name, "sources": [{"type": "file", "channels": [0], "source": str(path)}],
                 "sampling_rate": 16000, "num_samples": round(total * SAMPLE_RATE), "duration": total,
                 "channel_ids": [0]}
    return {"id": f"{name}-0", "start": start, "duration": duration, "channel": 0, "supervisions": [supervision],
            "recording": recording, "type": "MonoCut", **more}


def lhotse(root: Path) -> str:
    """Cuts of Lhotse, packed."""
    cuts = [json.dumps(lhotse_cut(path, text)) for path, text in zip(SPEECH, WORDS, strict=False)]
    (root / "cuts.jsonl.gz").write_bytes(gzip.compress("\n".join(cuts).encode()))
    return str(root / "cuts.jsonl.gz")


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


LAYOUTS = [common_voice, common_voice_1, kaldi, audiofolder, audiofolder_jsonl, nemo, lhotse]


@pytest.mark.parametrize("build", LAYOUTS, ids=lambda build: build.__name__)
def test_each_layout_is_read_and_trained_on(build, tmp_path):
    """Its texts belong to its sound, nothing is left out, and `train.py` makes a step of it."""
    name = build(tmp_path)
    data = data_module(tmp_path, val_sets=[name])
    index = data.index(name)
    assert index.left_out == {} and [u.text for u in index.utterances] == [text.lower() for text in WORDS]
    speaker = {"common_voice": "ab" * 64, "common_voice_1": "", "nemo": ""}.get(build.__name__, "anna")
    assert {u.speaker for u in index.utterances} == {speaker}
    mp3 = build in (common_voice, common_voice_1)
    near = 0.2 if mp3 else 2e-4  # MP3 is another sound, FLAC has 16 bits
    dataset = SpeechDataset(index.utterances, CharTokenizer())
    for i, path in enumerate(SPEECH[:4]):
        expected, (_, found) = load_audio(path), dataset[SampleRef(i, 0)]
        size = min(len(expected), len(found))
        assert abs(len(expected) - len(found)) <= (1152 if mp3 else 4)
        assert (expected[:size] - found[:size]).norm() < near * expected.norm()
    train.main(arguments(tmp_path / "run", "--data_root", str(tmp_path), "--train_sets", name, "--val_sets", name,
                         "--test_sets", "--limit_train_batches", "1", "--batch_size", "2", "--epochs", "1"))
    assert checkpoint(tmp_path / "run")["global_step"] == 1


def test_a_relative_path_is_of_the_folder_or_of_the_working_directory(tmp_path, monkeypatch):
    """As recipes of Kaldi and Lhotse write it, seen from where they run; the folder comes first."""
    monkeypatch.chdir(tmp_path)
    for folder in (".", "data"):
        Path(folder).mkdir(exist_ok=True)
        shutil.copy(SPEECH[0], f"{folder}/both.opus")
    shutil.copy(SPEECH[0], "here.opus")
    write_lines(Path("data/wav.scp"), "a here.opus", "b both.opus", "c nowhere.opus")
    write_lines(Path("data/text"), "a so", "b so", "c so")
    index = data_module(tmp_path).index("data")
    assert [u.audio for u in index.utterances] == ["here.opus", f"{tmp_path}/data/both.opus"]
    assert index.left_out == {"with bad audio: no such file": [f"{tmp_path}/data/nowhere.opus"]}


def test_faults_in_a_folder_of_kaldi(tmp_path):
    name = kaldi(tmp_path)
    folder = tmp_path / name
    with open(folder / "wav.scp", "a") as file:
        file.write(f"piped sox {tmp_path}/rec1.flac -t wav - |\narchived {tmp_path}/raw.ark:123\nrec1 again.wav\n")
    with open(folder / "segments", "a") as file:
        file.write("piped piped 0 1\narchived archived 0 1\nlost nothing 0 1\nodd rec1 2.0\nback rec1 2.0 1.0\n"
                   "silent rec1 0.5 0.7\n")
    with open(folder / "text", "a") as file:
        file.write("piped so\narchived so\nlost so\nodd so\nback so\nnosegment so\nutt0 again\n")
    index = data_module(tmp_path).index(name)
    assert [u.id for u in index.utterances] == ["utt0", "utt1", "utt2", "utt3"]
    assert index.left_out == {
        "with a bad line in wav.scp": ["line 5: rec1 came before"],
        "with a bad line in text": ["line 11: utt0 came before"],
        "with a bad line in segments": ["odd rec1 2.0", "back rec1 2.0 1.0"],
        "with a command in wav.scp, which is not run: write its output to files": ["piped"],
        "with audio in an archive of Kaldi: copy it to files by wav-copy": ["archived"],
        "without audio": ["lost", "odd", "back", "nosegment"], "without a transcript": ["silent"]}


def test_a_folder_of_kaldi_without_text_or_segments(tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    write_lines(folder / "wav.scp", *(f"utt{i} {path}" for i, path in enumerate(SPEECH[:2])))
    with pytest.raises(DataError) as error:
        data_module(tmp_path).index("whole")
    assert str(error.value) == f"{folder}/text: cannot be read as a file of Kaldi's (No such file or directory)"
    write_lines(folder / "text", "utt0 so", "utt1 now")
    index = data_module(tmp_path).index("whole")
    assert [(u.id, u.part, u.speaker) for u in index.utterances] == [("utt0", None, ""), ("utt1", None, "")]


def test_faults_in_a_table_of_common_voice(tmp_path):
    """Quotation marks of early releases and of new ones, a row that is cut off, a clip that is not there."""
    name = common_voice(tmp_path)
    with open(tmp_path / name, "a") as file:
        for i, sentence in enumerate(['"""Yes"" he said"', '"Yes", he said, "no"', "so"]):
            file.write(f"me\tcommon_voice_en_{i + 9}.mp3\t{sentence}\t2\ten\n")
        file.write("me\tcommon_voice_en_0.mp3\n")
    entries, faults = readers.list_split(tmp_path, name)
    assert [entry.text for entry in entries[4:]] == ['"Yes" he said', '"Yes", he said, "no"', "so"]
    assert faults == {"with a bad line in the table": ["line 9: 2 columns, not 5"]}
    index = data_module(tmp_path).index(name)
    assert len(index.utterances) == 4
    assert index.left_out["with bad audio: no such file"] == [str(tmp_path / "clips" / "common_voice_en_11.mp3")]
    (tmp_path / name).write_text("path\ttext\n")
    with pytest.raises(DataError) as error:
        data_module(tmp_path).index(name)
    assert str(error.value) == f"{tmp_path}/{name}: no column sentence in its first line, which has path, text"


def test_faults_in_a_table_of_the_first_common_voice(tmp_path):
    name = common_voice_1(tmp_path)
    with open(tmp_path / name, "a") as file:
        file.write('cv-valid-dev/sample-000000.mp3,"well, said he",1,0,,,,\n')
        file.write("cv-valid-dev/sample-000009.mp3,so,1,0,,,,\ncv-valid-dev/sample-000001.mp3,so\n")
    entries, faults = readers.list_split(tmp_path, name)
    assert [entry.text for entry in entries[4:]] == ["well, said he", "so"]
    assert faults == {"with a bad line in the table": ["line 8: 2 columns, not 8"]}
    left_out = data_module(tmp_path).index(name).left_out
    assert left_out["with bad audio: no such file"] == [str(tmp_path / "cv-valid-dev" / "sample-000009.mp3")]
    (tmp_path / name).write_text("path,sentence\n")
    with pytest.raises(DataError, match=r"dev.csv: a manifest is a .jsonl file with one"):
        data_module(tmp_path).index(name)


def test_faults_in_a_table_of_an_audiofolder(tmp_path):
    """A text over two lines, a row that is cut off, a quotation mark that never ends in a field too long, or ever."""
    name = audiofolder(tmp_path)
    table, clip = tmp_path / name / "metadata.csv", f"clips/{SPEECH[0].name}"
    with open(table, "a") as file:
        file.write(f'clips/a.wav,"two\nlines",me\n{clip}\nclips/b.wav,"no end,me\n{"x" * 200_000}\n')
    index = data_module(tmp_path).index(name)
    assert [u.id for u in index.utterances] == [f"clips/{path.name}" for path in SPEECH[:4]]
    assert index.left_out == {
        "with a bad line in the table": [
            "lines 6 to 7: a line end within a field: end its quotation mark", "line 8: not 3 columns",
            "lines 9 to 10: field larger than field limit (131072)", "line 11: not 3 columns"]}
    table.write_text(f'file_name,transcription\n{clip},so\nb.wav,"no end\n' + f"{clip},so\n" * 100)
    assert data_module(tmp_path).index(name).left_out == {
        "with a bad line in the table": ["lines 3 to 103: a line end within a field: end its quotation mark"]}
    for rest, reason in ((f"{clip},so\n", "it goes on in the next one"),
                         ("x" * 200_000, "field larger than field limit (131072)")):
        table.write_text(f'file_name,"transcription\n{rest}')
        with pytest.raises(DataError) as error:
            data_module(tmp_path).index(name)
        assert str(error.value) == f"{table}: its first line cannot be read ({reason}): end its quotation mark"
    for header, reason in {"path,text": "no column file_name in its first line, which has path, text",
                           "": "no column file_name in its first line, which has "}.items():
        table.write_text(f"{header}\n")
        with pytest.raises(DataError) as error:
            data_module(tmp_path).index(name)
        assert str(error.value) == f"{table}: {reason}"
    table.write_text(f"file_name,words\n{clip},so\n")
    with pytest.raises(DataError, match="line 2: none of the columns transcription, text, sentence, transcript"):
        data_module(tmp_path).index(name)
    table.write_bytes(b"file_name,text\na.wav,caf\xe9\n")
    with pytest.raises(DataError, match=f"^{table}: cannot be read as a table .not UTF-8"):
        data_module(tmp_path).index(name)


def test_cuts_of_lhotse_that_are_no_plain_utterance(corpus):
    """Each is left out with the true reason; a part of a recording is read, and one that is only resampled."""
    path, _ = joined(corpus)
    stereo = [{"type": "file", "channels": [0, 1], "source": str(path)}]

    def changed(**fields) -> dict:
        return lhotse_cut(path, recording={**lhotse_cut(path)["recording"], **fields})

    rows = [lhotse_cut(path, start=1.25, duration=1.0), lhotse_cut(path, supervisions=[]), changed(sources=stereo),
            changed(sources=[{"type": "command", "channels": [0], "source": "sox"}]), {"id": "p", "type": "PaddingCut"},
            changed(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), {**lhotse_cut(path), "recording": None},
            {"id": "m", "type": "MixedCut", "tracks": []}, lhotse_cut(path, start=10**309),
            lhotse_cut(path, "", supervisions=[{"id": "s", "start": 0.0, "duration": 1.0}]),
            lhotse_cut(path, start=0.1, supervisions=[{"id": "r", "text": "so", "start": -0.1, "duration": 1.0}]),
            {**changed(transforms=[{"name": "Resample", "kwargs": {}}]),
             "supervisions": [{"id": "8k", "text": "so", "start": 0, "duration": 1.0}]}]
    index = data_module(corpus).index(str(write_manifest(corpus / "cuts.jsonl", *rows)))
    assert [(u.id, u.text, u.part) for u in index.utterances] == [
        ("long", "he did not", (1.25, 1.0)), ("r", "so", (0.0, 1.0)), ("8k", "so", (0.0, 1.0))]
    assert index.left_out == {"with a bad manifest line": [
        "line 2: a Lhotse cut of 0 supervisions, not one",
        "line 3: a Lhotse recording that is not one file of one channel",
        "line 4: a Lhotse recording that is not one file of one channel",
        "line 5: a Lhotse PaddingCut: MonoCuts alone are read",
        "line 6: a Lhotse recording that is to be changed (Speed)", "line 7: a Lhotse cut without a recording",
        "line 8: a Lhotse MixedCut: MonoCuts alone are read", "line 9: not a Lhotse cut", "line 10: no 'text' string"]}


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg", "mp3"])
def test_a_part_is_read_alone(tmp_path, suffix, monkeypatch):
    """The same samples as those of the whole file, of which no more is decoded or looked through."""
    speech = torch.cat([load_audio(path) for path in SPEECH])
    path = tmp_path / f"long.{suffix}"
    soundfile.write(path, speech.numpy(), SAMPLE_RATE)
    whole, decoded, read = load_audio(path), [], soundfile.SoundFile.read

    def counting(self, frames, **options):
        decoded.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    monkeypatch.setattr(frames, "_find", None)  # with which a whole file is looked through
    part = load_audio(path, part=(20.25, 1.5))
    assert decoded == [24_000]
    torch.testing.assert_close(part, whole[324_000:348_000], rtol=0, atol=0 if suffix in ("flac", "wav") else 1e-4)


# -- any split as a manifest -------------------------------------------------------------------------


@pytest.mark.parametrize("build", LAYOUTS, ids=lambda build: build.__name__)
def test_any_split_is_written_as_a_manifest(build, tmp_path, capsys):
    """With the same utterances, in the same parts of the same files, where both are moved together."""
    corpus, moved = tmp_path / "corpus", tmp_path / "moved"
    corpus.mkdir()
    name = build(corpus)
    convert.main([name, "--data_root", str(corpus), "--output", str(corpus / "mine.jsonl")])
    assert capsys.readouterr().out == f"{corpus}/mine.jsonl: 4 utterances\n"
    expected = data_module(corpus).index(name).utterances
    corpus.rename(moved)
    found = data_module(moved).index("mine.jsonl")
    assert found.left_out == {}
    assert [u._replace(audio="") for u in found.utterances] == [u._replace(audio="") for u in expected]
    assert all(Path(u.audio).is_file() for u in found.utterances)


def test_a_folder_of_librispeech_is_written_as_a_manifest(corpus, monkeypatch, capsys):
    """Also from a relative path to a manifest elsewhere; what is not listed is counted; texts are as they were."""
    edit_line(corpus / "train", f"{ID} It’s 5!", "gone so")
    monkeypatch.chdir(corpus)
    convert.main(["train", "--data_root", ".", "--output", "../mine.jsonl"])
    assert capsys.readouterr().out == "../mine.jsonl: 10 utterances; left out: 1 without audio (gone)\n"
    rows = {row["id"]: row for row in map(json.loads, Path("../mine.jsonl").read_text().splitlines())}
    assert rows[ID] == {"audio": f"corpus/train/9001/1/{ID}.opus", "text": "It’s 5!", "id": ID, "speaker": "9001"}
    assert ids(data_module(corpus.parent).index("mine.jsonl").utterances) == ALL - {ID}


@pytest.mark.parametrize(("name", "output", "reason"), [
    ("nowhere", "mine.jsonl", "no split 'nowhere' under "), ("empty.jsonl", "mine.jsonl", "empty.jsonl: 0 utterances"),
    ("train", "mine.csv", "--output mine.csv: the name of a manifest ends in .jsonl"),
    ("train", "no/folder/mine.jsonl", "no/folder/mine.jsonl: No such file or directory")])
def test_what_cannot_be_written_as_a_manifest(corpus, monkeypatch, capsys, name, output, reason):
    monkeypatch.chdir(corpus)
    Path("empty.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="2"):
        convert.main([name, "--data_root", ".", "--output", output])
    error, = capsys.readouterr().err.splitlines()
    assert error.startswith(f"python -m data.convert: error: {reason}")


def test_a_wrong_flag_is_one_line(capsys):
    for program in (convert, shard):
        with pytest.raises(SystemExit, match="2"):
            program.main(["train", "--out", "x"])
        error, = capsys.readouterr().err.splitlines()
        assert error == f"python -m {program.__name__}: error: the following arguments are required: --output"
