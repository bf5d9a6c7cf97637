"""SVOX Pico (PyPI py-nanotts, Apache-2.0): an American and a British voice, about 70 times real time on one core."""

import random
import subprocess
import sys

import numpy as np

from data.index import DataError
from data.synthetic.engines import Speaker, VirtualSpeakers, vary_settings, warped_rate

SAMPLE_RATE = 16_000  # Hz
# A process of its own: a second utterance in the same process depends on the one before it.
PROGRAM = """
import sys
from py_nanotts import NanoTTS
text, voice, speed, pitch = sys.argv[1:]
sys.stdout.buffer.write(NanoTTS().speak(text, voice=voice, speed=float(speed), pitch=float(pitch), volume=0.3))
"""


class NanoTTS(VirtualSpeakers):
    """Virtual speakers: the library moves the pitch, and resampling moves pitch and formants together."""

    label = "SVOX Pico"
    voices = {"en-US": "F", "en-GB": "F"}
    moves = ("pitch", "warp", "pace")

    def __init__(self):
        try:
            import py_nanotts  # noqa: F401
        except ImportError:
            raise DataError("SVOX Pico is not installed: pip install py-nanotts") from None

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) int16 samples and their rate."""
        settings = vary_settings(speaker, rng)
        speed, pitch = settings["pace"] / settings["warp"], settings["pitch"] / settings["warp"]
        command = [sys.executable, "-c", PROGRAM, text, speaker.voice, f"{speed:.3f}", f"{pitch:.3f}"]
        done = subprocess.run(command, capture_output=True)
        if done.returncode or not done.stdout:
            raise DataError(f"SVOX Pico cannot say {text!r}: {done.stderr.decode(errors='replace')}")
        return np.frombuffer(done.stdout, np.int16), warped_rate(SAMPLE_RATE, settings["warp"])
