"""The files of a public data set, from GitHub's archive of one commit or from a folder, verified by checksums."""

import hashlib
import itertools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data.index import DataError
from utils.errors import printable
from utils.files.compressed import LARGEST_READ, BoundedReader
from utils.files.download import fetch

UNPACKED_TIMES = 8  # that an archive may unpack to more than its size


class Source(NamedTuple):
    """The place of a data set, and checksums of its archive and of the files that are used."""

    name: str
    url: str
    sha256: str | None  # of the archive; None: it is not downloaded, `url` is a repository to clone
    files: tuple[str, ...]  # patterns of the paths in it that are used, such as data/*.wav
    files_sha256: str  # of the lines that sha256sum writes of them, with their names alone, sorted by their paths


def read_files(source: Source, path: Path | None, download_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Returns name and content of each file of the data set, sorted by path, after verifying all of them.

    Args:
        path: a folder or a tar archive that holds the data set; None downloads the archive into `download_dir`.

    Raises DataError where they are other files, DownloadError, and OSError.
    """
    if path is None and source.sha256 is None:
        raise DataError(f"{source.name} is not downloaded: git clone {source.url} and pass its folder with --source")
    if path is None:
        path = fetch(source.url, download_dir / f"{source.name}.tar.gz", source.sha256)
    read = _read_folder if path.is_dir() else _read_archive
    lines = hashlib.sha256()
    for name, content in read(source, path):
        lines.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
    if lines.hexdigest() != source.files_sha256:
        how = "unpack" if source.sha256 else "clone"
        raise DataError(f"{path} holds other files than {source.name}: {how} {source.url} and pass its folder")
    return read(source, path)


def _read_folder(source: Source, path: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the files of a data set's folder, or of the folder in it that holds them."""
    inner = {pattern.rpartition("/")[2] for pattern in source.files}
    found = [file for patterns in (source.files, inner) for pattern in patterns for file in path.glob(pattern)]
    for file in sorted(set(found), key=lambda file: file.relative_to(path).as_posix()):
        with file.open("rb") as opened:
            yield file.name, opened.read(LARGEST_READ)


def _read_archive(source: Source, path: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the archive once, in its own order, which is sorted where git made it; nothing is unpacked to disk."""
    try:
        with BoundedReader(path, times=UNPACKED_TIMES) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in iter(tar.next, None):
                within = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # without the archive's own folder
                if member.isreg() and any(is_at(within, pattern) for pattern in source.files):
                    yield within.name, tar.extractfile(member).read(LARGEST_READ)
                tar.members.clear()  # it keeps every member to find links by
    except (tarfile.TarError, EOFError, zlib.error, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not a tar archive that can be read ({printable(error, 200)}): "
                        f"fetch {source.url} again") from None


def is_at(path: PurePosixPath, pattern: str) -> bool:
    """Returns whether a relative path has as many parts as a pattern, and each matches: * stops at a slash."""
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def group_by_stem(files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields each stem with the contents of its files by suffix, such as `.txt` and `.wav`."""
    for stem, group in itertools.groupby(files, key=lambda file: Path(file[0]).stem):
        yield stem, {Path(name).suffix: content for name, content in group}
