"""Ogg, FLAC and MP3: whether a file goes on after what libsndfile takes for its end."""

from typing import BinaryIO

import soundfile

TRUNCATED = "truncated: it ends before its header says"
CONVERT = "convert it, by ffmpeg for example"
JOINED = f"several recordings one after the other, of which only the first would be read: {CONVERT}"
_BLOCK = 1 << 20  # bytes
_MPEG_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s of layer III
_MPEG_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_SAMPLES = 1152  # of a frame, at most
_MP3_DELAY = 4  # MP3 frames that encoders add and decoders take away


def missing_allowed(sound: soundfile.SoundFile) -> int:
    """Returns how many of the samples that libsndfile states may be missing at the end of a file that is whole.

    libsndfile estimates the length of an MP3 without an index from the size of the file, tags included.
    """
    return _MP3_DELAY * _MP3_SAMPLES if sound.format == "MP3" else 0


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


def _check_mp3(file: BinaryIO, size: int, sound: soundfile.SoundFile) -> str:
    """Returns what is to be said of a cut, or where libsndfile believes an index (`Xing`, `Info`) of fewer frames.

    Without an index it takes the first frame's bit rate for that of all, and tags for sound.
    """
    count, samples, indexed, end = _count_mp3_frames(file)
    seconds = (count * samples - sound.frames) / sound.samplerate
    close = _MP3_DELAY * samples / sound.samplerate
    if end > size or indexed and seconds < -close:
        return TRUNCATED
    if indexed and seconds > close:
        return JOINED
    if not indexed and count and abs(seconds) > close:
        return f"a variable bit rate or long tags without an index, so that its length is not known: {CONVERT}"
    return ""


def _count_mp3_frames(file: BinaryIO) -> tuple[int, int, bool, int]:
    """Returns the frames, the samples of each, whether the first one is an index, and where the last one ends."""
    at, count, samples, indexed, end = 0, 0, 0, False, 0
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
            end = at
        else:
            at = _next_mp3_frame(file, at)
    return count, samples, indexed, end


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


CHECKS = {"OGG": _check_ogg, "FLAC": _check_flac, "MP3": _check_mp3}  # by libsndfile's name of the format
