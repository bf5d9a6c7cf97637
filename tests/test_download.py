"""LibriSpeech from a server on this machine that may break, stall, or send something else."""

import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
from conftest import CORPUS

import utils.download
from data import librispeech
from data.datamodule import LibriSpeechDataModule
from data.index import DataError
from data.librispeech import download_subset, find_split
from utils.text import CharTokenizer

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
        if server.stalled:
            self.wfile.flush()
            server.stalled.wait(10)

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


def assert_whole(root: Path) -> None:
    """All members are there, nothing but them and the archive with its mark, and every sound can be read."""
    folder = root / "LibriSpeech" / NAME
    assert find_split(root, NAME) == folder
    entries, faults = librispeech.list_entries(folder)
    assert len(entries) == 5 and not any(faults.values())
    assert all(soundfile.info(entry.audio).samplerate == 16_000 for entry in entries)
    assert (root / "LibriSpeech" / "SPEAKERS.TXT").read_text().startswith("9001")
    assert {p.name for p in root.iterdir()} == {"LibriSpeech", f"{NAME}.tar.gz", f"{NAME}.tar.gz.sha256"}


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
        patch.setattr(utils.download, "TIMEOUT", 0.2)
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


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("url", ["nowhere", "not found", "not HTTP", "no scheme", "no port"])
def test_no_server(server, tmp_path, url):
    server.garbage = url == "not HTTP"
    server.url = {"nowhere": f"http://127.0.0.1:{closed_port()}", "not found": f"{server.url}/elsewhere",
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


def outside(name: str, *, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    return member


@pytest.mark.parametrize("member", [
    outside("../evil"), outside(f"LibriSpeech/{NAME}/../../../../evil"), outside("LibriSpeech/evil", link="../../.."),
    outside("LibriSpeech/evil", link="/etc/passwd")], ids=lambda member: f"{member.name} {member.linkname}")
def test_a_member_cannot_leave_the_folder(server, tmp_path, member):
    root = tmp_path / "above" / "root"
    server.content = build_archive(member)
    fail(server, root, server.content)
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil"]


def test_an_archive_of_something_else(server, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("LibriSpeech/README.TXT"))
    server.content = packed.getvalue()
    assert f"LibriSpeech/{NAME}" in fail(server, tmp_path, server.content)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=repr)
def test_unpacking_that_is_interrupted_leaves_no_half_split(server, tmp_path, monkeypatch, stop):
    extract, members = tarfile.TarFile.extract, []

    def stopping(self, member, *args, **kwargs):
        members.append(member)
        if len(members) == 6:
            raise stop
        return extract(self, member, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DataError)):
        patch.setattr(tarfile.TarFile, "extract", stopping)
        download(server, tmp_path)
    assert len(members) == 6 and find_split(tmp_path, NAME) is None
    (tmp_path / f".unpacking-{NAME}" / "LibriSpeech" / NAME / "half.flac").touch()
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
    options = {"data_root": str(tmp_path), "train_sets": [NAME], "val_sets": [NAME], "test_sets": [],
               "tokenizer": CharTokenizer(), "num_workers": 0, "cache_dir": str(tmp_path / "cache"),
               "batch_size": 2, "url": server.url}
    data = LibriSpeechDataModule(**options)
    data.prepare_data()
    assert f"{NAME}: 5 utterances" in capsys.readouterr().out
    batches = list(data.train_dataloader())
    assert sum(len(batch.ids) for batch in batches) == 5
    assert "how old are you mother" in [text for batch in batches for text in batch.texts]
    LibriSpeechDataModule(**options).prepare_data()
    assert len(server.asked) == 1, "what is there is not fetched again"


def test_the_data_module_names_an_unknown_split(server, tmp_path):
    data = LibriSpeechDataModule(data_root=str(tmp_path), train_sets=["dev-cleen"], val_sets=[], test_sets=[],
                                 tokenizer=CharTokenizer(), cache_dir=str(tmp_path / "cache"), url=server.url)
    with pytest.raises(DataError, match="'dev-cleen'.*--data_root.*dev-clean") as error:
        data.prepare_data()
    assert "\n" not in str(error.value) and server.asked == []
