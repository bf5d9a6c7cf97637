"""Utterances of a public data set to sound files of 16 kHz and transcripts."""

import io
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import soundfile

from data.corpus_folder import write_description, write_transcripts
from data.index import DataError
from utils.audio import SAMPLE_RATE, from_samples

FORMATS = ("flac", "opus")


class RawUtterance(NamedTuple):
    """One utterance of a corpus that is being made."""

    split: str
    id: str  # SPEAKER-CHAPTER-NUMBER
    text: str  # upper case
    wav: bytes  # a WAV file of any rate and channel count


def write_corpus(utterances: Iterable[RawUtterance], folder: Path, settings: dict, bitrate: str) -> dict:
    """Writes sound files, transcripts and the description of a corpus into `folder`; returns the description.

    A sound file that an earlier, interrupted run has written is kept. Raises DataError and OSError.
    """
    chapters: dict[Path, list[tuple[str, str]]] = {}
    parts = []
    for split, name, text, wav in utterances:
        speaker, chapter, _ = name.split("-")
        path = folder / split / speaker / chapter / f"{name}.{settings['audio_format']}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            (_write_flac if path.suffix == ".flac" else _write_opus)(name, wav, part, bitrate)
            part.replace(path)
        chapters.setdefault(path.parent, []).append((name, text))
        parts.append((split, speaker, 1, soundfile.info(path).frames))
    for chapter, rows in chapters.items():
        write_transcripts(chapter, rows)
    return write_description(folder, settings, parts)


def _write_flac(name: str, wav: bytes, path: Path, _bitrate: str) -> None:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    waveform = from_samples(samples, rate, name=name).numpy()
    soundfile.write(path, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _write_opus(name: str, wav: bytes, path: Path, bitrate: str) -> None:
    command = ["ffmpeg", "-v", "error", "-y", "-i", "pipe:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-c:a", "libopus",
               "-b:a", bitrate, "-application", "voip", "-map_metadata", "-1", "-fflags", "+bitexact",
               "-f", "opus", str(path)]
    try:
        done = subprocess.run(command, input=wav, capture_output=True)
    except FileNotFoundError:
        raise DataError("--audio_format opus needs ffmpeg: apt install ffmpeg, or leave the flag out") from None
    if done.returncode:
        raise DataError(f"ffmpeg cannot encode {name}: {done.stderr.decode(errors='replace')}")
