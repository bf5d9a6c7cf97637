"""read-digits: numbers of up to ten digits, read digit by digit by 57 people, most of them from India.

The recordings are the numbers of an alphanumeric audio dataset (MIT, https://github.com/Sakshee5), made with
telephones and laptops. Those for which a recogniser gives other digits than the prompt's are left out. All are for
training: they hold none of the voices of `digits`.
"""

import csv
import io
from collections.abc import Iterator

from data.prepare.digits import WORDS
from data.prepare.source import Source
from data.prepare.writing import RawUtterance

SOURCE = Source(
    name="alphanumeric-audio-dataset",
    url="https://github.com/Sakshee5/alphanumeric-audio-dataset (commit 6c9a38ed7e590a45410fdc33a548005a30f03552)",
    sha256=None,
    files=("audio_data/Numbers/*.wav", "metadata.csv"),
    files_sha256="47ecfe5ab1eec01a934f1d2d28e8a80c68f9336f8b357d135157c14db9d4a980",
)
BITRATE = "24k"  # of Opus
FIRST_SPEAKER = 730_000
MISREAD = frozenset("""
    R_14L9qNxUlipFmsF R_1bhWwiBjHlA1GcF R_34Kh357EGklz2X7 R_3f5pnhlvLlxkfu1 R_3gToFAf4MoM9dl8
    R_4JsyJD7ticKbRiZ R_4M4K1OEOS6Dy9xr R_4QJpbtn4T8z4ixS R_4gezxpDDRaPXKIs R_4s7PwXExwuw1cZa
    R_4shv1y28wS6SaPv R_4ssmicMjtQagK7v R_5jebEVEgcwRTOcO
""".split())  # a recogniser gives other digits for these than the prompt's


def utterances(files: Iterator[tuple[str, bytes]]) -> Iterator[RawUtterance]:
    """Yields one number of each speaker."""
    recordings = dict(files)  # 20 MB
    rows = csv.DictReader(io.StringIO(recordings["metadata.csv"].decode()))
    numbers = {row["Response_ID"]: row["Number"] for row in rows}
    for place, (name, number) in enumerate(sorted(numbers.items())):
        if name not in MISREAD and (recording := recordings.get(f"{name}.wav")):
            text = " ".join(WORDS[int(digit)] for digit in number if digit.isdecimal())
            yield RawUtterance("train", f"{FIRST_SPEAKER + place}-1-0000", text, recording)
