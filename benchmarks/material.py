"""What benchmarks work on, made from what the repository holds: real recordings, texts, untrained networks."""

from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
import torch

from models import Recognizer
from utils.audio import EXTENSIONS, SAMPLE_RATE, load_audio

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "corpus"


def sound_files(folder: Path) -> list[Path]:
    """Every recording under `folder`, in one order. Raises FileNotFoundError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise FileNotFoundError(f"--corpus {folder}: no {', '.join(EXTENSIONS)} under it")
    return found


def write_joined(folder: Path, seconds: list[float], corpus: Path = CORPUS, suffix: str = ".flac") -> list[Path]:
    """Files of real speech of the given durations: the recordings of `corpus` one after the other, 16 kHz, 16 bit."""
    recordings = cycle([load_audio(path).numpy() for path in sound_files(corpus)])
    paths, left = [], np.empty(0, dtype=np.float32)
    for i, duration in enumerate(seconds):
        size, parts = round(duration * SAMPLE_RATE), [left]
        while sum(map(len, parts)) < size:
            parts.append(next(recordings))
        joined = np.concatenate(parts)
        paths.append(folder / f"{i:05d}{suffix}")
        soundfile.write(paths[-1], joined[:size], SAMPLE_RATE, subtype="PCM_16")
        left = joined[size:]
    return paths


def untrained(path: Path, model: str = "deepspeech2", **options) -> Path:
    """A checkpoint of a network with random weights: as fast as a trained one, and writes nonsense."""
    torch.manual_seed(0)
    network = Recognizer.build(model, **options)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": weights}, path)
    return path
