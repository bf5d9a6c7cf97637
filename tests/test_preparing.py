"""Several processes, runs or machines that prepare one folder of corpora, and those that are killed meanwhile."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CORPUS, ROOT
from test_download import ARCHIVE, NAME, assert_whole, sha256

from data.readers.librispeech import find_split

UNPACK = """
import errno, fcntl, sys, tarfile, time
from pathlib import Path
from data.librispeech import download_subset
root, checksum, locks, pause = Path(sys.argv[1]), *sys.argv[2:]
if locks == "no locks":
    def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
    fcntl.lockf = refuse
extract, members = tarfile.TarFile.extract, []
def slowly(self, member, *args, **kwargs):
    members.append(member)
    while pause and len(members) == 6 and not (root.parent / "go on").exists():
        time.sleep(0.02)
    return extract(self, member, *args, **kwargs)
tarfile.TarFile.extract = slowly
download_subset("dev-clean", root, url="http://127.0.0.1:9", checksums={"dev-clean": checksum})
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
        assert second.stdout.readline().startswith(f"waiting for another process: {NAME} is being")
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
