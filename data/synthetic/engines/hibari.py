"""hibari (PyPI hibari-tts, Apache-2.0): one natural American voice, about 130 times real time on one core.

Its network gives five spectra of 601 bins per frame of 12.5 ms, and the pitch; hibari's own signal processing makes the
wave of them. Between the two, pitch and formants are shifted apart, which makes speakers of all sizes of one voice.
"""

import random

import numpy as np

from data.index import DataError
from data.synthetic.engines import Speaker, VirtualSpeakers, vary_settings

VOICED = 40.0  # Hz; below, hibari means no pitch
LOWEST_PITCH = 55.0  # Hz


class Hibari(VirtualSpeakers):
    """Virtual speakers from hibari's only voice that comes with the package."""

    label = "hibari"
    voices = {"heart": "F"}

    def __init__(self):
        try:
            import hibari
            import scipy.fft  # noqa: F401 (without it hibari is slower and gives other bits)
        except ImportError:
            raise DataError("hibari is not installed: pip install -r requirements-demo.txt") from None
        self.tts = hibari.Hibari(voice="heart", threads=1)

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, int]:
        """Returns (S,) float32 samples at 24 kHz."""
        settings, noise = vary_settings(speaker, rng), np.random.default_rng(rng.getrandbits(64))
        pieces = [self._synthesize(phonemes, settings, noise) for phonemes in self.tts.phonemize(text)]
        if not pieces:
            raise DataError(f"hibari had nothing to say for {text!r}")
        return np.concatenate(pieces), self.tts.sample_rate

    def _synthesize(self, phonemes: str, settings: dict[str, float], noise: np.random.Generator) -> np.ndarray:
        from hibari import dsp

        feeds = {"ids": np.asarray([self.tts.ids(phonemes)], np.int64),
                 "speed": np.asarray([settings["pace"]], np.float32)}
        *spectra, phase, pitch = (output[0] for output in self.tts.sess.run(None, feeds))  # (601, T) each; pitch (T,)
        low, high, share = _warped_bins(len(phase), settings["warp"])
        spectra = [spectrum[low] + share * (spectrum[high] - spectrum[low]) for spectrum in spectra]
        nearest = np.where(share[:, 0] < 0.5, low, high)  # angles have no mean
        return dsp.synth(*spectra, phase[nearest], shift_pitch(pitch, settings), noise)


def shift_pitch(pitch: np.ndarray, settings: dict[str, float]) -> np.ndarray:
    """Returns (T,) Hz: where voiced, the mean times `pitch`, and the distance from it to the power of `liveliness`."""
    voiced = pitch > VOICED
    if not voiced.any():
        return pitch
    mean = np.exp(np.log(pitch[voiced]).mean())
    moved = mean * settings["pitch"] * (np.maximum(pitch, VOICED) / mean) ** settings["liveliness"]
    return np.where(voiced, np.maximum(moved, LOWEST_PITCH), pitch).astype(np.float32)


def _warped_bins(bins: int, warp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each bin the two bins between which it lies before warping, and the higher one's share, (bins, 1)."""
    places = np.minimum(np.arange(bins) / warp, bins - 1)
    low = places.astype(int)
    return low, np.minimum(low + 1, bins - 1), (places - low)[:, None].astype(np.float32)
