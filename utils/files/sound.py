"""Sound files from anywhere, opened only where libsndfile will read all of their sound.

libsndfile believes headers. It reads nothing of a WAV whose recorder was killed before it stated a size, and of
files that were joined byte by byte it reads the first, without a word. Here each container is looked through first.
"""

import io
import os
from functools import partial
from typing import BinaryIO, Literal, NamedTuple

import soundfile

from utils.errors import UserError, printable
from utils.files.frames import CHECKS, CONVERT, TRUNCATED
from utils.files.members import parse_member

RATES = range(1_000, 768_001)  # Hz that a file may state: beyond are errors, and a second that becomes gigabytes
_STREAMED = 0x7FFF_F000  # bytes; a WAV written to a pipe states this or more: unknown, not truncated
_UNKNOWN_FRAMES = 1 << 62  # libsndfile states more than this where a FLAC written to a pipe states none
_TAIL = 256  # bytes after the last chunk that may be anything
_BLOCK = 1 << 20  # bytes
_MOST_CHUNKS = 1000


class AudioError(UserError):
    """A sound file that cannot be used; the message is one line and begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):  # so that a data worker can send it to the main process
        return AudioError, (self.path, self.reason)


def open_sound(path, *, whole: bool = True) -> soundfile.SoundFile:
    """Opens a file for reading. Raises AudioError where it is no file, no sound, or not all of it would be read.

    Args:
        whole: look through the container for what would not be read; a part of an hour does not need it.
    """
    member = parse_member(path)
    place = member.tar if member else path
    if not os.path.isfile(place):  # False, unlike Path.is_file, for a name that the system refuses
        raise AudioError(path, "no such file" if not os.path.exists(place) else "not a file")
    if not os.access(place, os.R_OK):
        raise AudioError(path, "not readable (permission denied)")
    size = member.size if member else os.path.getsize(place)
    if not size:
        raise AudioError(path, "empty: 0 bytes")
    if member and member.begin + size > os.path.getsize(place):
        raise AudioError(path, TRUNCATED)
    try:
        content = member.read() if member else None
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            source = os.fsencode(path) if content is None else io.BytesIO(content)
            sound = soundfile.SoundFile(_check_size(path, file, size, content) or source)
            fault = _fault_in_header(sound, size)
            if whole and not fault and sound.format in CHECKS:
                fault = CHECKS[sound.format](file, size, sound)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(path, f"not audio that can be read ({describe(error)})") from None
    if fault:
        sound.close()
        raise AudioError(path, fault)
    return sound


def describe(error: Exception) -> str:
    """Returns what libsndfile says, in one line."""
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".").lower() or "unknown error"


def _fault_in_header(sound: soundfile.SoundFile, size: int) -> str:
    if sound.frames > _UNKNOWN_FRAMES or sound.frames < 0:
        return "its header does not state its length: encode it again, to a file"
    if sound.samplerate not in RATES:
        return f"its header states {sound.samplerate:,} Hz, not {RATES.start:,} to {RATES.stop - 1:,}"
    if not sound.frames and size > _TAIL:
        return f"its header states no samples, though it has {size:,} bytes: {CONVERT}"
    return "" if sound.frames else "empty: no samples"


# -- WAV, AIFF, Wave64 and AU: headers that state the bytes of the samples -------------------------


class _Chunks(NamedTuple):
    """How a container writes its chunks, each a name, a size and so many bytes."""

    first: int = 12  # where the first one begins
    name: int = 4  # bytes of a name
    size: int = 4  # bytes of a size
    counted: int = 0  # bytes of name and size, where the size counts them
    order: Literal["little", "big"] = "little"
    samples: bytes = b"data"  # the name of the chunk that holds them begins so

    def read(self, file: BinaryIO, at: int) -> tuple[bytes, int, int]:
        """Returns the first four bytes of the name of the chunk at `at`, where its content begins, and its size."""
        file.seek(at)
        name, size = file.read(self.name), file.read(self.size)
        return name[:4], file.tell(), int.from_bytes(size, self.order) - self.counted

    def end(self, begin: int, size: int) -> int:
        """Returns where the next chunk begins."""
        return begin + size + -size % (2 if self.size == 4 else 8)


_WAV = _Chunks()
_CONTAINERS = {b"RIFF": _WAV, b"RF64": _WAV, b"RIFX": _WAV._replace(order="big"),
               b"FORM": _WAV._replace(order="big", samples=b"SSND"),
               b"riff": _Chunks(first=40, name=16, size=8, counted=24)}
_FORMS = (b"WAVE", b"AIFF", b"AIFC", b"\xa5\xd6\x28\xdb")  # bytes 8 to 11, the last those of Wave64


class _Streamed(io.RawIOBase):
    """A WAV that states an unknown size of its samples, as if it had been written to a pipe."""

    def __init__(self, file: BinaryIO, samples: int):
        self.file, self.size_at = file, samples - 4
        self.seek, self.tell = file.seek, file.tell

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        begin = self.tell()
        count = self.file.readinto(buffer)
        for at in range(max(begin, self.size_at), min(begin + count, self.size_at + 4)):
            memoryview(buffer).cast("B")[at - begin] = 0xFF
        return count


def _check_size(path, file: BinaryIO, size: int, content: bytes | None) -> _Streamed | None:
    """Returns a WAV as a streamed one where its recorder was killed before it stated a size, else None.

    Args:
        content: of a file in a tar.

    Raises AudioError where a file is not all there, or goes on after the samples that it states.
    """
    start = file.read(12)
    chunks = _CONTAINERS.get(start[:4], _WAV) if start[8:] in _FORMS else _WAV
    samples, stated = _find_samples(file, start, chunks, size)
    if not samples or stated == _STREAMED:
        return None
    if samples + stated > size:
        raise AudioError(path, TRUNCATED)
    if chunks.size == 8:  # a Wave64, which libsndfile reads to the file's end
        return None
    after = _count_after_chunks(file, chunks, chunks.end(samples, stated), size)
    if after and not stated:
        if chunks is not _WAV:
            return None
        return _Streamed(open(path, "rb") if content is None else io.BytesIO(content), samples)
    if after > _TAIL:
        raise AudioError(path, f"{after:,} bytes follow the samples that its header states: "
                               "`ffmpeg -ignore_length 1 -i` reads them as well")
    return None


def _find_samples(file: BinaryIO, start: bytes, chunks: _Chunks, file_size: int) -> tuple[int, int]:
    """Returns where the samples begin and how many bytes they are said to have, _STREAMED where that is unknown.

    Returns (0, 0) for other kinds of files. `start` are the first twelve bytes.
    """
    if start[:4] == b".snd":  # AU
        return int.from_bytes(start[4:8], "big"), min(int.from_bytes(start[8:], "big"), _STREAMED)
    if start[:4] not in _CONTAINERS or start[8:] not in _FORMS:
        return 0, 0
    at, large = chunks.first, None
    for _ in range(_MOST_CHUNKS):
        if at >= file_size:  # as a chunk may state; no seek takes 64 bits
            break
        name, begin, size = chunks.read(file, at)
        if name == chunks.samples:
            if large is not None and size == 0xFFFF_FFFF:
                return begin, large
            return begin, min(size, _STREAMED) if chunks.size == 4 else size
        if name == b"ds64":
            large = int.from_bytes(file.read(16)[8:], "little")
        at = chunks.end(begin, size)
    return 0, 0


def _count_after_chunks(file: BinaryIO, chunks: _Chunks, begin: int, size: int) -> int:
    """Returns how many bytes from `begin` on belong to no chunk, tag or padding."""
    for _ in range(_MOST_CHUNKS):
        name, content, length = chunks.read(file, begin)
        end = chunks.end(content, length)
        if name in _CONTAINERS or not (name.isascii() and name.decode().isprintable()) or end > size + 1:
            break
        begin = end
    file.seek(max(0, begin))
    if file.read(3) in (b"ID3", b"TAG"):
        return 0
    file.seek(begin)
    blocks = iter(partial(file.read, _BLOCK), b"")
    return size - begin if any(block.count(0) < len(block) for block in blocks) else 0
