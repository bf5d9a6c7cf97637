"""eSpeak NG (formant synthesis, 800 times real time): accents and voice variants, of which each split has its own.

It is GPL software: only this module uses it, and only inside the functions that speak.
"""

import itertools
import os
import random

import numpy as np

from data.index import DataError
from data.synthetic.engines import Engine, Speaker

SAMPLE_RATE = 22_050  # Hz
WORDS_PER_MINUTE = (105, 160)  # slow enough that 40 ms frames outnumber the letters, as CTC needs
VOLUME = 40  # never clips

# By file: the names that eSpeak gives its accents ("en-gb") are not all found by every build.
ACCENTS = "en-US en-US-nyc en en-GB-x-rp en-GB-x-gbclan en-GB-x-gbcwmd en-GB-scotland en-029".split()
# Variants that sound like people. Left out: whispers, robots, those that overload or break the timing.
VARIANTS = {
    "train": "m1 m2 m3 m5 m7 Alex Denis Gene Mario Michael Mike quincy f2 f4 f5 Annie aunty belinda linda",
    "dev": "m4 max f3",
    "test": "m6 robert f1",
}
FEMALE = "f1 f2 f3 f4 f5 Annie aunty belinda linda".split()


class Espeak(Engine):
    """A speaker is an accent, a variant and a base pitch, the same in every corpus, whatever its seed."""

    label = "eSpeak NG"

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            raise DataError("eSpeak NG is not installed: pip install -r requirements-demo.txt") from None
        self.library_path, self.voices = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()

    def list_speakers(self, split: str, wanted: int, seed: int) -> list[Speaker]:
        """Returns the split's speakers, all of them; those of all splits are numbered from 1001."""
        speakers = []
        for owner, variants in VARIANTS.items():
            for accent, variant in itertools.product(ACCENTS, variants.split()):
                voice, sex = f"{accent}+{variant}", "F" if variant in FEMALE else "M"
                pitch = random.Random(voice).randint(35, 65)
                speakers.append(Speaker(1001 + len(speakers), owner, sex, voice, (("pitch", pitch),)))
        return [speaker for speaker in speakers if speaker.split == split]

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) int16 samples at 22,050 Hz. Raises DataError where eSpeak refuses."""
        rate, pitch = rng.randint(*WORDS_PER_MINUTE), dict(speaker.settings)["pitch"] + rng.randint(-6, 6)
        liveliness, seed = rng.randint(35, 70), rng.getrandbits(31)
        samples = self._run(text, speaker.voice, seed, {1: rate, 2: VOLUME, 3: pitch, 4: liveliness})
        if not len(samples):
            raise DataError(f"eSpeak NG had nothing to say for {text!r} as {speaker.voice}")
        return samples, SAMPLE_RATE

    def _run(self, text: str, voice: str, seed: int, parameters: dict[int, int]) -> np.ndarray:
        import ctypes

        pieces = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def receive(samples, count, _events):
            if samples and count > 0:
                pieces.append(ctypes.string_at(samples, 2 * count))
            return 0  # go on

        library = ctypes.CDLL(self.library_path)
        try:
            self._set_up(library, receive, voice)
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
            for parameter, value in parameters.items():
                library.espeak_SetParameter(parameter, value, 0)
            words = text.encode()
            failed = library.espeak_Synth(words, ctypes.c_size_t(len(words) + 1), 0, 0, 0, 1, None, None)
            library.espeak_Terminate()
        finally:
            _unload(library)
        return np.frombuffer(b"" if failed else b"".join(pieces), np.int16)

    def _set_up(self, library, receive, voice: str) -> None:
        """Starts eSpeak without threads (mode 2), unable to end the process (0x8000), speaking into `receive`."""
        if library.espeak_Initialize(2, 0, self.voices.encode(), 0x8000) != SAMPLE_RATE:
            raise DataError(f"eSpeak NG did not start with {self.voices}: reinstall espeakng-loader")
        library.espeak_SetSynthCallback(receive)
        if library.espeak_SetVoiceByName(f"gmw/{voice}".encode()):
            raise DataError(f"eSpeak NG has no voice {voice}: pip install -r requirements-demo.txt")


def _unload(library) -> None:
    """Unloads the library. Its oscillators run on through every reset that it offers, so that an utterance
    would depend on those before it; loaded anew (0.2 ms) it says the same for the same arguments."""
    import _ctypes

    (_ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose)(library._handle)
