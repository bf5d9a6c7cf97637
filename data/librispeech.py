"""LibriSpeech (Panayotov et al. 2015): its subsets from the web, and any folder in its layout.

    ROOT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac      one utterance
    ROOT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt           a line each: id, space, text
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from data.index import DataError, Entry
from utils.audio import EXTENSIONS

URL = "https://www.openslr.org/resources/12"
SHA256 = {  # of the tar.gz of each subset
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


def find_split(root: Path, name: str) -> Path | None:
    """The folder of a split under `root`: as LibriSpeech's archives unpack, or directly."""
    return next((path for path in (root / "LibriSpeech" / name, root / name) if path.is_dir()), None)


def list_entries(folder: Path) -> tuple[list[Entry], dict[str, list[str]]]:
    """What the transcripts under `folder` list, in the order of their files, and the faults by kind."""
    entries, faults = [], {"without audio": [], "without a transcript": [], "in an unreadable transcript": []}
    for transcript in sorted(folder.rglob("*.trans.txt")):
        audio = {path.stem: path for path in transcript.parent.iterdir() if path.suffix.lower() in EXTENSIONS}
        try:
            lines = transcript.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError):
            faults["in an unreadable transcript"].append(str(transcript))
            continue
        listed = set()
        for line in filter(str.strip, lines):
            utterance, _, text = line.strip().partition(" ")
            listed.add(utterance)
            if utterance in audio:
                entries.append(Entry(utterance, str(audio[utterance]), text, utterance.split("-")[0]))
            else:
                faults["without audio"].append(utterance)
        faults["without a transcript"] += sorted(audio.keys() - listed)
    faults["without a transcript"] += _orphans(folder)
    return entries, faults


def _orphans(folder: Path) -> list[str]:
    """Sound files in folders that have no transcript at all."""
    return sorted(str(Path(parent, name)) for parent, _, names in os.walk(folder)
                  if not any(name.endswith(".trans.txt") for name in names)
                  for name in names if name.lower().endswith(EXTENSIONS))


def download_subset(name: str, root: Path, *, url: str = URL, checksums: dict[str, str] = SHA256) -> Path:
    """Fetches, verifies and unpacks one subset into `root/LibriSpeech/name`.

    A broken download is resumed where it stopped. The folder appears under its name only when it is
    whole. Raises DataError that says what to fetch by hand and where to put it.
    """
    if name not in checksums:
        raise DataError(f"no LibriSpeech subset {name!r}: there are {', '.join(checksums)}")
    archive = root / f"{name}.tar.gz"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if archive.exists():
            _verify(archive, checksums[name])
        else:
            _download(f"{url}/{archive.name}", archive, checksums[name])
        return _unpack(archive, root, name)
    except urllib.error.URLError as error:
        raise DataError(f"cannot download {name} ({error.reason}): fetch {url}/{archive.name} elsewhere and put it "
                        f"at {archive}, or unpack it in {root}") from None
    except DataError:
        raise
    except (OSError, tarfile.TarError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
        reason = " ".join(str(error).split())
        raise DataError(f"cannot download {name} to {root} ({reason}): the same command resumes it, or fetch "
                        f"{url}/{archive.name} elsewhere and put it at {archive}") from None


def _download(address: str, archive: Path, checksum: str) -> None:
    part = archive.with_suffix(".gz.part")
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
            _copy(response, file, done if response.status == 206 else 0, archive.name)
    if _sha256(part) != checksum:
        part.unlink()
        raise OSError(f"the checksum of {archive.name} is wrong, it was deleted")
    part.rename(archive)
    _mark(archive).write_text(checksum)


def _copy(response, file, done: int, name: str) -> None:
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=f"downloading {name}") as progress:
        while block := response.read(BLOCK):
            file.write(block)
            progress.update(len(block))
    if total is not None and file.tell() < total:
        raise OSError(f"the connection broke at {file.tell():,} of {total:,} bytes")


def _mark(archive: Path) -> Path:
    """The file beside an archive that says it was checked, so that a later run need not read it again."""
    return archive.with_suffix(".gz.sha256")


def _verify(archive: Path, checksum: str) -> None:
    mark = _mark(archive)
    if mark.exists() and mark.read_text() == checksum and mark.stat().st_mtime >= archive.stat().st_mtime:
        return
    if _sha256(archive) != checksum:
        raise DataError(f"{archive}: wrong checksum; delete it, and the next run fetches it again")
    mark.write_text(checksum)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, root: Path, name: str) -> Path:
    """Into a folder beside, then moved into place; `filter="data"` keeps members inside it."""
    beside = root / f".unpacking-{name}"
    shutil.rmtree(beside, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"unpacking {name}", unit=" files"):
            tar.extract(member, beside, filter="data")
    source = beside / "LibriSpeech" / name
    if not source.is_dir():
        raise DataError(f"{archive}: holds no LibriSpeech/{name}")
    target = root / "LibriSpeech" / name
    target.parent.mkdir(exist_ok=True)
    source.rename(target)
    for extra in (beside / "LibriSpeech").glob("*.TXT"):  # SPEAKERS.TXT, LICENSE.TXT and their like
        extra.replace(target.parent / extra.name)
    shutil.rmtree(beside)
    return target
