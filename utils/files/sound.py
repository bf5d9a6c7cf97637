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
from utils.files.members import parse_member

RATES = range(1_000, 768_001)  # Hz that a file may state: beyond are errors, and a second that becomes gigabytes
TRUNCATED = "truncated: it ends before its header says"
CONVERT = "convert it, by ffmpeg for example"
JOINED = f"several recordings one after the other, of which only the first would be read: {CONVERT}"
_STREAMED = 0x7FFF_F000  # bytes; a WAV written to a pipe states this or more: unknown, not truncated
_UNKNOWN_FRAMES = 1 << 62  # libsndfile states more than this where a FLAC written to a pipe states none
_TAIL = 256  # bytes after the last chunk that may be anything
_BLOCK = 1 << 20  # bytes
_MOST_CHUNKS = 1000
_MPEG_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s of layer III
_MPEG_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_DELAY = 4  # MP3 frames that encoders add and decoders take away


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
            if whole and not fault and sound.format in _CHECKS:
                fault = _CHECKS[sound.format](file, size, sound)
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
    samples, stated = _find_samples(file, start, chunks)
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


def _find_samples(file: BinaryIO, start: bytes, chunks: _Chunks) -> tuple[int, int]:
    """Returns where the samples begin and how many bytes they are said to have, _STREAMED where that is unknown.

    Returns (0, 0) for other kinds of files. `start` are the first twelve bytes.
    """
    if start[:4] == b".snd":  # AU
        return int.from_bytes(start[4:8], "big"), min(int.from_bytes(start[8:], "big"), _STREAMED)
    if start[:4] not in _CONTAINERS or start[8:] not in _FORMS:
        return 0, 0
    at, large = chunks.first, None
    for _ in range(_MOST_CHUNKS):
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


# -- Ogg, FLAC and MP3: files that go on after what is said to be their end -------------------------


def _check_ogg(file: BinaryIO, size: int, _) -> str:
    """Returns what is wrong with the pages of a file (RFC 3533, section 6), or nothing.

    After `OggS`, byte 5 has bit 1 set on the first page of a stream and bit 2 on its last one; byte 26 counts the
    segments, whose sizes follow.
    """
    at, end, inside, ends = 0, 0, False, False
    while at >= 0:
        file.seek(at)
        header = file.read(27)
        if not header.startswith(b"OggS"):
            at = _find(file, b"OggS", at)
            continue
        sizes = file.read(header[26]) if len(header) == 27 else b""
        if len(sizes) < header[-1]:
            return TRUNCATED
        if header[5] & 2 and inside:
            return JOINED
        inside, ends = inside or not header[5] & 2, bool(header[5] & 4)
        at = end = file.tell() + sum(sizes)
    return "" if ends and end <= size else TRUNCATED


def _check_flac(file: BinaryIO, size: int, sound: soundfile.SoundFile) -> str:
    """Returns what is to be said where another file begins within this one, or where more samples follow than stated.

    Another file is known by its mark and its first block's size.
    """
    begin = at = _find(file, b"fLaC", 0)
    while (at := _find(file, b"fLaC", at + 4)) >= 0:
        file.seek(at + 4)
        if file.read(4) in (b"\0\0\0\x22", b"\x80\0\0\x22"):
            return JOINED
    if _last_flac_frame(file, begin, size) >= sound.frames:
        return f"its header states {sound.frames:,} samples, and more follow: {CONVERT}"
    return ""


def _last_flac_frame(file: BinaryIO, begin: int, size: int) -> int:
    """Returns where the last frame of the FLAC at `begin` starts, in samples (RFC 9639, section 9); -1 if unknown."""
    file.seek(begin + 8)
    block_size = int.from_bytes(file.read(2), "big")  # of all frames but the last, where frames are numbered
    at, last = begin + 4, False
    while not last:  # over the blocks of metadata
        file.seek(at)
        kind, *length = file.read(4) or b"\x80"
        at, last = at + 4 + int.from_bytes(length, "big"), bool(kind & 0x80)
    file.seek(at)
    first = file.read(4)
    file.seek(max(at, size - _BLOCK))
    tail = file.read(_BLOCK)
    at = len(tail)
    while (at := tail.rfind(first[:2], 0, at)) >= 0 and len(first) == 4:
        header = tail[at : at + 16]
        like_first = len(header) == 16 and (header[2] ^ first[2]) & 0x0F == (header[3] ^ first[3]) & 0x0E == 0
        number = _flac_frame_number(header) if like_first else -1  # rate and depth are as in the first frame
        if number >= 0:
            return number if header[1] & 1 else number * block_size
    return -1


def _flac_frame_number(header: bytes) -> int:
    """Returns the number of a frame, or of its first sample where sizes vary; -1 where the checksum is wrong."""
    ones = 8 - (header[4] ^ 0xFF).bit_length()  # as in UTF-8, the highest bits count the bytes
    end = 4 + max(1, ones) + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if ones in (1, 8) or end >= len(header) or _crc8(header[:end]) != header[end]:
        return -1
    number = header[4] & 0x7F >> ones
    for byte in header[5 : 4 + ones]:
        number = number << 6 | byte & 0x3F
    return number


def _crc8(data: bytes) -> int:
    """Returns the remainder by x^8 + x^2 + x + 1."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value << 1 & 0xFF ^ (7 if value & 0x80 else 0)
    return value


def _check_mp3(file: BinaryIO, _, sound: soundfile.SoundFile) -> str:
    """Returns what is to be said where libsndfile believes an index (`Xing` or `Info`) that counts fewer frames.

    Without an index it takes the first frame's bit rate for that of all.
    """
    count, samples, indexed = _count_mp3_frames(file)
    seconds = (count * samples - sound.frames) / sound.samplerate
    close = _MP3_DELAY * samples / sound.samplerate
    if indexed and seconds > close:
        return JOINED
    if not indexed and count and abs(seconds) > close:
        return f"a variable bit rate without an index, so that its length is not known: {CONVERT}"
    return ""


def _count_mp3_frames(file: BinaryIO) -> tuple[int, int, bool]:
    """Returns the frames, the samples of each, and whether the first one is an index."""
    at, count, samples, indexed = 0, 0, 0, False
    while at is not None:
        file.seek(at)
        header = file.read(10)
        if header.startswith(b"ID3"):
            at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=False))
        elif size := _mp3_frame_size(header):
            if not count:
                samples = 1152 if header[1] & 8 else 576
                file.seek(at)
                indexed = any(mark in file.read(size) for mark in (b"Xing", b"Info"))
            count, at = count + 1, at + size
        else:
            at = _next_mp3_frame(file, at)
    return count, samples, indexed


def _mp3_frame_size(header: bytes) -> int:
    """Returns the bytes of the layer III frame that begins so (ISO 11172-3, 2.4.1.3); 0 where none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kilobits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or rate == 3 or kilobits in (0, 15):
        return 0
    first = version == 3  # MPEG 1; else MPEG 2 or 2.5, of half and a quarter of its sample rates
    hertz = (44_100, 48_000, 32_000)[rate] >> (3 - version + 1) // 2
    return (144 if first else 72) * (_MPEG_1 if first else _MPEG_2)[kilobits] * 1000 // hertz + (header[2] >> 1 & 1)


def _next_mp3_frame(file: BinaryIO, at: int) -> int | None:
    """Returns where two frames follow each other next, within a megabyte; None where nothing more is found."""
    file.seek(at)
    block = file.read(_BLOCK)
    begin = 0
    while (begin := block.find(b"\xff", begin + 1)) >= 0:
        size = _mp3_frame_size(block[begin : begin + 4])
        if size and _mp3_frame_size(block[begin + size : begin + size + 4]):
            return at + begin
    return None


def _find(file: BinaryIO, mark: bytes, begin: int) -> int:
    """Returns where `mark` is next, -1 where it is not."""
    file.seek(begin)
    before = b""
    while block := file.read(_BLOCK):
        window = before + block
        if (at := window.find(mark)) >= 0:
            return begin - len(before) + at
        begin, before = begin + len(block), window[-len(mark) + 1 :]
    return -1


_CHECKS = {"OGG": _check_ogg, "FLAC": _check_flac, "MP3": _check_mp3}  # by libsndfile's name of the format
