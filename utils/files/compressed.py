"""Files that gzip may have compressed, in bounded memory and time: a few kilobytes can unpack to terabytes."""

import errno
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
    """A compressed file that holds more than it may."""


class BoundedReader(io.BufferedReader):
    """Reads the bytes of a file, decompressed where gzip compressed it; iterates over lines of at most 16 MB.

    A compressed file may unpack to `times` its size, or to 64 MB where that is more. Reading raises OSError, of which
    DecompressionError where a file goes beyond, and what gzip raises for a damaged one.
    """

    def __init__(self, path, *, times: int):
        self.compressed = _is_gzip(path)
        super().__init__(_GzipStream(path, times) if self.compressed else io.FileIO(path), BUFFER)

    def read(self, size: int | None = -1) -> bytes:
        """Reads up to `size` bytes. Raises OSError, also where more than 16 MB are asked for."""
        if size is not None and size > LARGEST_READ:
            raise DecompressionError(f"states a piece of more than {LARGEST_READ >> 20} MB")
        return super().read(size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.readline, LARGEST_READ), b"")


def _is_gzip(path) -> bool:
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a file", os.fspath(path))  # a pipe would make it wait
    with open(path, "rb") as file:
        return Path(path).suffix == ".gz" or file.read(2) == b"\x1f\x8b"


class _GzipStream(io.RawIOBase):
    """The content of a gzip file, up to a bound."""

    def __init__(self, path, times: int):
        self.file = gzip.GzipFile(path, "rb")
        self.limit = max(FREE, times * os.path.getsize(path))

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
        if position > self.limit:
            raise DecompressionError(f"unpacks to more than {self.limit / 1e6:,.0f} MB: too much for its size")
