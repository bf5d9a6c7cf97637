"""Flite (Debian and Ubuntu: apt install flite; BSD-like licence): four voices, about 70 times real time on one core."""

import io
import random
import shutil
import subprocess

import numpy as np
import soundfile

from data.index import DataError
from data.synthetic.engines import Speaker, VirtualSpeakers, vary_settings, warped_rate


class Flite(VirtualSpeakers):
    """Virtual speakers: resampling moves pitch and formants together."""

    label = "Flite"
    voices = {"slt": "F", "rms": "M", "awb": "M", "kal16": "M"}
    moves = ("warp", "pace")

    def __init__(self):
        if not shutil.which("flite"):
            raise DataError("flite is not installed: apt install flite")

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) float32 samples and their rate."""
        settings = vary_settings(speaker, rng)
        stretch = settings["warp"] / settings["pace"]
        command = ["flite", "-voice", speaker.voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text, "-o",
                   "/dev/stdout"]
        done = subprocess.run(command, capture_output=True)
        if done.returncode or not done.stdout:
            raise DataError(f"flite cannot say {text!r}: {done.stderr.decode(errors='replace')}")
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        return samples, warped_rate(rate, settings["warp"])
