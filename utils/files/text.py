"""Text files from anywhere: their encoding and packing, their lines, and the lines of LibriSpeech's transcripts."""

import codecs
import io
import zlib
from collections.abc import Iterator

from utils.errors import UserError, printable
from utils.files.compressed import BoundedReader

LONGEST_LINE = 1 << 20  # characters of a line in a transcript or a manifest
PACKED_TIMES = 100  # that a text may unpack to more than its packed size; text packs 3 to 30 fold
_MARKS = {  # byte order marks; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF8: "UTF-8-sig",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class TextError(UserError):
    """A file that cannot be read as text; the message is one line and begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.reason = reason


def open_text(path) -> io.TextIOWrapper:
    """Opens UTF-8, or UTF-16 or UTF-32 with a byte order mark, packed by gzip or not.

    Raises TextError, also for what is no regular file. Reading may raise what `explain` understands.
    """
    try:
        packed = BoundedReader(path, times=PACKED_TIMES)
        return io.TextIOWrapper(packed, _encoding(packed.peek(4)[:4]))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise explain(path, error) from None


def decode(path, content: bytes) -> str:
    """Returns the text of a file's whole `content`, in the encodings of `open_text`. Raises TextError."""
    try:
        return content.decode(_encoding(content[:4]))
    except (OSError, UnicodeDecodeError) as error:
        raise explain(path, error) from None


def read_pieces(path, longest: int) -> Iterator[str]:
    """Yields the lines of a text file, those of more than `longest` characters in pieces. Raises TextError."""
    with open_text(path) as file:
        try:
            while piece := file.readline(longest):
                yield piece
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise explain(path, error) from None


def read_lines(path) -> Iterator[str | None]:
    """Yields the lines of a text file, None for one of more than a million characters. Raises TextError."""
    long = False
    for piece in read_pieces(path, LONGEST_LINE):
        cut = len(piece) == LONGEST_LINE and not piece.endswith("\n")
        if not cut:
            yield None if long else piece
        long = cut
    if long:
        yield None


def explain(path, error: Exception) -> TextError:
    """Returns what to say of an error in reading text: the encoding that the file does not keep, and the mend."""
    if not isinstance(error, UnicodeDecodeError):
        return TextError(path, printable(getattr(error, "strerror", None) or error, 200))
    if error.encoding.lower().startswith("utf-8"):
        byte = error.object[error.start]
        return TextError(path, f"not UTF-8 (it has a byte 0x{byte:02X}): convert it, from Windows-1252 or Latin-1 by "
                               f"`iconv -f CP1252 -t UTF-8`")
    return TextError(path, f"begins as {error.encoding.upper()[:6]} but is not: save it as UTF-8")


def _encoding(start: bytes) -> str:
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    if b"\0" in start:
        raise OSError(0, "UTF-16 without a byte order mark, or no text: save it as UTF-8")
    return "UTF-8"


def split_transcript(line: str) -> tuple[str, str]:
    """Returns the id and the text in a line of LibriSpeech's `*.trans.txt`."""
    identity, text = [*line.split(maxsplit=1), "", ""][:2]
    return identity, text.strip()
