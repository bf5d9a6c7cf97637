"""Files that may be packed by gzip, read in bounded memory and time: a few kilobytes can unpack to terabytes."""

import gzip
import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

LARGEST_READ = 16 << 20  # bytes at once: no honest line or header is longer
FREE = 64 << 20  # bytes that any file may unpack to
BUFFER = 1 << 20  # bytes


class DecompressionError(OSError):
    """A packed file that holds more than it may."""


class BoundedReader(io.BufferedReader):
    """The bytes of a file, unpacked where gzip packed it, line by line too; a line of more than 16 MB comes in pieces.

    A packed file may unpack to `times` its size, or to 64 MB where that is more. Raises OSError, of which
    DecompressionError where it goes beyond; and what gzip raises for a damaged one, also while it is read.
    """

    def __init__(self, path, *, times: int):
        self.packed = is_gzip(path)
        super().__init__(_Unpacked(path, times) if self.packed else io.FileIO(path), BUFFER)

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes. Raises OSError, also where a piece of more than 16 MB is asked for."""
        if size is not None and size > LARGEST_READ:
            raise DecompressionError(f"states a piece of more than {LARGEST_READ >> 20} MB")
        return super().read(size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.readline, LARGEST_READ), b"")


def is_gzip(path) -> bool:
    """Whether a file is packed by gzip, by its name or by how it begins."""
    with open(path, "rb") as file:
        return Path(path).suffix == ".gz" or file.read(2) == b"\x1f\x8b"


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to a bound."""

    def __init__(self, path, times: int):
        self.file = gzip.GzipFile(path, "rb")
        self.most = max(FREE, times * os.path.getsize(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        size = self.file.readinto(buffer)
        self._check(self.file.tell())
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._check(offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        super().close()

    def _check(self, position: int) -> None:
        if position > self.most:
            raise DecompressionError(f"unpacks to more than {self.most / 1e6:,.0f} MB: too much for its size")
