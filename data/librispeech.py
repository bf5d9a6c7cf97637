"""LibriSpeech's subsets (Panayotov et al. 2015), from the web."""

import shutil
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from data.index import DataError
from utils.errors import printable
from utils.files.compressed import BoundedReader
from utils.files.download import DownloadError, fetch
from utils.files.folders import remove_abandoned
from utils.files.locks import waiting_lock

URL = "https://www.openslr.org/resources/12"
UNPACKED_TIMES = 4  # that an archive may unpack to more than its size; FLAC hardly packs
SHA256 = {  # of the tar.gz of each subset
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}


def download_subset(name: str, root: Path, *, url: str = URL, checksums: dict[str, str] = SHA256) -> Path:
    """Fetches, verifies and unpacks one subset into `root/LibriSpeech/name`.

    A broken download is resumed where it stopped. The folder appears under its name only when it is
    whole. Of several processes, on one machine or on several that share `root`, one does the work, and
    the others wait for it. Raises DataError that says what to fetch by hand and where to put it.
    """
    if name not in checksums:
        raise DataError(f"no LibriSpeech subset {name!r}: there are {', '.join(checksums)}")
    target = root / "LibriSpeech" / name
    try:
        with suppress(OSError):  # which `fetch` explains
            root.mkdir(parents=True, exist_ok=True)
        with waiting_lock(root / f".{name}.lock", f"{name} is being downloaded and unpacked to {root}") as locked:
            if not target.is_dir():
                archive = fetch(f"{url}/{name}.tar.gz", root / f"{name}.tar.gz", checksums[name])
                _unpack(archive, target, alone=locked)
    except DownloadError as error:
        raise DataError(str(error)) from None
    return target


def _unpack(archive: Path, target: Path, *, alone: bool) -> None:
    """Unpacks into a folder of this process's own, then moves it into place. Raises DataError.

    Args:
        alone: whether no other process can be unpacking, so that what others left was left by a kill.
    """
    root, prefix = archive.parent, f".unpacking-{target.name}"
    remove_abandoned(root, prefix, at_once=alone)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=root))
    try:
        _extract_all(archive, folder)
        _move_into_place(folder / "LibriSpeech", target)
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"cannot unpack {archive} ({printable(error, 200)})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(unpacked: Path, target: Path) -> None:
    """Moves the split to its name, unless another process was first. Raises OSError or TarError."""
    if not (unpacked / target.name).is_dir():
        raise tarfile.TarError(f"holds no LibriSpeech/{target.name}")
    target.parent.mkdir(exist_ok=True)
    for extra in unpacked.glob("*.TXT"):  # SPEAKERS.TXT, LICENSE.TXT and their like
        extra.replace(target.parent / extra.name)
    try:
        (unpacked / target.name).rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _extract_all(archive: Path, folder: Path) -> None:
    with BoundedReader(archive, times=UNPACKED_TIMES) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
        for member in tqdm(iter(tar.next, None), desc=f"unpacking {archive.name}", unit=" files", disable=None):
            _extract(tar, member, folder)
            tar.members.clear()  # which it keeps to find links by


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes a file or folder of an archive below `folder`. Raises OSError or TarError.

    LibriSpeech's archives hold nothing else, and links are how others have led out of a folder, past tarfile's own
    filter too, which Python has since 3.11.4 only. A size below 0 would make tarfile read the same header for ever;
    sparse files take no bytes of the archive.
    """
    if not (member.isfile() or member.isdir()) or member.issparse() or member.size < 0:
        raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
    name = PurePosixPath(member.name.lstrip("/"))
    if ".." in name.parts:
        raise tarfile.TarError(f"{member.name} leads out of the folder")
    target = folder / name
    (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
    if member.isfile():
        with tar.extractfile(member) as content, open(target, "wb") as file:
            shutil.copyfileobj(content, file)
