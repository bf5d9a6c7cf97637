"""wuw: 2 h of sentences from 297 telephone calls by about 240 speakers in the United States, one in five not a native.

The recordings are the second wake-up-word corpus (Kepuska et al., CC BY-SA 4.0, https://github.com/wake-up-word), 8 kHz
in mu-law. Speakers were asked to say one of five words, and then to use it in a sentence of their own: the sentences
are taken, transcribed by hand, and neither names nor single words. All are for training.
"""

import io
import json
import re
from collections.abc import Iterator

import soundfile

from data.prepare.source import Source
from data.prepare.writing import RawUtterance

SOURCE = Source(
    name="wuw-corpus-ii",
    url="https://github.com/wake-up-word/wuw-corpus-ii (commit edd16fe0e8c861daef05e6778016764e20b3d628)",
    sha256=None,
    files=("calls/*/*.ulaw", "data.json"),
    files_sha256="7b60de6dd2c801958bf8d9001260c4c4892578aad9d4c6e56082f61568f76299",
)
BITRATE = "24k"  # of Opus
SAMPLE_RATE = 8_000  # Hz
FIRST_SPEAKER = 720_000
NAMES = "000"  # the utterance of each call in which the speaker says his or her name
SHORTEST = 1_000  # bytes: an eighth of a second; some recordings are empty
FEWEST_WORDS = 3  # of a sentence
NOISES = re.compile(r"[\[{][^\]}]*[\]}]|<[^>]*>")  # [static], {breath}, and such as end in the other bracket
UNSURE = re.compile(r"\(\(|[*+~=\d]|-(\s|$)|(^|\s)-")  # what the transcriber guessed, coined or cut-off words, figures


def utterances(files: Iterator[tuple[str, bytes]]) -> Iterator[RawUtterance]:
    """Yields the sentences of all calls."""
    recordings = dict(files)  # 110 MB
    for number, entry in enumerate(json.loads(recordings["data.json"])["entries"]):
        recording, text = recordings.get(entry["fileName"], b""), normalize_transcription(entry["transcription"])
        if entry["utteranceNumber"] != NAMES and text and len(recording) >= SHORTEST:
            speaker = FIRST_SPEAKER + int(entry["sessionNumber"])
            yield RawUtterance("train", f"{speaker}-1-{number:04d}", text, to_wav(recording))


def normalize_transcription(text: str) -> str:
    """Returns a sentence in LibriSpeech's form; nothing for what is unsure, cut off or not a sentence."""
    text = NOISES.sub(" ", text)
    if UNSURE.search(text):
        return ""
    text = text.upper().replace("’", "'").replace("THINKENGINE", "THINK ENGINE")  # the name of a firm
    words = re.sub(r"[^A-Z' ]", " ", text).split()
    return " ".join(words) if len(words) >= FEWEST_WORDS else ""


def to_wav(recording: bytes) -> bytes:
    """Returns a WAV file of 16 bit of samples in mu-law."""
    samples, rate = soundfile.read(io.BytesIO(recording), dtype="int16", format="RAW", subtype="ULAW",
                                   samplerate=SAMPLE_RATE, channels=1)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
