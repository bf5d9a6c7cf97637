"""The networks. A new one is one file with a subclass of `Recognizer`, its import here, and a config."""

from models.conformer import Conformer
from models.deepspeech2 import DeepSpeech2
from models.inference.onnx import OnnxRecognizer
from models.inference.onnx_las import OnnxLAS
from models.inference.transcriber import Transcriber
from models.las import LAS
from models.recognizer import Recognizer

__all__ = ["LAS", "Conformer", "DeepSpeech2", "OnnxLAS", "OnnxRecognizer", "Recognizer", "Transcriber"]
