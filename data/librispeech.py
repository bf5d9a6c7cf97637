"""LibriSpeech's subsets (Panayotov et al. 2015), from the web."""

import shutil
import tarfile
import zlib
from pathlib import Path

from tqdm import tqdm

from data.index import DataError
from utils.errors import printable
from utils.files.compressed import BoundedReader
from utils.files.download import DownloadError, fetch

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
    whole. Raises DataError that says what to fetch by hand and where to put it.
    """
    if name not in checksums:
        raise DataError(f"no LibriSpeech subset {name!r}: there are {', '.join(checksums)}")
    try:
        archive = fetch(f"{url}/{name}.tar.gz", root / f"{name}.tar.gz", checksums[name])
    except DownloadError as error:
        raise DataError(str(error)) from None
    try:
        return _unpack(archive, root, name)
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        shutil.rmtree(_beside(root, name), ignore_errors=True)
        raise DataError(f"cannot unpack {archive} ({printable(error, 200)})") from None


def _beside(root: Path, name: str) -> Path:
    """Where a subset is unpacked, before it is moved into place."""
    return root / f".unpacking-{name}"


def _unpack(archive: Path, root: Path, name: str) -> Path:
    """Into a folder beside, then moved into place. Raises OSError, and what tarfile raises."""
    beside = _beside(root, name)
    shutil.rmtree(beside, ignore_errors=True)
    with BoundedReader(archive, times=UNPACKED_TIMES) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
        for member in tqdm(iter(tar.next, None), desc=f"unpacking {name}", unit=" files"):
            _extract(tar, member, beside)
            tar.members.clear()  # which it keeps to find links by
    source = beside / "LibriSpeech" / name
    if not source.is_dir():
        raise tarfile.TarError(f"holds no LibriSpeech/{name}")
    target = root / "LibriSpeech" / name
    target.parent.mkdir(exist_ok=True)
    source.rename(target)
    for extra in (beside / "LibriSpeech").glob("*.TXT"):  # SPEAKERS.TXT, LICENSE.TXT and their like
        extra.replace(target.parent / extra.name)
    shutil.rmtree(beside)
    return target


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """A file or folder, which `filter="data"` keeps inside `folder`.

    LibriSpeech's archives hold nothing else, and links are how others have led out of a folder, past that filter
    too. A size below 0 would make tarfile read the same header for ever; sparse files take no bytes of the archive.
    """
    if not (member.isfile() or member.isdir()) or member.issparse() or member.size < 0:
        raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
    tar.extract(member, folder, filter="data")
