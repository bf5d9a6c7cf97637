"""Corpora made from public recordings: the same ids, splits and texts for ever, verified, atomic, resumable."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from data.index import DataError
from data.prepare import __main__ as command
from data.prepare import digits, kathleen, read_digits
from data.readers.librispeech import list_entries
from utils.audio import load_audio

DIGIT_SPEAKERS = "george jackson lucas nicolas theo yweweler".split()
DIGIT_TEXTS = "3c2419cca8c954876f5738c3cef75126e3e45377f648042f9578973b090ba45c"  # SHA-256 of the published transcripts
SPLITS = ("train", "dev", "test")
PROMPTS = {  # and their splits as published; None is in no split
    "arctic_a0001": "train", "arctic_a0002": "train", "arctic_a0006": "test", "arctic_a0012": "dev",
    "arctic_a0099": None, "arctic_a0126": None}
CALLS = [  # call, place in it, transcription
    ("00000", "000", "{smack} My own name"), ("00000", "001", "Operator"),
    ("00000", "006", "[static\\] I'd call the Operator{click], _please_ ^Bob %uh"),
    ("00000", "007", "I ((can)) not hear you"), ("00001", "006", "Not one of *theze words"),
    ("00001", "007", "Cut off in the mid-"), ("00001", "008", "Room 12 is there"),
    ("00001", "009", "I work at ThinkEngine"), ("00002", "006", "recorded as nothing at all")]


def tone(seconds: float, rate: int, hertz: float, channels: int = 1) -> bytes:
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples] * channels, axis=1), rate, format="WAV")
    return file.getvalue()


def checksum_of(files: dict[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {Path(name).name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_source(root: Path, files: dict[str, bytes]) -> tuple[Path, Path]:
    """Writes a data set as a folder and as GitHub's archive of it."""
    for name, content in files.items():
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "source" / name).write_bytes(content)
    (root / "source" / "README.md").write_text("not used")
    archive = root / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted((root / "source").rglob("*")):
            tar.add(path, Path("source-1.0", path.relative_to(root / "source")), recursive=False)
    return root / "source", archive


@pytest.fixture(scope="module")
def digit_source(tmp_path_factory):
    files = {f"recordings/{digit}_{name}_{take}.wav": tone(0.01 + digit / 1000, 8000, 300 + 10 * take)
             for digit in range(10) for name in DIGIT_SPEAKERS for take in range(50)}
    return *write_source(tmp_path_factory.mktemp("fsdd"), files), checksum_of(files)


@pytest.fixture(scope="module")
def voice_source(tmp_path_factory):
    files = {}
    for number, prompt in enumerate(PROMPTS):
        for reading in range(1 + number % 2):
            files[f"data/{prompt}_159274{reading}.wav"] = tone(0.2 + number / 100, 48_000, 440, channels=2)
            files[f"data/{prompt}_159274{reading}.txt"] = f"It’s prompt-number {number}, etc.\n".encode()
    return *write_source(tmp_path_factory.mktemp("voice"), files), checksum_of(files)


@pytest.fixture(scope="module")
def call_source(tmp_path_factory):
    files, entries = {}, []
    for number, (call, place, text) in enumerate(CALLS):
        name = f"WUWII{call}_{place}.ulaw"
        samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000 + 80 * number) / 8000)
        sound = io.BytesIO()
        soundfile.write(sound, samples, 8000, format="RAW", subtype="ULAW")
        files[f"calls/{call}/{name}"] = sound.getvalue() if text != "recorded as nothing at all" else b""
        files[f"calls/{call}/{name}.vad"] = b"not used"
        entries.append({"sessionNumber": call, "utteranceNumber": place, "fileName": name, "transcription": text})
    entries.append({**entries[1], "fileName": "lost.ulaw"})
    files["data.json"] = json.dumps({"entries": entries}).encode()
    used = {name: content for name, content in files.items() if not name.endswith(".vad")}
    return *write_source(tmp_path_factory.mktemp("calls"), files), checksum_of(used)


@pytest.fixture(scope="module")
def number_source(tmp_path_factory):
    names = ["R_a", "R_b", sorted(read_digits.MISREAD)[0], "R_absent"]
    files = {f"audio_data/Numbers/{name}.wav": tone(0.5, 44_100, 300, channels=2) for name in names[:3]}
    numbers = zip(names, (907, "61-2", 5, 6), strict=True)
    rows = [f"{name},audio_data/{kind}/{name}.wav,{number}"
            for name, number in numbers for kind in ("Names", "Numbers")]
    files["metadata.csv"] = "\n".join(["Response_ID,file_name,Number", *rows]).encode()
    return *write_source(tmp_path_factory.mktemp("numbers"), files), checksum_of(files)


@pytest.fixture(scope="module")
def made_up(digit_source, voice_source, call_source, number_source):
    """The made-up data sets in the place of the published ones: folder and archive by corpus."""
    sources = {"digits": digit_source, "kathleen": voice_source, "wuw": call_source, "read-digits": number_source}
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, archive, checksum) in sources.items():
            recipe = command.CORPORA[name]
            archive_checksum = recipe.SOURCE.sha256 and hashlib.sha256(archive.read_bytes()).hexdigest()
            patch.setattr(recipe, "SOURCE", recipe.SOURCE._replace(
                url=archive.as_uri(), sha256=archive_checksum, files_sha256=checksum))
        yield {name: source[:2] for name, source in sources.items()}


@pytest.fixture(scope="module")
def prepared(made_up, tmp_path_factory) -> Path:
    """All corpora, made from the folders."""
    root = tmp_path_factory.mktemp("prepared")
    for corpus in command.CORPORA:
        command.prepare(corpus, source=made_up[corpus][0], output=root / corpus)
    return root


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_digits_has_the_published_ids_and_texts(prepared):
    """They depend on the names of the recordings alone, so that made-up ones have the texts of the real ones."""
    text = "".join(path.read_text() for path in sorted((prepared / "digits").rglob("*.trans.txt")))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGIT_TEXTS
    assert [len(list_entries(prepared / "digits" / split)[0]) for split in SPLITS] == [1472, 129, 193]


def test_a_string_of_digits_is_its_recordings_with_pauses(prepared):
    entries, faults = list_entries(prepared / "digits" / "test")
    assert not any(faults.values()) and {entry.speaker for entry in entries} == {"8001", "8002", "8003", "8004", "8006"}
    for entry in entries[:20]:
        spoken = [digits.WORDS.index(word) for word in entry.text.split()]
        seconds = len(load_audio(entry.audio)) / 16_000 - sum(0.01 + digit / 1000 for digit in spoken)
        assert 0.04 * len(spoken) + 0.1 - 0.01 < seconds < 0.3 * len(spoken) + 0.1 + 0.01
        assert 0.25 < load_audio(entry.audio).abs().max() < 0.35


def test_kathleen_is_split_by_prompt(prepared):
    entries = {split: list_entries(prepared / "kathleen" / split)[0] for split in SPLITS}
    found = {split: [(entry.id, entry.text) for entry in entries[split]] for split in SPLITS}
    text = "IT'S PROMPT NUMBER ET CETERA"
    assert found == {"train": [("9001-1-00000", text), ("9001-1-00010", text), ("9001-1-00011", text)],
                     "dev": [("9001-1-00030", text), ("9001-1-00031", text)], "test": [("9001-1-00020", text)]}
    assert [round(len(load_audio(entry.audio)) / 16_000, 2) for entry in entries["train"]] == [0.2, 0.21, 0.21]
    description = json.loads((prepared / "kathleen" / "corpus.json").read_text())
    assert description["splits"]["train"] == {"hours": 0.0002, "utterances": 3, "speakers": 1}


def test_wuw_is_the_sentences_without_marks(prepared):
    """Neither names nor single words, nor what the transcriber was unsure of; the recordings are whole."""
    entries = list_entries(prepared / "wuw" / "train")[0]
    assert [(entry.id, entry.text) for entry in entries] == [
        ("720000-1-0002", "I'D CALL THE OPERATOR PLEASE BOB UH"), ("720001-1-0007", "I WORK AT THINK ENGINE")]
    waveform = load_audio(entries[0].audio)
    assert len(waveform) == 2 * (8000 + 80 * 2) and 0.25 < waveform.abs().max() < 0.35
    assert json.loads((prepared / "wuw" / "corpus.json").read_text())["splits"].keys() == {"train"}


def test_numbers_are_read_digit_by_digit(prepared):
    entries = list_entries(prepared / "read-digits" / "train")[0]
    assert [(entry.id, entry.text) for entry in entries] == [
        ("730001-1-0000", "NINE ZERO SEVEN"), ("730003-1-0000", "SIX ONE TWO")]


def test_what_has_no_archive_is_to_be_cloned(made_up, tmp_path):
    with pytest.raises(DataError, match="wuw-corpus-ii is not downloaded: git clone .* with --source"):
        command.prepare("wuw", output=tmp_path / "wuw", download_dir=tmp_path)
    for corpus in ("wuw", "read-digits"):
        command.prepare(corpus, source=made_up[corpus][0], output=tmp_path / "folder" / corpus)
        command.prepare(corpus, source=made_up[corpus][1], output=tmp_path / "archive" / corpus)
    assert digests(tmp_path / "folder") == digests(tmp_path / "archive")
    assert sorted(os.listdir(tmp_path)) == ["archive", "folder"]


def test_archive_and_download_give_the_same_bytes_as_the_folder(prepared, made_up, tmp_path):
    """The download goes through `fetch`, with the archive's checksum, from a file:// address."""
    expected = digests(prepared / "kathleen")
    command.prepare("kathleen", source=made_up["kathleen"][1], output=tmp_path / "archive")
    command.prepare("kathleen", output=tmp_path / "download", download_dir=tmp_path / "downloads")
    assert digests(tmp_path / "archive") == digests(tmp_path / "download") == expected and len(expected) == 10
    command.prepare("digits", output=tmp_path / "digits", download_dir=tmp_path / "downloads")
    assert digests(tmp_path / "digits") == digests(prepared / "digits")
    assert not list(tmp_path.glob("*.partial"))


def test_other_files_are_refused_before_anything_is_written(made_up, tmp_path):
    source = shutil.copytree(made_up["kathleen"][0], tmp_path / "source")
    changed, missing = source / "data" / "arctic_a0099_1592740.txt", source / "data" / "arctic_a0099_1592740.wav"
    for change in (lambda: changed.write_text("another text"), missing.unlink):
        change()
        with pytest.raises(DataError, match="holds other files than dataset-voice-kathleen"):
            command.prepare("kathleen", source=source, output=tmp_path / "kathleen")
        assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("damage", [lambda content: content[:-3000], lambda content: b"no archive" * 100,
                                    lambda content: content[:3000] + b"\0" * 20 + content[3020:]])
def test_a_damaged_archive_is_refused(made_up, tmp_path, damage):
    (tmp_path / "damaged.tar.gz").write_bytes(damage(made_up["kathleen"][1].read_bytes()))
    with pytest.raises((DataError, OSError)):
        command.prepare("kathleen", source=tmp_path / "damaged.tar.gz", output=tmp_path / "kathleen")
    assert os.listdir(tmp_path) == ["damaged.tar.gz"]


def test_an_interrupted_run_goes_on_where_it_was(prepared, made_up, tmp_path, monkeypatch):
    def interrupted(files):
        yield from list(utterances(files))[:3]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        utterances = kathleen.utterances
        patch.setattr(kathleen, "utterances", interrupted)
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "resumed")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed.partial").rglob("*.flac")}
    assert len(kept) == 3 and not (tmp_path / "resumed").exists()
    command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "resumed")
    assert digests(tmp_path / "resumed") == digests(prepared / "kathleen")
    moved = {tmp_path / "resumed" / path.relative_to(tmp_path / "resumed.partial"): time for path, time in kept.items()}
    assert {path: path.stat().st_mtime_ns for path in moved} == moved


def test_a_finished_corpus_is_left_alone(made_up, tmp_path):
    command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "kathleen")
    before = digests(tmp_path / "kathleen")
    command.prepare("kathleen", source=tmp_path / "missing", output=tmp_path / "kathleen")
    assert digests(tmp_path / "kathleen") == before
    with pytest.raises(DataError, match="other settings: delete it or choose another --output"):
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "kathleen", audio_format="opus")
    with pytest.raises(DataError, match="no corpus of this command"):
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path)


def test_opus_needs_ffmpeg(made_up, tmp_path, monkeypatch):
    if shutil.which("ffmpeg"):
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "opus", audio_format="opus")
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "flac")
        for path in (tmp_path / "flac").rglob("*.flac"):
            encoded = tmp_path / "opus" / path.relative_to(tmp_path / "flac").with_suffix(".opus")
            assert abs(len(load_audio(encoded)) - len(load_audio(path))) <= 1
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="--audio_format opus needs ffmpeg: apt install ffmpeg"):
        command.prepare("kathleen", source=made_up["kathleen"][0], output=tmp_path / "none", audio_format="opus")


def test_a_download_folder_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = []
    monkeypatch.setattr(command, "read_files", lambda source, path, folder: folders.append(folder) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.prepare("kathleen", output=tmp_path / "kathleen", download_dir=Path("~/archives"))
    assert folders == [tmp_path / "archives"]


def test_a_wrong_source_is_one_line(tmp_path):
    """From the command line, with the checksums of the published data sets."""
    (tmp_path / "source" / "recordings").mkdir(parents=True)
    for source, reason in ((tmp_path / "source", "holds other files than free-spoken-digit-dataset"),
                           (tmp_path / "missing", "No such file")):
        done = subprocess.run([sys.executable, "-m", "data.prepare", "digits", "--source", str(source), "--output",
                               str(tmp_path / "digits")], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and reason in done.stderr
        assert done.stderr.startswith("python -m data.prepare: error: ") and not (tmp_path / "digits").exists()
