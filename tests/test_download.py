"""LibriSpeech from a server on this machine that may break, stall, or send something else."""

import gzip
import hashlib
import http.server
import io
import re
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
from conftest import CORPUS, ROOT
from little_memory import in_little_memory
from training_runs import free_port

import utils.files.download
from data import librispeech
from data.datamodule import LibriSpeechDataModule
from data.index import DataError
from data.librispeech import download_subset
from data.options import TrainingDataOptions
from data.readers.librispeech import find_split, list_entries
from utils.tokenizer import CharTokenizer

NAME = "dev-clean"


def build_archive(*more: tarfile.TarInfo) -> bytes:
    """dev-clean.tar.gz in LibriSpeech's layout, with real speech; `more` empty members come last."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        add("LibriSpeech/SPEAKERS.TXT", b"9001 | F | dev-clean | 0.13 | Kathleen\n")
        for transcript in sorted((CORPUS / "dev").rglob("*.trans.txt")):
            folder = f"LibriSpeech/{NAME}/{transcript.parent.relative_to(CORPUS / 'dev')}"
            add(f"{folder}/{transcript.name}", transcript.read_bytes())
            for path in transcript.parent.glob("*.opus"):
                flac = io.BytesIO()
                soundfile.write(flac, *soundfile.read(path, dtype="int16"), format="FLAC")
                add(f"{folder}/{path.stem}.flac", flac.getvalue())
        for member in more:
            tar.addfile(member)
    return packed.getvalue()


ARCHIVE = build_archive()
HALF = len(ARCHIVE) // 2


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the server's `content`, from where the client asks; the server's fields say how."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        stalled = server.stalled
        server.asked.append((self.path, asked))
        if server.garbage:
            self.wfile.write(b"this is not HTTP\r\n")
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if self.path != server.offered or start >= len(server.content):
            self.send_error(404 if start == 0 else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.until])
        if stalled:
            self.wfile.flush()
            stalled.wait(60)

    def log_message(self, *args):
        pass


@contextmanager
def serving(content: bytes, offered: str):
    """A server of one file on this machine; its fields say how it behaves."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.ranges, server.until, server.offered = [], True, None, offered
    server.content, server.garbage, server.stalled = content, False, None
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(ARCHIVE, f"/{NAME}.tar.gz") as server:
        yield server


def download(server, root: Path, content: bytes = ARCHIVE) -> Path:
    return download_subset(NAME, root, url=server.url, checksums={NAME: sha256(content)})


def fail(server, root: Path, content: bytes = ARCHIVE) -> str:
    """The one line that the download ends with; no split may be there then."""
    with pytest.raises(DataError) as error:
        download(server, root, content)
    assert "\n" not in str(error.value)
    assert find_split(root, NAME) is None
    return str(error.value)


def assert_whole(root: Path, left: int = 0) -> None:
    """All members are there, nothing but them and the archive with its mark, and every sound can be read.

    Args:
        left: folders of processes that still unpack, or were killed where nobody can tell.
    """
    folder = root / "LibriSpeech" / NAME
    assert find_split(root, NAME) == folder
    entries, faults = list_entries(folder)
    assert len(entries) == 5 and not any(faults.values())
    assert all(soundfile.info(entry.audio).samplerate == 16_000 for entry in entries)
    assert (root / "LibriSpeech" / "SPEAKERS.TXT").read_text().startswith("9001")
    names = {p.name for p in root.iterdir()}
    unpacking = {name for name in names if name.startswith(f".unpacking-{NAME}-")}
    assert names - unpacking == {"LibriSpeech", f"{NAME}.tar.gz", f"{NAME}.tar.gz.sha256"} and len(unpacking) == left


def test_a_fresh_download(server, tmp_path):
    root = tmp_path / "a" / "new folder"
    assert download(server, root) == root / "LibriSpeech" / NAME
    assert_whole(root)
    assert server.asked == [(f"/{NAME}.tar.gz", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server, tmp_path, ranges):
    """From where it stopped, or from the start where the server knows no ranges."""
    server.until = HALF
    assert f"{HALF:,} of {len(ARCHIVE):,} bytes" in fail(server, tmp_path)
    server.until, server.ranges = None, ranges
    download(server, tmp_path)
    assert [asked for _, asked in server.asked] == [None, f"bytes={HALF}-"]
    assert_whole(tmp_path)


def test_a_download_that_breaks_twice_goes_on_twice(server, tmp_path):
    for until in (HALF // 2, HALF):
        server.until = until
        fail(server, tmp_path)
    server.until = None
    download(server, tmp_path)
    assert [asked for _, asked in server.asked] == [None, f"bytes={HALF // 2}-", f"bytes={HALF}-"]
    assert_whole(tmp_path)


def test_a_server_that_stalls_is_left(server, tmp_path, monkeypatch):
    server.until, server.stalled = HALF, threading.Event()
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(utils.files.download, "TIMEOUT", 0.2)
        fail(server, tmp_path)
    assert time.monotonic() - started < 5
    server.stalled.set()
    server.until = server.stalled = None
    download(server, tmp_path)
    assert_whole(tmp_path)


def test_a_part_that_is_whole_is_taken(server, tmp_path):
    """The run was stopped between the last byte and the new name: the server has nothing to add (416)."""
    (tmp_path / f"{NAME}.tar.gz.part").write_bytes(ARCHIVE)
    download(server, tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("part", [b"", b"something else", b"longer " * len(ARCHIVE)], ids=len)
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, part):
    """Neither what the server sends nor what a part of another file grows into is taken for good."""
    if part:
        (tmp_path / f"{NAME}.tar.gz.part").write_bytes(part)
    else:
        server.content = b"<html>Please log in</html>"
    assert "checksum" in fail(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.content = ARCHIVE
    download(server, tmp_path)
    assert_whole(tmp_path)


def test_a_server_that_never_ends_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(utils.files.download, "LARGEST", HALF)
    monkeypatch.setattr(utils.files.download, "BLOCK", 1000)
    assert "the server sends more than" in fail(server, tmp_path)
    assert (tmp_path / f"{NAME}.tar.gz.part").stat().st_size <= HALF


FETCH = """
import errno, fcntl, sys
from pathlib import Path
import utils.files.download
if sys.argv[4] == "no locks":
    def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
    fcntl.lockf = refuse
utils.files.download.BLOCK = 1000
utils.files.download.fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


def fetcher(server, target: Path, locks: str) -> subprocess.Popen:
    """A process that downloads the server's archive to `target`."""
    command = [sys.executable, "-c", FETCH, f"{server.url}/{NAME}.tar.gz", str(target), sha256(ARCHIVE), locks]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_processes_that_want_the_same_file_all_get_it_whole(server, tmp_path, locks):
    """One downloads and the others wait; or each to a file of its own where the file system has no locks."""
    server.until, server.stalled = HALF, threading.Event()  # so that they overlap
    target = tmp_path / f"{NAME}.tar.gz"
    first = fetcher(server, target, locks)
    wait_until(lambda: sum(part.stat().st_size for part in tmp_path.glob("*.part")) > 0)
    others = [fetcher(server, target, locks) for _ in range(2)]
    if locks == "locks":
        for other in others:
            assert other.stderr.readline() == f"{target}: another process downloads it; waiting for that\n"
    else:
        wait_until(lambda: len(server.asked) == 3)
    server.until = None
    server.stalled.set()
    assert {process.wait(60) for process in [first, *others]} <= {0, 1}  # a connection of the server broke at half
    assert fetcher(server, target, locks).wait(60) == 0
    assert target.read_bytes() == ARCHIVE
    if locks == "locks":
        assert [process.returncode for process in others] == [0, 0]
        assert [asked for _, asked in server.asked] == [None, f"bytes={HALF}-"], "each byte was fetched once"
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.sha256"}


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(server, tmp_path, locks):
    """The one that waits for it goes on; without locks the next one begins again."""
    server.until, server.stalled = HALF, threading.Event()
    target = tmp_path / f"{NAME}.tar.gz"
    killed = fetcher(server, target, locks)
    wait_until(lambda: sum(part.stat().st_size for part in tmp_path.glob("*.part")) > HALF - 10_000)
    waiting = fetcher(server, target, locks)
    if locks == "locks":
        waiting.stderr.readline()
    server.until = None  # for the one that goes on at once
    killed.kill()
    killed.wait(10)
    server.stalled.set()
    waiting.wait(60)
    assert not target.exists() or target.read_bytes() == ARCHIVE
    assert fetcher(server, target, locks).wait(60) == 0 and target.read_bytes() == ARCHIVE
    if locks == "locks":
        assert waiting.returncode == 0 and server.asked[-1][1].startswith("bytes=")


@pytest.mark.parametrize("url", ["nowhere", "not found", "not HTTP", "no scheme", "no port"])
def test_no_server(server, tmp_path, url):
    server.garbage = url == "not HTTP"
    server.url = {"nowhere": f"http://127.0.0.1:{free_port()}", "not found": f"{server.url}/elsewhere",
                  "not HTTP": server.url, "no scheme": "www.openslr.org/12",
                  "no port": "http://127.0.0.1:port"}[url]
    message = fail(server, tmp_path)
    assert f"{server.url}/{NAME}.tar.gz" in message and str(tmp_path / f"{NAME}.tar.gz") in message


def test_an_archive_put_there_by_hand(server, tmp_path):
    (tmp_path / f"{NAME}.tar.gz").write_bytes(ARCHIVE)
    download(server, tmp_path)
    assert server.asked == []
    assert_whole(tmp_path)


def test_a_wrong_archive_put_there_by_hand(server, tmp_path):
    archive = tmp_path / f"{NAME}.tar.gz"
    archive.write_bytes(ARCHIVE[:HALF])
    for _ in range(2):
        assert fail(server, tmp_path).startswith(f"{archive}: wrong checksum")
    archive.write_bytes(ARCHIVE)
    download(server, tmp_path)
    assert_whole(tmp_path)


def special(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


SPLIT = f"LibriSpeech/{NAME}"
OUTSIDE = {
    "above": [special("../evil")],
    "above by the split": [special(f"{SPLIT}/../../../../evil")],
    "link above": [special("LibriSpeech/evil", tarfile.SYMTYPE, "../../..")],
    "link to a file": [special("LibriSpeech/evil", tarfile.SYMTYPE, "/etc/passwd")],
    "link, then through it": [special(f"{SPLIT}/x", tarfile.SYMTYPE, "../../.."), special(f"{SPLIT}/x/evil")],
    "link to a link": [special(f"{SPLIT}/x", tarfile.SYMTYPE, "."), special(f"{SPLIT}/y", tarfile.SYMTYPE, "x/../.."),
                       special(f"{SPLIT}/y/evil")],
    "link inside": [special(f"{SPLIT}/evil", tarfile.SYMTYPE, "9001")],
    "hard link": [special(f"{SPLIT}/evil", tarfile.LNKTYPE, "../../../../victim")],
    "hard link to a file": [special(f"{SPLIT}/evil", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [special(f"{SPLIT}/evil", tarfile.CHRTYPE)],
    "block device": [special(f"{SPLIT}/evil", tarfile.BLKTYPE)],
    "pipe": [special(f"{SPLIT}/evil", tarfile.FIFOTYPE)],
    "unknown kind": [special(f"{SPLIT}/evil", b"Z")],
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_member_cannot_leave_the_folder(server, tmp_path, kind):
    root = tmp_path / "above" / "root"
    (tmp_path / "victim").write_text("untouched")
    server.content = build_archive(*OUTSIDE[kind])
    assert "cannot unpack" in fail(server, root, server.content)
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil"]
    assert (tmp_path / "victim").read_text() == "untouched" and (tmp_path / "victim").stat().st_nlink == 1
    assert {path.name for path in root.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}.tar.gz.sha256"}, "nothing is left"


@pytest.mark.parametrize("name", ["/evil", "//evil", "/../evil"])
def test_an_absolute_path_stays_inside_or_is_refused(server, tmp_path, name):
    server.content = build_archive(special(name))
    try:
        download(server, tmp_path / "above" / "root", server.content)
    except DataError as error:
        assert "cannot unpack" in str(error)
    assert not Path("/evil").exists() and not [path for path in tmp_path.rglob("*") if path.name == "evil"]


def raw_header(member: tarfile.TarInfo, size: bytes) -> bytes:
    """Of a member whose size is these 12 bytes, whatever they are."""
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def with_tail(tail: bytes, zeros: int = 0) -> bytes:
    """dev-clean.tar.gz that goes on with `tail` and zero bytes before its end."""
    whole = gzip.decompress(ARCHIVE).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(whole + tail)
        for _ in range(zeros >> 20):
            file.write(bytes(1 << 20))
    return packed.getvalue()


BIG = b"%011o\0" % (1 << 32)  # 4 GB
BOMBS = {
    "a file of zeros": with_tail(raw_header(special(f"{SPLIT}/x"), b"%011o\0" % (96 << 20)), 96 << 20),
    "a file that states terabytes": with_tail(raw_header(special(f"{SPLIT}/x"),
                                                         b"\x80" + (1 << 42).to_bytes(11, "big"))),
    "a sparse file": with_tail(raw_header(special(f"{SPLIT}/x", tarfile.GNUTYPE_SPARSE), BIG)),
    "a header of zeros": with_tail(raw_header(special(f"{SPLIT}/x", tarfile.XHDTYPE), BIG), 48 << 20),
    "a name of gigabytes": with_tail(raw_header(special(f"{SPLIT}/x", tarfile.GNUTYPE_LONGNAME), BIG), 1 << 20),
    "a size below zero": with_tail(raw_header(special(f"{SPLIT}/x"), b"\xff" * 11 + b"\x00")),
    "a header of a size below zero": with_tail(raw_header(special(f"{SPLIT}/x", tarfile.XHDTYPE), b"\xff" * 12)),
    "headers without end": with_tail(raw_header(special("x", tarfile.GNUTYPE_LONGNAME), b"%011o\0" % 0) * 5000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_little_memory_and_time(server, tmp_path, kind):
    server.content = BOMBS[kind]
    assert len(server.content) < 2 << 20

    def unpack():
        message = fail(server, tmp_path, server.content)
        assert "cannot unpack" in message and len(message) < 1000
        assert {path.name for path in tmp_path.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}.tar.gz.sha256"}

    in_little_memory(unpack, megabytes=150)


def test_an_archive_of_something_else(server, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("LibriSpeech/README.TXT"))
    server.content = packed.getvalue()
    assert f"LibriSpeech/{NAME}" in fail(server, tmp_path, server.content)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=repr)
def test_unpacking_that_is_interrupted_leaves_no_half_split(server, tmp_path, monkeypatch, stop):
    extract, members = librispeech._extract, []

    def stopping(*args):
        members.append(args)
        if len(members) == 6:
            raise stop
        extract(*args)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DataError)):
        patch.setattr(librispeech, "_extract", stopping)
        download(server, tmp_path)
    assert len(members) == 6 and find_split(tmp_path, NAME) is None
    half = tmp_path / f".unpacking-{NAME}" / "LibriSpeech" / NAME / "half.flac"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.touch()
    download(server, tmp_path)
    assert len(server.asked) == 1, "the archive is there already"
    assert_whole(tmp_path)


def test_an_unknown_subset(server, tmp_path):
    with pytest.raises(DataError, match="'dev-cleen'.*train-clean-100") as error:
        download_subset("dev-cleen", tmp_path, url=server.url)
    assert "\n" not in str(error.value) and server.asked == []


def test_a_root_that_is_a_file(server, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in fail(server, tmp_path / "file")


def test_the_data_module_downloads_what_is_missing(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(librispeech.SHA256, NAME, sha256(ARCHIVE))
    options = TrainingDataOptions(data_root=str(tmp_path), train_sets=[NAME], val_sets=[NAME], test_sets=[],
                                  num_workers=0, cache_dir=str(tmp_path / "cache"), batch_size=2,
                                  librispeech_url=server.url)
    data = LibriSpeechDataModule(options, CharTokenizer())
    data.prepare_data()
    assert f"{NAME}: 5 utterances" in capsys.readouterr().out
    batches = list(data.train_dataloader())
    assert sum(len(batch.ids) for batch in batches) == 5
    assert "how old are you mother" in [text for batch in batches for text in batch.texts]
    LibriSpeechDataModule(options, CharTokenizer()).prepare_data()
    assert len(server.asked) == 1, "what is there is not fetched again"


def test_the_data_module_names_an_unknown_split(server, tmp_path):
    options = TrainingDataOptions(data_root=str(tmp_path), train_sets=[NAME, "dev-cleen"], val_sets=[], test_sets=[],
                                  cache_dir=str(tmp_path / "cache"), librispeech_url=server.url)
    data = LibriSpeechDataModule(options, CharTokenizer())
    with pytest.raises(DataError, match="'dev-cleen'.*--data_root.*dev-clean") as error:
        data.prepare_data()
    assert "\n" not in str(error.value) and server.asked == []


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_one_whose_connection_breaks_when_another_has_finished_leaves_nothing(server, tmp_path, locks):
    """With locks the other one is a person who puts the file there by hand."""
    server.until, server.stalled = HALF, threading.Event()
    target = tmp_path / f"{NAME}.tar.gz"
    first = fetcher(server, target, locks)
    wait_until(lambda: sum(part.stat().st_size for part in tmp_path.glob("*.part")) > 0)
    stalled, server.until, server.stalled = server.stalled, None, None
    if locks == "locks":
        target.write_bytes(ARCHIVE)
    else:
        assert fetcher(server, target, locks).wait(60) == 0
    stalled.set()
    assert first.wait(60) == 0
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.sha256"}
