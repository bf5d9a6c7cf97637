"""digits: 1.3 h of strings of one to seven digits by five speakers, joined from recordings of single digits.

The recordings are the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0), 8 kHz. Its own numbering splits them: 0
to 4 are test, 5 to 9 dev, 10 to 49 train. Every recording is used in several strings of its split, with pauses of 40 to
300 ms of faint noise. One of its six speakers is left out.
"""

import io
import random
from collections.abc import Iterator

import numpy as np
import soundfile

from data.prepare.source import Source
from data.prepare.writing import RawUtterance

SOURCE = Source(
    name="free-spoken-digit-dataset",
    url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.tar.gz",
    sha256="feb479fad3a37883c3d21ed7f982281c2dd1c18d5aefd7e8a5d50f58023392aa",
    files=("recordings/*.wav",),
    files_sha256="1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
)
BITRATE = "24k"  # of Opus
WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
SAMPLE_RATE = 8_000  # Hz
SPLITS = {"train": (range(10, 50), 100, 3), "dev": (range(5, 10), 200, 2), "test": (range(5), 300, 3)}
LEFT_OUT = "theo"
FIRST_SPEAKER = 8001
NOISE = 3e-4  # of full scale, standard deviation
SEED = 7


def utterances(files: Iterator[tuple[str, bytes]]) -> Iterator[RawUtterance]:
    """Yields the utterances of all splits; the strings are drawn from a fixed seed."""
    recordings = dict(files)  # 25 MB
    strings, noise = random.Random(SEED), np.random.default_rng(SEED)
    for place, name in enumerate(sorted({file.split("_")[1] for file in recordings})):
        for split, (takes, first_chapter, shuffles) in SPLITS.items():
            for chapter in range(first_chapter, first_chapter + shuffles):
                for number, digits in enumerate(_draw_strings(takes, strings)):
                    wav = _join([_read(recordings[f"{digit}_{name}_{take}.wav"]) for digit, take in digits],
                                strings, noise)  # drawn for the speaker who is left out as well
                    if name != LEFT_OUT:
                        text = " ".join(WORDS[digit] for digit, _ in digits)
                        yield RawUtterance(split, f"{FIRST_SPEAKER + place}-{chapter}-{number:04d}", text, wav)


def _draw_strings(takes: range, strings: random.Random) -> Iterator[list[tuple[int, int]]]:
    """Yields strings of digits, each with the number of its recording, until every recording is used once."""
    recordings = [(digit, take) for digit in range(10) for take in takes]
    strings.shuffle(recordings)
    while recordings:
        yield [recordings.pop() for _ in range(min(len(recordings), strings.randint(1, 7)))]


def _read(wav: bytes) -> np.ndarray:
    """Returns (S,) float32 samples, the mean of the channels."""
    samples, _ = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return samples.mean(axis=1)


def _join(recordings: list[np.ndarray], strings: random.Random, noise: np.random.Generator) -> bytes:
    """Returns a WAV file of 16 bit: the recordings, each after a pause, and a pause at the end."""
    pieces = []
    for samples in recordings:
        pause = int(SAMPLE_RATE * strings.uniform(0.04, 0.3))
        pieces += [noise.normal(0, NOISE, pause).astype(np.float32), samples]
    pieces.append(noise.normal(0, NOISE, int(SAMPLE_RATE * 0.1)).astype(np.float32))
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(pieces), SAMPLE_RATE, format="WAV")
    return file.getvalue()
