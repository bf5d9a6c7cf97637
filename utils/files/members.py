"""Files inside an uncompressed tar, named by where they are: `shard.tar:1536+20480`, begin and size in bytes."""

import re
from typing import NamedTuple

_NAME = re.compile(r"(.+\.tar):([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL)


class Member(NamedTuple):
    """A file inside a tar."""

    tar: str  # path
    begin: int  # bytes
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.tar}:{self.begin}+{self.size}"

    def read(self) -> bytes:
        """Returns its content, by one seek; less than its size where the tar ends before. Raises OSError."""
        with open(self.tar, "rb", buffering=0) as file:
            file.seek(self.begin)
            return file.read(self.size)


def parse_member(path) -> Member | None:
    """Returns the member that a name stands for; None for the path of a file of its own."""
    match = _NAME.fullmatch(str(path))
    return Member(match[1], int(match[2]), int(match[3])) if match else None
