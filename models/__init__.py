"""The recognisers. A new one is one file with a `Recognizer` subclass, imported here, and a config."""

from models.deepspeech2 import DeepSpeech2
from models.inference.transcriber import Transcriber
from models.las import LAS
from models.recognizer import Recognizer

__all__ = ["LAS", "DeepSpeech2", "Recognizer", "Transcriber"]
