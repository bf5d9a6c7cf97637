"""Text files from anywhere: their encoding and packing, and the two ways in which corpora write transcripts."""

import codecs
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

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

    Raises TextError, also for what is no regular file: a pipe would make it wait. Reading may raise what
    `explain` understands.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise TextError(path, "not a file")
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


class ManifestRow(NamedTuple):
    """One line of a manifest, with its keys named as here."""

    audio: str | None  # path
    text: str
    id: str | None
    speaker: str | None
    offset: float | None  # seconds at which the utterance begins in the file
    duration: float | None  # seconds


def split_transcript(line: str) -> tuple[str, str]:
    """Returns the id and the text in a line of LibriSpeech's `*.trans.txt`."""
    identity, text = [*line.split(maxsplit=1), "", ""][:2]
    return identity, text.strip()


def parse_manifest(line: str) -> ManifestRow:
    """Returns what a line of a JSON-lines manifest states, in the keys of this project, of NeMo or of Lhotse's cuts.

    Raises ValueError that says what is missing or of a wrong type, and RecursionError.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if "supervisions" in row:
        row = _from_cut(row)
    audio = row.get("audio", row.get("audio_filepath"))
    if not isinstance(audio, str | None):
        raise ValueError("'audio' is no string")
    if not isinstance(row.get("text"), str):
        raise ValueError("no 'text' string")
    identity, speaker = (None if row.get(key) is None else str(row[key]) for key in ("id", "speaker"))
    parsed = ManifestRow(audio, row["text"], identity, speaker, _seconds(row, "offset"), _seconds(row, "duration"))
    os.fsencode(audio or "")  # JSON can state halves of characters, which are in no name and nothing can write again
    for value in (parsed.text, parsed.id or "", parsed.speaker or ""):
        value.encode()
    return parsed


def _seconds(row: dict, key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{key!r} is no number of seconds")
    return float(value)


def _from_cut(cut: dict) -> dict:
    """Returns the row that a Lhotse MonoCut with one supervision stands for."""
    try:
        supervision, = cut["supervisions"]
        source, = cut["recording"]["sources"]
        if source["type"] != "file" or len(source["channels"]) != 1:
            raise ValueError
        return {"audio": source["source"], "text": supervision["text"], "id": supervision["id"],
                "speaker": supervision.get("speaker"), "offset": cut["start"] + supervision["start"],
                "duration": supervision["duration"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not a Lhotse cut of one supervision, in a file of one channel") from None
