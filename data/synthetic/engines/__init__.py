"""Speech synthesisers behind one interface: one file each, imported only when it is asked for."""

import functools
import importlib
import random
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

ENGINES = {  # module and class
    "espeak": ("data.synthetic.engines.espeak", "Espeak"),
    "hibari": ("data.synthetic.engines.hibari", "Hibari"),
    "nanotts": ("data.synthetic.engines.nanotts", "NanoTTS"),
    "flite": ("data.synthetic.engines.flite", "Flite"),
    "piper": ("data.synthetic.engines.piper", "Piper"),
}
FIRST_CHAPTER = {"train": 100_000, "dev": 200_000, "test": 300_000}  # and the first synthetic speaker
SHIFTS = {  # of a voice's pitch and of its frequency axis, by the sex of the voice and of the speaker that it becomes
    "FF": ((0.80, 1.35), (0.93, 1.12)), "FM": ((0.42, 0.75), (0.80, 0.95)),
    "MM": ((0.80, 1.30), (0.90, 1.08)), "MF": ((1.50, 2.10), (1.08, 1.22)),
}
PACE = (0.80, 1.25)  # of the synthesiser's own
LIVELINESS = (0.60, 1.50)  # power of the pitch's distance from its mean
RATE_STEP = 160  # Hz; rates with this factor have small tables of resampling weights


class Speaker(NamedTuple):
    """One speaker of a corpus: a voice of the synthesiser and how it is changed."""

    number: int
    split: str
    sex: str  # "F" or "M"
    voice: str
    settings: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ", ".join([self.voice, *(f"{name} {value:.3g}" for name, value in self.settings)])


class Engine(ABC):
    """A speech synthesiser. Its constructor raises DataError with the mend where it is not installed."""

    label: str  # its name in SPEAKERS.TXT

    @abstractmethod
    def list_speakers(self, split: str, wanted: int, seed: int) -> list[Speaker]:
        """Returns the speakers of a split, about `wanted` of them where the synthesiser has no list of its own."""

    @abstractmethod
    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) samples of any scale and their rate in Hz. What varies with each utterance is drawn from `rng`.

        The same arguments give the same samples, whatever was said before.
        """


class VirtualSpeakers(Engine):
    """A synthesiser of a few voices, of which shifted pitch and formants, pace and liveliness make many speakers."""

    voices: dict[str, str]  # name and sex
    moves = ("pitch", "warp", "pace", "liveliness")  # without pitch, a speaker has the voice's own sex

    def list_speakers(self, split: str, wanted: int, seed: int) -> list[Speaker]:
        """Returns `wanted` speakers, drawn from `seed`."""
        return [self._draw_speaker(split, FIRST_CHAPTER[split] + place, random.Random(f"{seed}/{split}/{place}"))
                for place in range(wanted)]

    def _draw_speaker(self, split: str, number: int, rng: random.Random) -> Speaker:
        voice = rng.choice(sorted(self.voices))
        sex = rng.choice("FM") if "pitch" in self.moves else self.voices[voice]
        pitch, warp = (rng.uniform(*span) for span in SHIFTS[self.voices[voice] + sex])
        settings = {"pitch": pitch, "warp": warp, "pace": rng.uniform(*PACE), "liveliness": rng.uniform(*LIVELINESS)}
        return Speaker(number, split, sex, voice, tuple((name, settings[name]) for name in self.moves))


def vary_settings(speaker: Speaker, rng: random.Random) -> dict[str, float]:
    """Returns a synthetic speaker's settings for one utterance: nobody says everything alike."""
    spread = {"pitch": 0.07, "warp": 0.015, "pace": 0.08, "liveliness": 0.1}
    return {name: value * rng.uniform(1 - spread[name], 1 + spread[name]) for name, value in speaker.settings}


def warped_rate(rate: int, warp: float) -> int:
    """Returns the rate in Hz at which samples of `rate` are to be taken for all frequencies to rise `warp` times."""
    return round(rate * warp / RATE_STEP) * RATE_STEP


@functools.cache
def load_engine(name: str) -> Engine:
    """Returns the synthesiser, one per process. Raises DataError with the mend where it is not installed."""
    module, engine = ENGINES[name]
    return getattr(importlib.import_module(module), engine)()
