"""Whole files of every kind, and what can be done to them: the inputs of fuzz.py."""

import io
import re
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import soundfile

SPEECH = sorted((Path(__file__).resolve().parent / "corpus").rglob("*.opus"))
SOUNDS = [  # extension, format, subtype, rate, channels
    ("wav", "WAV", "PCM_16", 16_000, 1), ("wav", "WAV", "PCM_24", 44_100, 2), ("wav", "WAV", "FLOAT", 22_050, 1),
    ("wav", "WAV", "DOUBLE", 8_000, 1), ("wav", "WAV", "PCM_U8", 8_000, 1), ("wav", "WAV", "ULAW", 8_000, 1),
    ("wav", "WAV", "GSM610", 8_000, 1), ("wav", "WAV", "IMA_ADPCM", 16_000, 2), ("wav", "WAV", "MS_ADPCM", 16_000, 1),
    ("wav", "WAV", "G721_32", 8_000, 1), ("wav", "WAVEX", "PCM_16", 16_000, 2), ("wav", "RF64", "PCM_16", 16_000, 1),
    ("flac", "FLAC", "PCM_16", 16_000, 1), ("flac", "FLAC", "PCM_24", 48_000, 2), ("flac", "FLAC", "PCM_S8", 8_000, 1),
    ("ogg", "OGG", "VORBIS", 16_000, 1), ("ogg", "OGG", "VORBIS", 44_100, 2), ("opus", "OGG", "OPUS", 16_000, 1),
    ("opus", "OGG", "OPUS", 48_000, 2), ("mp3", "MP3", "MPEG_LAYER_III", 16_000, 1),
    ("mp3", "MP3", "MPEG_LAYER_III", 44_100, 2), ("wav", "AIFF", "PCM_16", 16_000, 1),
    ("wav", "AU", "PCM_16", 16_000, 1),
    ("wav", "CAF", "PCM_16", 16_000, 1), ("wav", "CAF", "ALAC_16", 16_000, 1), ("wav", "W64", "PCM_16", 16_000, 1)]
MANIFEST = """\
{"audio": "clips/a.wav", "text": "hello there", "speaker": "anna", "id": 7, "duration": 1.5}
{"audio": "/data/b.flac", "text": "it's \\u00fcber", "speaker": null, "id": null}
{"text": "no audio"}
{"audio": "../c d.opus", "text": "he did not", "more": {"a": [1, 2, {"b": [true, false, -1e9]}]}}

"""
YAML = """\
# python train.py --config configs/x.yaml
model: deepspeech2
rnn_type: mingru
epochs: 7
learning_rate: 3e-4
bidirectional: false
speed_perturb: [0.9, 1.0, 1.1]
train_sets:
  - train-clean-100
  - "clips/a.jsonl"
output_dir: runs/x
checkpoint_every: 10m
alphabet: " 'abc"
"""
ARPA = """
\\data\\
ngram 1=6
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.4\tsea\t-0.3
-0.6\tsee\t-0.2
-0.7\tthe\t-0.1

\\2-grams:
-0.1\t<s> see\t-0.1
-0.2\tsee the\t-0.05
-0.3\tthe sea\t-0.01
-0.4\tsea </s>

\\3-grams:
-0.1\t<s> see the
-0.2\tsee the sea

\\end\\
"""
TOKENS = {  # that stand where a format's own words stand
    "manifest": ['"audio"', '"text"', '"id"', "null", "NaN", "1e999", "9" * 5000, "{", "}", "[" * 2000, '"\\ud800"',
                 '"\\u0000"', '"/dev/zero"', '"/dev/stdin"', '"http://a/b.wav"', '"."', '""', '"a\\nb"', '"\\u001b[2J"',
                 "\ufeff", "\u2028", "\r", "true", "-0", '"' + "x" * 5000 + '"', "Infinity", '{"id": [[[{}]]]}'],
    "yaml": ["&a", "*a", "<<: *a", "? ", "!!binary", "!!python/object/apply:os.system", "!!set", "!!omap",
             "!!timestamp", "2001-13-45", "2001-02-30", "1:99:99", "0x", "0b2", "0o9", "9" * 5000, "1e999",
             ".nan", ".inf", "-.inf",
             "null", "~", "[" * 500, "{" * 500, "- " * 500, "|", ">", "---", "...", "%YAML 9.9", "%TAG ! tag:a,2000:",
             '"\\ud800"', '"\\0"', '"\\x1b"', "'", '"', "config: x", "help: true", "model: las", "\t", "= ", "-", "--x",
             "!!float abc", "!!int abc", "!!bool 7", "!!null x", "!!str", "!!map", "!!seq", "!!pairs [a]",
             "1_000", "_"],
    "arpa": ["ngram 1=5", "ngram 2=999999999", "ngram 1=999999999999999", "ngram 3=0", "ngram 4=1", "ngram 0=1",
             "\\end\\", "\\1-grams:", "\\2-grams:", "\\3-grams:", "\\data\\", "<s>", "</s>", "<unk>", "<UNK>",
             "nan", "inf",
             "-inf", "1e999", "-1e-999", "0", "5", "-0", "\t", "\t\t", "\n\n", " ", "\r", "\0", "sea", "see", "\xff",
             "\u2028",
             "x" * 5000, "1 " * 50, "-99", "0x1p9", "\\", "\x0b", "\x0c"],
}
NUMBERS = [0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
           0x7FFF_F000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF]


def mutate(content: bytes, random: Random, tokens: list[str], other: bytes) -> bytes:
    """`content` with one to eight changes; one in a hundred stays whole."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 3, 8]) if random.random() > 0.01 else 0):
        end = len(data) if random.random() < 0.5 else min(len(data), 120)  # headers are where the harm is
        at = random.randrange(end + 1) if data else 0
        change = random.randrange(9 if tokens else 8)
        size = random.choice([1, 2, 4, 16, 200])
        if change == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif change == 1 and at < len(data):
            data[at] = random.randrange(256)
        elif change < 2:
            data.append(at & 255)
        elif change == 2:
            del data[at : at + size]
        elif change == 3:
            data[at:at] = data[at : at + size] * random.choice([1, 2, 50])
        elif change == 4:
            del data[at:]
        elif change == 5:
            data[at:at] = random.randbytes(size)
        elif change == 6:
            start = random.randrange(len(other) + 1)
            data[at : at + size] = other[start : start + size]
        elif change == 7:
            order, width = random.choice("<>"), random.choice("BHIQ")
            number = random.choice(NUMBERS) & (1 << 8 * struct.calcsize(width)) - 1
            data[at : at + struct.calcsize(width)] = struct.pack(f"{order}{width}", number)
        else:
            words = [i for i in range(len(data) + 1) if i in (0, len(data)) or data[i] in b" \t\n:,[]{}\""]
            at = random.choice(words)
            after = next((i for i in words if i > at), at)
            data[at : random.choice([at, after])] = random.choice(tokens).encode("utf-8", "surrogatepass")
    return bytes(data)


def ogg_checksums(data: bytes, serial: bytes | None = None) -> bytes:
    """The pages of an Ogg file with the checksums (RFC 3533, section 6) that they must have to be looked at.

    And with another serial number of the stream.
    """
    data, at = bytearray(data), 0
    while (at := data.find(b"OggS", at)) >= 0 and len(data) >= at + 27:
        size = 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        data[at + 14 : at + 18] = serial or data[at + 14 : at + 18]
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = struct.pack("<I", _crc(data[at : at + size]))
        at += 4
    return bytes(data)


def _crc(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF_FFFF) ^ _CRC[crc >> 24 ^ byte]
    return crc


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = value << 1 & 0xFFFF_FFFF ^ (0x04C1_1DB7 if value >> 31 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def rewrite_archive(content: bytes, change=lambda pickled: pickled) -> bytes:
    """What torch.save wrote, the same always (its `serialization_id` is another each time), its pickle changed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            if not name.endswith("serialization_id"):
                data = old.read(name)
                new.writestr(zipfile.ZipInfo(name), change(data) if name.endswith(".pkl") else data)
    return packed.getvalue()


def arpa_counts(data: bytes) -> bytes:
    """An ARPA file whose header states the n-grams that are there, without which nobody looks at them."""
    parts = re.split(rb"(?m)^(?=\\\d-grams:)", data)
    for order, part in enumerate(parts[1:], start=1):
        count = sum(bool(line.strip()) and not line.startswith(b"\\") for line in part.split(b"\n"))
        parts[0] = re.sub(rb"ngram %d=\d*" % order, b"ngram %d=%d" % (order, count), parts[0])
    return b"".join(parts)


def sounds() -> list[tuple[str, bytes]]:
    """Half a second of a real voice in every format."""
    from utils.audio import load_audio, resample

    speech, files = load_audio(SPEECH[0])[4_000:12_000], []
    for extension, form, subtype, rate, channels in SOUNDS:
        samples = np.repeat(resample(speech, 16_000, rate).numpy()[:, None], channels, axis=1)
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        files.append((f"x.{extension}", _same_always(file.getvalue())))
    return files


def _same_always(data: bytes) -> bytes:
    """Without what libsndfile draws or takes from the clock: Ogg's serial number, and the time in a PEAK chunk."""
    if data.startswith(b"OggS"):
        return ogg_checksums(data, b"same")
    peak = data.find(b"PEAK")
    return data if peak < 0 else data[: peak + 12] + bytes(4) + data[peak + 16 :]
