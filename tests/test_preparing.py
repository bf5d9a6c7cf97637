"""Several processes, runs or machines that prepare one folder of corpora, and those that are killed meanwhile."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CORPUS, ROOT
from test_download import ARCHIVE, NAME, assert_whole, sha256

from data.corpus_folder import new_corpus, read_description, write_description
from data.index import DataError
from data.readers.librispeech import find_split
from utils.files import folders
from utils.files.download import fetch
from utils.files.folders import remove_abandoned
from utils.files.locks import exclusive_folder

UNPACK = """
import errno, fcntl, sys, time
from pathlib import Path
import data.librispeech
root, checksum, locks, pause = Path(sys.argv[1]), *sys.argv[2:]
if locks == "no locks":
    def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
    fcntl.lockf = refuse
extract, members = data.librispeech._extract, []
def slowly(*args):
    members.append(args)
    while pause and len(members) == 6 and not (root.parent / "go on").exists():
        time.sleep(0.02)
    extract(*args)
data.librispeech._extract = slowly
data.librispeech.download_subset("dev-clean", root, url="http://127.0.0.1:9", checksums={"dev-clean": checksum})
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of corpora with the archive and nothing else."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / f"{NAME}.tar.gz").write_bytes(ARCHIVE)
    return tmp_path / "root"


def start(root: Path, locks: str, pause: str = "") -> subprocess.Popen:
    """A process that prepares the subset, and pauses in the middle of the archive until it may go on."""
    command = [sys.executable, "-c", UNPACK, str(root), sha256(ARCHIVE), locks, pause]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for_half(root: Path, count: int = 1) -> None:
    """Waits until so many processes stand in the middle of the archive."""
    deadline = time.monotonic() + 60
    while sum(1 for folder in root.glob(".unpacking-*") if any(folder.rglob("*.flac"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_processes_that_unpack_the_same_subset_all_see_it_whole(root, locks):
    """One unpacks and the others wait; where there are no locks each unpacks by itself, and the first one wins."""
    first = start(root, locks, "pause")
    wait_for_half(root)
    assert find_split(root, NAME) is None
    second = start(root, locks)
    if locks == "locks":
        assert re.match(rf"waiting for process {first.pid} of .+, which holds {root}/\.{NAME}\.lock: {NAME} is being",
                        second.stdout.readline())
        assert find_split(root, NAME) is None
    else:
        assert second.wait(60) == 0
        assert_whole(root, left=1)
    (root.parent / "go on").touch()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert_whole(root)


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_a_process_that_is_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(root, locks):
    """What it leaves is cleared away where a lock shows that nobody works on it."""
    killed = start(root, locks, "pause")
    wait_for_half(root)
    waiting = start(root, locks) if locks == "locks" else None
    if waiting:
        waiting.stdout.readline()
    killed.kill()
    killed.wait(10)
    if waiting:
        assert waiting.wait(60) == 0
    else:
        assert find_split(root, NAME) is None and start(root, locks).wait(60) == 0
        assert_whole(root, left=1)
        (root / "LibriSpeech" / NAME).rename(root / "away")
        assert start(root, "locks").wait(60) == 0
        (root / "away").rename(root.parent / "away")
    assert_whole(root)


PREPARE = """
import sys, time
from data import index
from data.datamodule import LibriSpeechDataModule
from data.options import TrainingDataOptions
from utils.tokenizer import CharTokenizer
probe = index.probe_seconds
def slowly(path):
    print("read", path, flush=True)
    time.sleep(0.1)
    return probe(path)
index.probe_seconds = slowly
options = TrainingDataOptions(data_root=sys.argv[1], train_sets=["train"], val_sets=["dev"], test_sets=[],
                              cache_dir=sys.argv[2], num_workers=0)
data = LibriSpeechDataModule(options, CharTokenizer())
data.prepare_data()
"""


def test_of_several_processes_one_reads_the_durations(tmp_path):
    """The others wait for it, print nothing twice, and find them in the cache, which holds nothing else then."""
    command = [sys.executable, "-c", PREPARE, str(CORPUS), str(tmp_path / "cache")]
    ranks = [{"RANK": "0"}, {"RANK": "1"}, {"RANK": "2"}]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **rank}) for rank in ranks]
    said = "".join(process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [0, 0, 0]
    assert said.count("read ") == 15, "each recording once"
    assert said.count("train: 10 utterances") == said.count("dev: 5 utterances") == 1
    assert all(path.suffix == ".json" for path in (tmp_path / "cache").iterdir())


# -- without locks ---------------------------------------------------------------------------------


def refuse_locks(monkeypatch, number: int = errno.ENOLCK) -> None:
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_an_error_of_a_lock_names_its_file(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as error, exclusive_folder(tmp_path):
        raise AssertionError("not held")
    assert error.value.filename == str(tmp_path / ".lock")


def test_what_was_abandoned_goes_and_what_is_worked_on_stays(tmp_path, monkeypatch):
    """A file that is written to, and a folder in whose depth something changes, are worked on."""
    deep = tmp_path / ".x-folder" / "a" / "b"
    deep.mkdir(parents=True)
    for name in (".x-file", "x-file", ".x-written"):
        (tmp_path / name).touch()
    monkeypatch.setattr(folders, "ABANDONED", 0.5)
    time.sleep(0.6)
    (deep / "new").touch()
    (tmp_path / ".x-written").write_text("more")
    remove_abandoned(tmp_path, ".x-")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x-folder", ".x-written", "x-file"]
    time.sleep(0.6)
    remove_abandoned(tmp_path, ".x-")
    assert [path.name for path in tmp_path.iterdir()] == ["x-file"]


def test_parts_of_killed_downloads_go_and_one_that_can_be_resumed_stays(tmp_path, monkeypatch):
    target = tmp_path / "a.gz"
    for name in ("a.gz.part", ".a.gz.0123abcd.part"):
        (tmp_path / name).write_text("half")
    monkeypatch.setattr(folders, "ABANDONED", -1)
    with pytest.raises(ValueError, match="cannot download"):
        fetch("http://127.0.0.1:9/a.gz", target, "0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gz.part"]


def test_an_archive_where_nothing_can_be_written_is_read(tmp_path, monkeypatch):
    """Its mark, which saves reading it again, cannot be kept there."""
    (tmp_path / "a.gz").write_bytes(ARCHIVE)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert fetch("http://127.0.0.1:9/a.gz", tmp_path / "a.gz", sha256(ARCHIVE)) == tmp_path / "a.gz"


def build(output: Path, settings: dict, inside=lambda: None) -> None:
    """Builds a corpus of one file per split."""
    with new_corpus(output, settings) as folder:
        for split in ("train", "dev", "test"):
            (folder / split).write_text(json.dumps(settings))
        inside()
        write_description(folder, settings, [(split, "1", 1, 1) for split in ("train", "dev", "test")])


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_two_builds_of_one_corpus(tmp_path, monkeypatch, locks, same):
    """With locks the second is refused. Without, both build it, and whole is what stands there, whoever was first."""
    output, settings, others = tmp_path / "corpus", {"seed": 0}, {"seed": 0 if same else 1}
    if not locks:
        refuse_locks(monkeypatch)

    def meanwhile():
        if locks:  # as another process: this one has the lock already
            code = "import sys; from data.corpus_folder import *\nwith new_corpus(Path(sys.argv[1]), {}): pass"
            done = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True, cwd=ROOT)
            assert done.stderr.strip().endswith(": wait for it, or choose another --output")
        else:
            build(output, others)

    if locks or same:
        build(output, settings, meanwhile)
    else:
        with pytest.raises(DataError, match="was built with other settings"):
            build(output, settings, meanwhile)
    there = settings if locks else others
    assert read_description(output, there)["settings"] == there
    assert {path.name: path.read_text() for path in output.iterdir() if path.suffix != ".json"} == dict.fromkeys(
        ("train", "dev", "test"), json.dumps(there))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_build_that_ends_is_no_build_to_go_on_with(tmp_path, monkeypatch):
    """Between its last file and its name it still has its lock: another one would find no settings, and empty it."""
    rename, seen = Path.rename, []

    def watched(path, target):
        seen.append(sorted(one.name for one in path.iterdir()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    build(tmp_path / "corpus", {})
    assert seen == [[".lock", ".settings.json", "corpus.json", "dev", "test", "train"]]
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["corpus.json", "dev", "test", "train"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100_000])
def test_a_damaged_description_is_named(tmp_path, content):
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/corpus.json is damaged: delete {tmp_path} or choose another"):
        read_description(tmp_path, {})
