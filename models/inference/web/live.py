"""Text while visitors speak: a stream per microphone, which the browser sends chunk by chunk.

Gradio's own streaming keeps only the newest chunk where the server is slower than the microphone; these chunks wait
in the browser instead (live.js), and no word is lost.
"""

import base64
from statistics import median
from threading import Lock
from time import monotonic

import numpy as np

from models.inference.streaming import StreamingRecognizer
from models.inference.web.systems import Limits
from models.recognizer import Recognizer
from utils.audio import from_array
from utils.errors import UsageError
from utils.files.sound import RATES
from utils.wav import StreamResampler

IDLE_SECONDS = 20  # after which a stream that sends nothing is given up
LARGEST_CHUNK = 4 << 20  # characters, 15 s at 96 kHz
LONGEST_NAME = 64  # characters


class LiveText:
    """The text of one stream, and how far it is behind the microphone.

    Args:
        network: one that can stream.
        rate: of the microphone, Hz.
    """

    def __init__(self, network: Recognizer, rate: int):
        self.recognizer, self.resampler, self.rate = StreamingRecognizer(network), StreamResampler(rate), rate
        self.text, self.fed, self.began, self.delays, self.used = "", 0, float("inf"), [], monotonic()

    @property
    def seconds(self) -> float:
        """Returns the seconds of sound so far."""
        return self.fed / self.rate

    @property
    def delay(self) -> float:
        """Returns the median of the seconds from a sound to the moment at which its text is there."""
        return median(self.delays or [0.0])

    def feed(self, samples: np.ndarray, last: bool = False) -> None:
        """Goes on with (S,) more samples; nothing can be fed after the last ones. Raises AudioError."""
        self.used = monotonic()
        self.fed += len(samples)
        self.began = min(self.began, self.used - self.seconds)  # no chunk arrives before its end was spoken
        if len(samples):
            self.text += self.recognizer.feed(self.resampler.feed(from_array(samples)))
            self.delays.append(monotonic() - self.began - self.recognizer.seconds)
        if last:
            self.text += self.recognizer.feed(self.resampler.finish()) + self.recognizer.finish()


class Streams:
    """The streams of all visitors, of which one at a time uses the network.

    Args:
        network: one that can stream.
        limits: of their number and their length.
    """

    def __init__(self, network: Recognizer, limits: Limits):
        self.network, self.limits, self.open, self.lock = network, limits, {}, Lock()

    def feed(self, name: str, rate: int, samples: str, last: bool) -> LiveText:
        """Goes on with a stream, or begins it.

        Args:
            name: of the stream, which the browser chose.
            rate: of its microphone, Hz.
            samples: 16-bit integers in base64.
            last: whether the stream ends with them.

        Raises UsageError where a limit is reached or an argument is none of these.
        """
        if not (isinstance(name, str) and len(name) <= LONGEST_NAME and isinstance(rate, int) and rate in RATES):
            raise UsageError("this is not a stream of a microphone")
        decoded = decode_samples(samples)
        with self.lock:
            live = self.open.get(name) or self._begin(name, rate)
            last = last or live.seconds + len(decoded) / rate > self.limits.stream_seconds
            live.feed(decoded, last)
            if last:
                del self.open[name]
        return live

    def _begin(self, name: str, rate: int) -> LiveText:
        """Opens a stream, once those that were given up are closed. Raises UsageError."""
        self.open = {one: live for one, live in self.open.items() if monotonic() - live.used < IDLE_SECONDS}
        if len(self.open) >= self.limits.max_streams:
            raise UsageError(f"{len(self.open)} visitors are speaking already: try again in a minute")
        self.open[name] = LiveText(self.network, rate)
        return self.open[name]


def decode_samples(text: str) -> np.ndarray:
    """Returns (S,) int16 samples. Raises UsageError."""
    try:
        if len(text) > LARGEST_CHUNK:
            raise ValueError
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<i2")
    except (ValueError, TypeError):
        raise UsageError("this is not a chunk of 16-bit samples") from None
