"""Downloads: resumed where they broke off, shared by processes that want the same file, and checked by a checksum."""

import hashlib
import http.client
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from utils.errors import UserError
from utils.files.folders import remove_abandoned
from utils.files.locks import lock

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
LARGEST = 64 << 30  # bytes; LibriSpeech's largest archive has 30 GB


class DownloadError(UserError):
    """A file that cannot be downloaded; the message says what to fetch by hand and where to put it."""


def fetch(address: str, target: Path, checksum: str) -> Path:
    """Downloads `target` unless it is there, and returns it.

    A download that breaks off stays next to it as `NAME.part`, and the next one resumes it. The file appears under
    its name when it is whole and its checksum is right; a file that somebody else put there is checked once as well.
    Of several processes one downloads and the others wait for it; on a file system without locks each downloads to
    a file of its own, and all find the file that is whole first. What a killed one left there goes after some hours.

    Args:
        checksum: SHA-256 or MD5, in hexadecimal; its length says which.

    Raises DownloadError.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, _own_prefix(target))
        while not target.exists():
            with _claim_part(target) as part:
                if part and not target.exists():
                    _download_unless_there(address, part, target, checksum)
        if not _is_verified(target, checksum):
            raise DownloadError(f"{target}: wrong checksum; delete it, and the next run fetches it again")
        return target
    except urllib.error.URLError as error:
        raise DownloadError(f"cannot download {target.name} ({error.reason}): fetch {address} elsewhere and put it "
                            f"at {target}") from None
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
        reason = " ".join(str(error).split())
        raise DownloadError(f"cannot download {target} ({reason}): the same command resumes it, or fetch {address} "
                            f"elsewhere and put it there") from None


class _Part(NamedTuple):
    """The beginning of a download, in a file that no other process writes to."""

    path: Path
    file: BinaryIO


@contextmanager
def _claim_part(target: Path) -> Iterator[_Part | None]:
    """Yields `NAME.part`, or None where another process was faster.

    A lock keeps other processes from it; without locks a name of its own, which only one process can give it.
    """
    shared = _shared_part(target)
    with shared.open("a+b") as file:
        if _wait_for_lock(file, target):
            yield from _lend(_Part(shared, file), target)
            return
    own = target.with_name(f"{_own_prefix(target)}{secrets.token_hex(4)}.part")
    try:
        shared.rename(own)
    except FileNotFoundError:
        yield None
        return
    with own.open("a+b") as file:
        yield from _lend(_Part(own, file), target)


def _shared_part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _own_prefix(target: Path) -> str:
    return f".{target.name}."


def _lend(part: _Part, target: Path) -> Iterator[_Part | None]:
    """Yields a part, and None where it was moved or deleted since it was opened.

    What is left of it stays as `NAME.part` to be resumed, unless the target is there by now: whoever ends last, the
    one that finished or one whose connection broke, deletes it.
    """
    if not _is_at(*part):
        yield None
        return
    try:
        yield part
    finally:
        if _is_at(*part):
            if part.file.seek(0, os.SEEK_END):
                part.path.rename(_shared_part(target))
            else:
                part.path.unlink()
        if target.exists():
            _shared_part(target).unlink(missing_ok=True)


def _wait_for_lock(file: BinaryIO, target: Path) -> bool:
    try:
        return lock(file, wait=False)
    except BlockingIOError:
        print(f"{target}: another process downloads it; waiting for that", file=sys.stderr)
        return lock(file, wait=True)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _download_unless_there(address: str, part: _Part, target: Path, checksum: str) -> None:
    """Downloads to `target`; a download that breaks off is no error where another process has finished by then."""
    try:
        _download(address, part, target, checksum)
    except (OSError, http.client.HTTPException):
        if not target.exists():
            raise


def _download(address: str, part: _Part, target: Path, checksum: str) -> None:
    """Downloads the rest of a part and moves it to `target`. Raises OSError, HTTPException and ValueError."""
    done = part.file.seek(0, os.SEEK_END)
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status != 206:  # the server sends the whole file
                part.file.truncate(0)
            _copy(response, part.file, target.name)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing follows what is here: the part is whole, or of another file
            raise
    part.file.flush()
    os.fsync(part.file.fileno())
    if _digest(part.file, checksum) != checksum:
        part.path.unlink()
        raise OSError(f"the checksum of {target.name} is wrong, it was deleted")
    part.path.rename(target)
    with suppress(OSError):
        _mark(target, checksum).write_text(checksum)


def _copy(response, file: BinaryIO, name: str) -> None:
    done, length = file.seek(0, os.SEEK_END), response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=f"downloading {name}") as progress:
        while block := response.read(BLOCK):
            if file.tell() + len(block) > LARGEST:
                raise OSError(f"the server sends more than {LARGEST >> 30} GB")
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() < total:
        raise OSError(f"the connection broke at {file.tell():,} of {total:,} bytes")


def _is_verified(target: Path, checksum: str) -> bool:
    mark = _mark(target, checksum)
    if mark.exists() and mark.read_text() == checksum and mark.stat().st_mtime >= target.stat().st_mtime:
        return True
    with target.open("rb") as file:
        if _digest(file, checksum) != checksum:
            return False
    with suppress(OSError):  # the file may lie where others alone can write
        mark.write_text(checksum)
    return True


def _mark(target: Path, checksum: str) -> Path:
    """Returns the file that says that the target was checked, so that a later run need not read it again."""
    return target.with_name(f"{target.name}.{_algorithm(checksum)}")


def _digest(file: BinaryIO, checksum: str) -> str:
    file.seek(0)
    return hashlib.file_digest(file, _algorithm(checksum)).hexdigest()


def _algorithm(checksum: str) -> str:
    return "md5" if len(checksum) == 32 else "sha256"
