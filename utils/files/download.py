"""Files from the web: resumed where a download broke, and believed only where their checksum is right."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
LARGEST = 64 << 30  # bytes; LibriSpeech's largest archive has 30 GB


class DownloadError(UserError):
    """A file that cannot be had; the message is one line that says what to fetch by hand and where to put it."""


def fetch(address: str, target: Path, checksum: str) -> Path:
    """`target`, downloaded where it is not there yet.

    A broken download stays beside it as `NAME.part` and goes on from there. The file appears under its
    name only when it is whole; what is found there already is checked as well, once.

    Args:
        checksum: SHA-256 or MD5, in hexadecimal; its length says which.

    Raises DownloadError.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _download(address, target, checksum)
        elif not _verified(target, checksum):
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


def _download(address: str, target: Path, checksum: str) -> None:
    part = target.with_name(f"{target.name}.part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing follows what is here: the part is whole, or of another file
            raise
        response = None
    if response is not None:
        with response, open(part, "ab" if response.status == 206 else "wb") as file:
            _copy(response, file, done if response.status == 206 else 0, target.name)
    if _digest(part, checksum) != checksum:
        part.unlink()
        raise OSError(f"the checksum of {target.name} is wrong, it was deleted")
    part.rename(target)
    _mark(target, checksum).write_text(checksum)


def _copy(response, file, done: int, name: str) -> None:
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=f"downloading {name}") as progress:
        while block := response.read(BLOCK):
            if file.tell() + len(block) > LARGEST:
                raise OSError(f"the server sends more than {LARGEST >> 30} GB")
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() < total:
        raise OSError(f"the connection broke at {file.tell():,} of {total:,} bytes")


def _verified(target: Path, checksum: str) -> bool:
    mark = _mark(target, checksum)
    if mark.exists() and mark.read_text() == checksum and mark.stat().st_mtime >= target.stat().st_mtime:
        return True
    if _digest(target, checksum) != checksum:
        return False
    mark.write_text(checksum)
    return True


def _mark(target: Path, checksum: str) -> Path:
    """The file beside that says that the target was checked, so that a later run need not read it again."""
    return target.with_name(f"{target.name}.{_algorithm(checksum)}")


def _digest(path: Path, checksum: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _algorithm(checksum)).hexdigest()


def _algorithm(checksum: str) -> str:
    return "md5" if len(checksum) == 32 else "sha256"
