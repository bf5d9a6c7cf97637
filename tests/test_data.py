"""From folders and manifests to batches: what is used, what is left out and said so, what is remembered."""

import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import CORPUS

from data import index as index_module
from data.datamodule import LibriSpeechDataModule
from data.dataset import SpeechDataset
from data.index import DataError, Entry, Index, build_index, probe_all
from data.options import TrainingDataOptions
from data.readers import manifest
from data.readers.librispeech import list_entries
from data.sampler import SampleRef
from utils.audio import SAMPLE_RATE, AudioError, load_audio
from utils.tokenizer import CharTokenizer
from utils.types import Batch

ID = "9001-1-00290"  # the utterance that is damaged, one of two in its chapter
ALL = {path.stem for path in (CORPUS / "train").rglob("*.opus")}


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A copy of the corpus, to damage."""
    return Path(shutil.copytree(CORPUS, tmp_path / "corpus"))


def index_of(folder: Path, cache: Path | None = None) -> Index:
    return build_index("train", *list_entries(folder), CharTokenizer(), cache or folder.parent / "cache")


def data_module(root: Path, **options) -> LibriSpeechDataModule:
    defaults = {"train_sets": ["train"], "val_sets": ["dev"], "test_sets": ["test"], "batch_size": 4,
                "num_workers": 0, "cache_dir": str(root / "cache")}
    more = {name: options.pop(name) for name in ("output_frames", "overfit") if name in options}
    return LibriSpeechDataModule(TrainingDataOptions(data_root=str(root), **{**defaults, **options}), CharTokenizer(),
                                 **more)


def ids(utterances) -> set[str]:
    return {utterance.id for utterance in utterances}


def audio_of(folder: Path, utterance: str = ID) -> Path:
    return next(folder.rglob(f"{utterance}.opus"))


def edit_line(folder: Path, *lines: str) -> None:
    """Puts `lines` in place of the transcript of ID."""
    path = audio_of(folder).with_name("9001-1.trans.txt")
    kept = [line for line in path.read_text().splitlines() if not line.startswith(ID)]
    path.write_text("\n".join([*lines, *kept]) + "\n", encoding="utf-8")


# -- what is wrong with a corpus: each of these damages ID, and gives the line of the report ------


def truncated(folder):
    path = audio_of(folder)
    path.write_bytes(path.read_bytes()[:-300])
    return "1 with bad audio: truncated", str(path)


def zero_bytes(folder):
    audio_of(folder).write_bytes(b"")
    return "1 with bad audio: empty", str(audio_of(folder))


def no_sound(folder):
    audio_of(folder).write_text("no sound at all")
    return "1 with bad audio: not audio", str(audio_of(folder))


def folder_in_its_place(folder):
    path = audio_of(folder)
    path.unlink()
    path.mkdir()
    return "1 with bad audio: not a file", str(path)


def broken_link(folder):
    path = audio_of(folder)
    path.unlink()
    path.symlink_to("nowhere.opus")
    return "1 with bad audio: no such file", str(path)


def not_a_number(folder):
    path = audio_of(folder)
    path.unlink()
    soundfile.write(path.with_suffix(".wav"), np.full(9_000, np.nan), SAMPLE_RATE, subtype="FLOAT")
    return "1 with bad audio: samples that are not finite", str(path.with_suffix(".wav"))


def no_line(folder):
    edit_line(folder)
    return "1 without a transcript", ID


def no_text(folder):
    edit_line(folder, f"{ID} \t ")
    return "1 with an empty transcript", ID


def other_alphabet(folder):
    edit_line(folder, f"{ID} CAFÉ 5")
    return "1 with characters outside the alphabet", f"{ID}: 5 é"


def no_audio(folder):
    audio_of(folder).unlink()
    return "1 without audio", ID


FAULTS = [truncated, zero_bytes, no_sound, folder_in_its_place, broken_link, not_a_number, no_line, no_text,
          other_alphabet, no_audio]


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_fault_is_reported_and_left_out_alone(corpus, damage):
    kind, example = damage(corpus / "train")
    index = index_of(corpus / "train")
    assert ids(index.utterances) == ALL - {ID}
    report = str(index)
    assert report.startswith("train: 9 utterances, 0.00 h; left out: ") and "\n" not in report
    assert kind in report and f"({example})" in report
    assert sum(map(len, index.left_out.values())) == 1


def test_a_good_corpus_has_nothing_to_report(corpus):
    index = index_of(corpus / "train")
    assert ids(index.utterances) == ALL and index.left_out == {}
    assert str(index) == "train: 10 utterances, 0.00 h"
    first = next(utterance for utterance in index.utterances if utterance.id == ID)
    assert (first.id, first.text, first.speaker) == (ID, "i had faith in them", "9001")
    assert first.tokens == CharTokenizer().encode(first.text)
    assert first.seconds == len(load_audio(first.audio)) / SAMPLE_RATE


def test_a_chapter_without_a_transcript_file(corpus):
    (corpus / "train/9001/3/9001-3.trans.txt").unlink()
    index = index_of(corpus / "train")
    assert len(index.utterances) == 9
    assert index.left_out == {"without a transcript": [str(audio_of(corpus / "train", "9001-3-02392"))]}


def test_a_transcript_that_is_no_text(corpus):
    path = corpus / "train/9001/1/9001-1.trans.txt"
    path.write_bytes(b"\xff\xfe\x00nothing!")
    index = index_of(corpus / "train")
    assert len(index.utterances) == 8
    assert index.left_out == {"in an unreadable transcript": [f"{path}: begins as UTF-16 but is not: save it as UTF-8"]}


def test_an_id_that_comes_twice_counts_once(corpus):
    edit_line(corpus / "train", f"{ID} the first", f"{ID} the second")
    index = index_of(corpus / "train")
    assert ids(index.utterances) == ALL and index.utterances[0].text == "the first"
    assert index.left_out == {"with an id that came before": [ID]}


def test_what_editors_leave_in_transcripts(corpus):
    """A byte order mark, Windows line ends, separators that are no line ends."""
    path = corpus / "train/9001/1/9001-1.trans.txt"
    path.write_bytes(f"\ufeff{ID} IT\u2028IS\r\n\r\n9001-1-00781 SO\r\n".encode())
    index = index_of(corpus / "train")
    assert {u.id: u.text for u in index.utterances[:2]} == {ID: "it is", "9001-1-00781": "so"}
    assert index.left_out == {}


def test_faults_are_counted_and_few_are_shown(corpus):
    for path in sorted((corpus / "train").rglob("*.opus"))[:5]:
        path.write_bytes(b"")
    report = str(index_of(corpus / "train"))
    assert "left out: 5 with bad audio: empty: 0 bytes (" in report and report.count(".opus") == 3
    assert report.endswith(", ...)")


def test_nothing_left_is_an_error_that_says_why(corpus):
    for path in (corpus / "train").rglob("*.opus"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="nothing to use in train: 0 utterances.*10 with bad audio") as error:
        index_of(corpus / "train")
    assert "\n" not in str(error.value)


# -- utterances with more text than output frames --------------------------------------------------


def frames(samples: int) -> int:
    """25 a second."""
    return samples // 640


@pytest.mark.parametrize(("more", "speeds", "fits"), [(0, [], True), (1, [], False), (0, [1.0, 1.1], False),
                                                      (-4, [0.9, 1.1], True)])
def test_text_must_fit_the_output_frames_at_every_speed(corpus, more, speeds, fits):
    count = frames(len(load_audio(audio_of(corpus)))) + more
    edit_line(corpus / "train", f"{ID} {'ab' * (count // 2)}{'c' * (count % 2)}")
    data = data_module(corpus, output_frames=frames, speed_perturb=speeds, val_sets=["train"])
    index = data.index("train", training=True)
    assert ids(index.utterances) == (ALL if fits else ALL - {ID})
    assert index.left_out == ({} if fits else {"with more text than output frames": [ID]})
    assert ids(data.index("train").utterances) == ALL, "evaluation counts every utterance"


def test_a_repeated_character_needs_a_frame_more(corpus):
    count = frames(len(load_audio(audio_of(corpus))))
    edit_line(corpus / "train", f"{ID} {'a' * (count // 2 + 1)}")
    assert ids(data_module(corpus, output_frames=frames).index("train", training=True).utterances) == ALL - {ID}


def test_no_text_fits(corpus):
    data = data_module(corpus, output_frames=lambda samples: 3)
    with pytest.raises(DataError, match="nothing to train on in train: .*more output frames") as error:
        data.train_dataloader()
    assert "\n" not in str(error.value)


# -- manifests -------------------------------------------------------------------------------------


def write_manifest(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(audio, text: str = "he did not", **more) -> dict:
    return {"audio": str(audio), "text": text, **more}


def test_a_manifest(corpus):
    one, two = (audio_of(corpus, name).relative_to(corpus) for name in (ID, "9001-1-00781"))
    path = write_manifest(corpus / "clips.jsonl", row(one, duration=99), "", row(two, id=7, speaker="anna"))
    entries, faults = manifest.list_entries(path)
    assert entries == [Entry(str(one), str(corpus / one), "he did not", "", None, 99.0),
                       Entry("7", str(corpus / two), "he did not", "anna")]
    data = data_module(corpus, train_sets=["clips.jsonl"])  # relative to the root, its audio to itself
    index = data.index("clips.jsonl", training=True)
    assert not index.left_out
    assert index.utterances[0].seconds == len(load_audio(corpus / one)) / SAMPLE_RATE, "a stated duration is checked"
    assert {id for batch in data.train_dataloader() for id in batch.ids} == {str(one), "7"}


@pytest.mark.parametrize("line", ["no JSON", "[]", "7", "null", '{"text": "a"}', '{"audio": "a.wav"}',
                                  '{"audio": 1, "text": "a"}', '{"audio": "a.wav", "text": null}',
                                  "[" * 100_000], ids=lambda line: line[:30])
def test_a_bad_manifest_line(corpus, line):
    path = write_manifest(corpus / "clips.jsonl", row(audio_of(corpus)), line, row(audio_of(corpus), id="b"))
    index = data_module(corpus).index(str(path))
    assert len(index.utterances) == 2
    (kind, (example,)), = index.left_out.items()
    assert kind == "with a bad manifest line" and example.startswith("line 2: ") and "\n" not in example


@pytest.mark.parametrize("name", ["missing.wav", "", "x" * 300 + ".wav", "a\0b.wav"], ids=lambda name: repr(name[:9]))
def test_a_manifest_that_names_no_file(corpus, name):
    path = write_manifest(corpus / "clips.jsonl", row(audio_of(corpus)), row(name, id="bad"))
    index = data_module(corpus).index(str(path))
    assert [u.id for u in index.utterances] == [str(audio_of(corpus))]
    assert "1 with bad audio" in str(index)


def test_what_other_programs_write_into_manifests(corpus):
    """A byte order mark, null for what is unknown, line separators that JSON leaves as they are."""
    rows = [row(audio_of(corpus, name), text, id=None, speaker=None)
            for name, text in ((ID, "it\u2028is"), ("9001-1-00781", "so\u0085now"))]
    path = write_manifest(corpus / "clips.jsonl", *rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    index = data_module(corpus).index(str(path))
    assert [(u.id, u.text, u.speaker) for u in index.utterances] == [
        (rows[0]["audio"], "it is", ""), (rows[1]["audio"], "so now", "")]
    assert index.left_out == {}


def test_absolute_and_relative_paths_together(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    relative = audio_of(corpus, "9001-1-00781").relative_to(corpus)
    write_manifest(Path("clips.jsonl"), row(audio_of(corpus)), row(relative))
    assert len(data_module(Path(".")).index("clips.jsonl").utterances) == 2


def missing(path):
    pass


def folder(path):
    path.mkdir()


def undecodable(path):
    path.write_bytes(b"\xff\xfe\xff")


@pytest.mark.parametrize("make", [missing, folder, undecodable], ids=lambda make: make.__name__)
def test_a_manifest_that_cannot_be_read(corpus, make):
    make(corpus / "clips.json")
    with pytest.raises(DataError, match=f"^{corpus}/clips.json: ") as error:
        data_module(corpus).index("clips.json")
    assert "\n" not in str(error.value)


# -- durations are remembered ----------------------------------------------------------------------


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """The names of the files that are looked at from now on."""
    names, probe = [], index_module.probe_seconds

    def noting(path):
        names.append(Path(path).stem)
        return probe(path)

    monkeypatch.setattr(index_module, "probe_seconds", noting)
    return names


def test_a_second_run_looks_at_no_file(corpus, probed):
    first = index_of(corpus / "train")
    assert sorted(probed) == sorted(ALL)
    probed.clear()
    assert list(index_of(corpus / "train").utterances) == list(first.utterances)
    assert probed == []


@pytest.mark.parametrize("same", ["size", "time"])
def test_a_changed_file_is_looked_at_anew(corpus, probed, same):
    path = audio_of(corpus)
    index_of(corpus / "train")
    probed.clear()
    status = path.stat()
    path.write_bytes(bytes(status.st_size - (same == "time")))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (same == "size")))
    assert ids(index_of(corpus / "train").utterances) == ALL - {ID}
    assert probed == [ID]


def every_value(value):
    def damage(content: bytes) -> bytes:
        return json.dumps(dict.fromkeys(json.loads(content), value)).encode()

    return damage


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-20], lambda content: b"[1, 2]",
                                    lambda content: b"\xff\xfe" + content, every_value("truncated"),
                                    every_value(None), every_value([1.0])])
def test_a_damaged_cache_is_ignored_and_mended(corpus, probed, damage):
    first = index_of(corpus / "train")
    file, = (corpus / "cache").iterdir()
    good = file.read_bytes()
    file.write_bytes(damage(good))
    probed.clear()
    assert list(index_of(corpus / "train").utterances) == list(first.utterances)
    assert sorted(probed) == sorted(ALL)
    assert json.loads(file.read_bytes()) == json.loads(good)


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_only_costs_time(corpus, probed, capsys, cache):
    (corpus / "file").write_text("in the place of a folder")
    for _ in range(2):
        assert len(index_of(corpus / "train", corpus / cache).utterances) == 10
        assert "note: durations are not kept" in capsys.readouterr().out
    assert len(probed) == 20


def test_a_fault_is_not_remembered(corpus, monkeypatch):
    """A network or a permission may be the reason: mending it need not touch the file."""
    def failing(path):
        raise AudioError(path, "not readable (permission denied)")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="permission denied"):
        patch.setattr(index_module, "probe_seconds", failing)
        index_of(corpus / "train")
    assert ids(index_of(corpus / "train").utterances) == ALL


def build_often(paths: list[str], cache: Path) -> None:
    for _ in range(20):
        assert probe_all("train", paths, cache) == [1.0] * len(paths)


def test_two_processes_that_index_at_once(tmp_path, monkeypatch):
    """Whoever reads meanwhile sees no half file, and a good one is left."""
    paths, read = [f"/corpus/{i}.flac" for i in range(500)], index_module._read_cache
    monkeypatch.setattr(index_module, "probe", lambda path: 1.0)
    monkeypatch.setattr(index_module, "_read_cache", lambda path: {})  # so that every round writes
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_often, args=(paths, tmp_path / "cache")) for _ in range(2)]
    for process in processes:
        process.start()
    sizes = set()
    while any(process.is_alive() for process in processes):
        sizes |= {len(read(file)) for file in (tmp_path / "cache").glob("*.json")}
    assert [process.exitcode for process in processes] == [0, 0]
    file, = (tmp_path / "cache").iterdir()
    assert sizes | {len(read(file))} == {500}


# -- files that go bad after indexing --------------------------------------------------------------


def deleted(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def overwritten(path: Path) -> None:
    path.write_text("no sound at all")


@pytest.mark.parametrize("damage", [deleted, cut, overwritten], ids=lambda damage: damage.__name__)
def test_reading_a_file_that_went_bad(corpus, damage):
    index = index_of(corpus / "train")
    bad = index.utterances[0].audio
    damage(Path(bad))
    dataset = SpeechDataset(index.utterances, CharTokenizer())
    with pytest.raises(AudioError, match=f"^{bad}: ") as error:
        dataset[SampleRef(0, seed=0)]
    assert error.value.path == bad
    assert len(dataset[SampleRef(1, seed=0)][1]) > 0
    dataset.skip_bad_audio = True
    assert dataset[SampleRef(0, seed=0)] == (index.utterances[0], None)


def error_of(loader) -> Exception:
    """What a pass over the loader ends with. Its traceback, which would keep the workers, is dropped."""
    try:
        list(loader)
    except (AudioError, DataError) as error:
        return error.with_traceback(None)
    pytest.fail("no error")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stops_at_a_bad_file_in_one_line(corpus, workers):
    data = data_module(corpus, num_workers=workers)
    data.index("train", training=True)
    cut(audio_of(corpus))
    error = error_of(data.train_dataloader())
    assert isinstance(error, AudioError)
    assert str(error).startswith(f"{audio_of(corpus)}: ") and "\n" not in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_by_name(corpus, workers):
    data = data_module(corpus, num_workers=workers, skip_bad_audio=True, batch_size=10)
    data.index("train", training=True)
    bad = [str(audio_of(corpus, name)) for name in (ID, "9001-4-03880")]
    deleted(Path(bad[0]))
    cut(Path(bad[1]))
    batches = list(data.train_dataloader())
    assert {id for batch in batches for id in batch.ids} == ALL - {ID, "9001-4-03880"}
    assert sorted(name for batch in batches for name in batch.skipped) == sorted(bad)
    for batch in batches:
        assert len(batch.ids) == len(batch.texts) == len(batch.waveforms) == len(batch.sample_counts)
    assert sum(1 for _ in data.statistics_batches()) == 8, "the statistics of features skip them too"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_bad_files_is_an_error(corpus, workers):
    data = data_module(corpus, num_workers=workers, skip_bad_audio=True)
    data.index("train", training=True)
    for path in (corpus / "train").rglob("*.opus"):
        overwritten(path)
    error = error_of(data.train_dataloader())
    assert isinstance(error, DataError)
    assert re.fullmatch(r"none of the \d files of a batch can be read: .*\.opus; mend them, or take them out of the "
                        "corpus, or give a larger --batch_size or --batch_seconds", str(error))


# -- batches ---------------------------------------------------------------------------------------


def test_what_a_batch_holds(corpus):
    tokenizer = CharTokenizer()
    for batch in data_module(corpus).train_dataloader():
        assert batch.waveforms.dtype == torch.float32 and batch.sample_counts.dtype == torch.int64
        assert batch.waveforms.shape == (len(batch.ids), batch.sample_counts.max())
        assert batch.tokens.shape == (len(batch.ids), batch.token_counts.max())
        for i, utterance in enumerate(batch.ids):
            samples, count = batch.sample_counts[i], batch.token_counts[i]
            assert torch.equal(batch.waveforms[i, :samples], load_audio(audio_of(corpus / "train", utterance)))
            assert not batch.waveforms[i, samples:].any() and not batch.tokens[i, count:].any()
            line = next(line for path in corpus.rglob("*.trans.txt") for line in path.read_text().splitlines()
                        if line.startswith(utterance))
            assert batch.texts[i] == line.split(" ", 1)[1].lower() == tokenizer.decode(batch.tokens[i, :count].tolist())
        assert batch.skipped == []


def test_a_batch_where_the_index_is_wrong_about_durations(corpus):
    """Rows are made for the durations of the index; samples that are there all count."""
    utterances = index_of(corpus / "train").utterances[:4]
    refs = [SampleRef(i, seed=i) for i in range(4)]
    right = SpeechDataset(utterances, CharTokenizer()).batch(refs)
    for factors in ([0.1, 0.1, 0.1, 0.1], [1, 2, 0.5, 3]):
        wrong = [one._replace(seconds=one.seconds * factor) for one, factor in zip(utterances, factors, strict=True)]
        batch = SpeechDataset(wrong, CharTokenizer()).batch(refs)
        assert torch.equal(batch.waveforms, right.waveforms) and batch.waveforms.is_contiguous()
        assert torch.equal(batch.sample_counts, right.sample_counts)


def test_rows_of_perturbed_speech(corpus):
    utterances = index_of(corpus / "train").utterances[:4]
    dataset = SpeechDataset(utterances, CharTokenizer())
    refs = [SampleRef(i, seed=i, speed=speed) for i, speed in enumerate([0.9, 1.0, 1.1, 0.9])]
    batch = dataset.batch(refs)
    for row, count, ref in zip(batch.waveforms, batch.sample_counts, refs, strict=True):
        assert torch.equal(row[:count], dataset[ref][1]) and not row[count:].any()
    assert batch.waveforms.shape[1] == batch.sample_counts.max()


def order(loader, epoch: int = 0) -> list[str]:
    loader.batch_sampler.set_epoch(epoch)
    return [id for batch in loader for id in batch.ids]


def test_training_is_shuffled_and_evaluation_is_sorted(corpus):
    data = data_module(corpus, val_sets=["dev", "test"])
    assert order(data.train_dataloader(), 0) != order(data.train_dataloader(), 1)
    assert set(order(data.train_dataloader(), 1)) == ALL
    loaders = data.val_dataloader()
    assert len(loaders) == 2 and len(data.test_dataloader()) == 1
    for name, loader in zip(["dev", "test"], loaders, strict=True):
        assert sorted(order(loader)) == sorted(path.stem for path in (CORPUS / name).rglob("*.opus"))
        counts = torch.cat([batch.sample_counts for batch in loader])
        assert (counts.diff() <= 0).all()


def test_training_sets_are_joined(corpus):
    data = data_module(corpus, train_sets=["train", "dev"])
    assert set(order(data.train_dataloader())) == {p.stem for name in ("train", "dev") for p in
                                                   (CORPUS / name).rglob("*.opus")}


def lengths(data: LibriSpeechDataModule, epoch: int) -> dict[str, int]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return {id: count for batch in loader for id, count in zip(batch.ids, batch.sample_counts.tolist(), strict=True)}


def test_speed_perturbation(corpus):
    speeds = [0.9, 1.0, 1.1]
    original = lengths(data_module(corpus), 0)
    perturbed = [lengths(data_module(corpus, speed_perturb=speeds), epoch) for epoch in range(4)]
    for id, count in original.items():
        for epoch in perturbed:
            assert min(abs(epoch[id] - count / speed) for speed in speeds) <= 1
    for speed in speeds:
        assert any(abs(epoch[id] - count / speed) <= 1 for epoch in perturbed for id, count in original.items())
    assert perturbed[0] != perturbed[1]
    assert perturbed[2] == lengths(data_module(corpus, speed_perturb=speeds, batch_size=2), 2), "whatever the batches"
    assert perturbed[2] != lengths(data_module(corpus, speed_perturb=speeds, seed=1), 2)
    test = torch.cat([batch.sample_counts for batch in data_module(corpus, speed_perturb=[0.5]).test_dataloader()[0]])
    assert test.max() < 2 * SAMPLE_RATE, "nothing but training is perturbed"


def test_the_budget_counts_what_slow_speech_takes(corpus):
    data = data_module(corpus, speed_perturb=[0.5], batch_seconds=6.0)
    for batch in data.train_dataloader():
        assert len(batch.ids) == 1 or batch.waveforms.numel() <= 6 * SAMPLE_RATE + len(batch.ids)


def test_factors_say_how_often_an_epoch_has_a_set(corpus):
    dev = {path.stem for path in (CORPUS / "dev").rglob("*.opus")}
    data = data_module(corpus, train_sets=["train*0.5", "dev*2"], batch_size=3)
    halves = []
    for epoch in range(2):
        seen = order(data.train_dataloader(), epoch)
        assert sorted(seen) == sorted([*dev, *dev, *(ALL & set(seen))]), "all of dev twice, some of train once"
        halves.append(ALL & set(seen))
    assert len(halves[0]) == len(halves[1]) == 5 and halves[0] | halves[1] == ALL
    assert sum(1 for _ in data.statistics_batches()) == len(ALL | dev), "each once"


def test_a_mix_is_printed_with_its_shares(corpus, capsys):
    data_module(corpus, train_sets=["train", "dev*2.5"]).prepare_data()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "dev", "dev", "test", "each epoch"]
    hours = {name: sum(u.seconds for u in data_module(corpus).index(name).utterances) for name in ("train", "dev")}
    share = 100 * hours["train"] / (hours["train"] + 2.5 * hours["dev"])
    assert lines[-1].endswith(f" h, of which train {share:.1f} %, dev*2.5 {100 - share:.1f} %")


def test_overfitting_validates_on_what_it_trains_on_in_one_order(corpus):
    data = data_module(corpus, overfit=True, train_sets=["train*3"])  # a factor is for training in earnest
    expected = order(data.train_dataloader())
    assert sorted(expected) == sorted(ALL) and order(data.train_dataloader(), 5) == expected
    assert [order(loader) for loader in data.val_dataloader()] == [expected]


@pytest.mark.parametrize("first", ["train", "val"])
def test_overfitting_never_trains_on_text_that_cannot_fit(corpus, first):
    edit_line(corpus / "train", f"{ID} {'ab' * 40}")
    data = data_module(corpus, overfit=True, output_frames=frames)
    if first == "val":
        data.val_dataloader()
    assert set(order(data.train_dataloader())) == set(order(data.val_dataloader()[0])) == ALL - {ID}


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("given", ["train", "train*1.1"])
def test_workers_change_nothing(corpus, given):
    options = {"speed_perturb": [0.9, 1.1], "train_sets": [given]}
    one, two = (data_module(corpus, num_workers=workers, **options).train_dataloader() for workers in (0, 2))
    for epoch in (0, 1):
        one.batch_sampler.set_epoch(epoch)
        two.batch_sampler.set_epoch(epoch)
        pairs = list(zip(one, two, strict=True))
        assert len(pairs) == 3 and all(same(a, b) for a, b in pairs)


def trainer(*, rank=0, processes=1, device="cpu", **more):
    strategy = SimpleNamespace(root_device=torch.device(device), **more)
    return SimpleNamespace(world_size=processes, global_rank=rank, limit_train_batches=1.0, strategy=strategy)


@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
def test_memory_is_pinned_for_a_trainer_on_a_gpu_alone(corpus, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = data_module(corpus)
    data.trainer = trainer(device=device) if device else None
    assert data.train_dataloader().pin_memory == (device == "cuda")


def test_processes_share_an_epoch(corpus):
    shares = []
    for rank in range(3):
        data = data_module(corpus, batch_size=2)
        data.trainer = trainer(rank=rank, processes=3)
        shares.append([batch.ids for batch in data.train_dataloader()])
    assert len({len(share) for share in shares}) == 1
    assert sorted(id for share in shares for batch in share for id in batch) == sorted(ALL)


def test_more_processes_than_utterances(corpus):
    data = data_module(corpus)
    data.trainer = trainer(processes=11)
    with pytest.raises(DataError, match="10 utterances cannot be shared by 11 processes; take fewer"):
        data.train_dataloader()


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("lost", ["train", "dev"])
def test_a_process_that_finds_other_utterances_is_refused(corpus, stage, lost):
    """As where a machine's copy of a corpus lacks a file: batches drawn apart would repeat and lose utterances."""
    digests = []

    def process(rank):
        data = data_module(corpus)
        data.trainer = trainer(rank=rank, processes=2, broadcast=lambda digest: digests.append(digest) or digests[0])
        data.setup(stage)

    process(0)
    process(1)
    next((corpus / lost).rglob("*.opus")).unlink()
    if (stage, lost) == ("test", "train"):
        process(1)
    else:
        with pytest.raises(DataError, match="process 1 finds other utterances there than the first one does"):
            process(1)


def test_feature_statistics_see_the_training_set(corpus):
    batches = [list(data_module(corpus).statistics_batches()) for _ in range(2)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*batches, strict=True)), "the same in every process"
    assert sorted(int(count) for _, count in batches[0]) == sorted(lengths(data_module(corpus), 0).values())
    assert all(waveform.shape == (1, int(count)) for waveform, count in batches[0])


def test_preparing_reports_every_split_once(corpus, capsys):
    no_sound(corpus / "train")
    data = data_module(corpus, val_sets=["dev", "test"])
    data.prepare_data()
    data.prepare_data()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["train: 9 utterances", "dev: 5 utterances", "test: 5 utterances"]
    assert "left out: 1 with bad audio" in lines[0]


@pytest.mark.parametrize("use", [LibriSpeechDataModule.prepare_data, LibriSpeechDataModule.train_dataloader])
def test_a_missing_split_names_the_flag(corpus, use):
    reason = f"'trian' under {corpus}: --data_root or the working directory .* tar shards"
    with pytest.raises(DataError, match=reason) as error:
        use(data_module(corpus, train_sets=["trian"]))
    assert "\n" not in str(error.value)
