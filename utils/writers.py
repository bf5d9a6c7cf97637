"""Transcripts to text formats."""

import json
from abc import ABC, abstractmethod
from typing import NamedTuple


class Transcript(NamedTuple):
    """What was heard in one file."""

    audio: str  # path as it was given
    text: str
    seconds: float  # duration of the audio


class Writer(ABC):
    """One output format: `extension` of its files, and a transcript as text."""

    extension: str

    @abstractmethod
    def format(self, transcript: Transcript) -> str:
        """The content of one file, without the newline at its end."""


class TxtWriter(Writer):
    """The words alone."""

    extension = "txt"

    def format(self, transcript: Transcript) -> str:
        """The text."""
        return transcript.text


class JsonWriter(Writer):
    """One JSON object a transcript."""

    extension = "json"

    def format(self, transcript: Transcript) -> str:
        """`audio`, `text` and `seconds`, on one line."""
        return json.dumps(transcript._asdict(), ensure_ascii=False)


WRITERS: dict[str, Writer] = {writer.extension: writer for writer in (TxtWriter(), JsonWriter())}
