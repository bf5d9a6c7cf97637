"""Output formats of transcripts."""

import json
from abc import ABC, abstractmethod

from utils.errors import printable
from utils.types import Transcript, Word

LINE = 42  # most characters in a line of a subtitle, as broadcasters have it
CUE_SECONDS = 6.0  # duration of the longest subtitle
CUE_PAUSE = 1.0  # seconds of silence that end a subtitle


class Writer(ABC):
    """An output format."""

    extension: str  # of its files
    header = ""  # of a file, or of standard output, before the first transcript

    @abstractmethod
    def format(self, transcript: Transcript) -> str:
        """Returns the transcript as text, without a newline at its end."""


class TxtWriter(Writer):
    """Plain text; several candidates get one line each, with their scores."""

    extension = "txt"

    def format(self, transcript: Transcript) -> str:
        """Returns the text, or one line per candidate."""
        if len(transcript.candidates) < 2:
            return transcript.text
        return "\n".join(f"{candidate.score:.3f}\t{candidate.text}" for candidate in transcript.candidates)


class JsonWriter(Writer):
    """One line per transcript, a JSON object."""

    extension = "json"

    def format(self, transcript: Transcript) -> str:
        """Returns `audio`, `text`, `seconds`, `words` and `candidates`, on one line."""
        fields = transcript._asdict()
        for name in ("words", "candidates"):
            fields[name] = [item._asdict() for item in fields[name]]
        return json.dumps(fields, ensure_ascii=False)


class SrtWriter(Writer):
    """SubRip subtitles."""

    extension = "srt"

    def format(self, transcript: Transcript) -> str:
        """Returns numbered cues with an empty line between them."""
        return "\n\n".join(f"{i}\n{timestamp(cue[0].start, ',')} --> {timestamp(cue[-1].end, ',')}\n{cue_text(cue)}"
                           for i, cue in enumerate(cues(transcript.words), start=1))


class VttWriter(Writer):
    """WebVTT subtitles (W3C)."""

    extension = "vtt"
    header = "WEBVTT\n\n"

    def format(self, transcript: Transcript) -> str:
        """Returns cues with an empty line between them."""
        return "\n\n".join(f"{timestamp(cue[0].start, '.')} --> {timestamp(cue[-1].end, '.')}\n{cue_text(cue)}"
                           for cue in cues(transcript.words))


class TsvWriter(Writer):
    """Tab-separated table: one line per word, with its times and confidence."""

    extension = "tsv"
    header = "audio\tstart\tend\tconfidence\tword\n"

    def format(self, transcript: Transcript) -> str:
        """Returns the lines of the words; times are in seconds."""
        audio = printable(transcript.audio)  # a tab in it would be one column more
        return "\n".join(f"{audio}\t{word.start:.3f}\t{word.end:.3f}\t{word.confidence:.4f}\t{word.word}"
                         for word in transcript.words)


def cues(words: list[Word]) -> list[list[Word]]:
    """Divides words into subtitles of at most CUE_SECONDS and two LINEs, which end at pauses."""
    divided: list[list[Word]] = []
    for word in words:
        cue = divided[-1] if divided else []
        if (not cue or word.end - cue[0].start > CUE_SECONDS or word.start - cue[-1].end > CUE_PAUSE
                or sum(len(one.word) + 1 for one in cue) + len(word.word) > 2 * LINE):
            divided.append([])
        divided[-1].append(word)
    return divided


def cue_text(cue: list[Word]) -> str:
    """Returns the text of a subtitle, on two lines where one would be too long."""
    text = " ".join(word.word for word in cue)
    if len(text) <= LINE:
        return text
    breaks = [i for i, char in enumerate(text) if char == " "]
    middle = min(breaks, key=lambda i: abs(i - len(text) / 2), default=None)
    return text if middle is None else f"{text[:middle]}\n{text[middle + 1:]}"


def timestamp(seconds: float, point: str) -> str:
    """Returns HH:MM:SS and milliseconds after `point`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


WRITERS: dict[str, Writer] = {
    writer.extension: writer for writer in (TxtWriter(), JsonWriter(), SrtWriter(), VttWriter(), TsvWriter())}
