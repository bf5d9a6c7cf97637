"""kathleen: 1.3 h of CMU ARCTIC's sentences, read by one woman (rhasspy's dataset-voice-kathleen, CC0).

A prompt's hash names its split, so that all readings of a sentence are in one; 7 % of the prompts are in none.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator

from data.prepare.source import Source, group_by_stem
from data.prepare.writing import RawUtterance

COMMIT = "c51cb971036a127359b43c621f26ca5081eab13e"
SOURCE = Source(
    name="dataset-voice-kathleen",
    url=f"https://github.com/rhasspy/dataset-voice-kathleen/archive/{COMMIT}.tar.gz",
    sha256="977f9f86ff79c37404f4726cb015a920fdf3ed64dbd82e6590b82f3084dabc85",
    files=("data/*.txt", "data/*.wav"),
    files_sha256="243f6a940374057a41eb01f96d3e623453bf4339fe0532e5dcd249832ce2648f",
)
BITRATE = "32k"  # of Opus
SPEAKER = "9001"
PROMPTS_PER_CHAPTER = 100
SHARES = {"train": 78, "dev": 85, "test": 93}  # per cent of the prompts, from the split before up to this one


def utterances(files: Iterator[tuple[str, bytes]]) -> Iterator[RawUtterance]:
    """Yields the utterances of all splits. A file is named PROMPT_TIME; a prompt may have been read several times."""
    by_prompt = itertools.groupby(group_by_stem(files), key=lambda reading: reading[0].rpartition("_")[0])
    for number, (prompt, readings) in enumerate(by_prompt):
        split = _find_split(prompt)
        for take, (_, reading) in enumerate(readings):
            if split:
                chapter = 1 + number // PROMPTS_PER_CHAPTER
                text = normalize_prompt(reading[".txt"].decode())
                yield RawUtterance(split, f"{SPEAKER}-{chapter}-{number:04d}{take}", text, reading[".wav"])


def normalize_prompt(text: str) -> str:
    """Returns a prompt in LibriSpeech's form: upper case, no punctuation but apostrophes."""
    text = text.upper().replace("’", "'").replace("-", " ").replace("ETC.", "ET CETERA")
    return " ".join(re.sub(r"[^A-Z' ]", " ", text).split())


def _find_split(prompt: str) -> str | None:
    share = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 100
    return next((split for split, end in SHARES.items() if share < end), None)
