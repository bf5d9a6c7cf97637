"""What a user may say of the data, each declared once: the flags of `train.py` and `evaluate.py` come from here."""

import os
from dataclasses import dataclass
from typing import Annotated

from data.librispeech import URL
from utils.cli.values import nonnegative_int, positive_float, positive_int

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # of this process


@dataclass(kw_only=True)
class DataOptions:
    """Holds the options that every use of a corpus has.

    Args:
        data_root: folder of the corpora
        test_sets: LibriSpeech's subsets, folders or manifests, reported at the end
        batch_size: utterances per batch and process
        batch_seconds: seconds of padded audio per batch and process; wins over --batch_size
        num_workers: processes that read audio
        cache_dir: durations of audio files
        librispeech_url: where LibriSpeech's archives are
    """

    data_root: str = "data"
    test_sets: list[str] = ("test-clean", "test-other")
    batch_size: Annotated[int, positive_int] = 32
    batch_seconds: Annotated[float, positive_float] | None = None
    num_workers: Annotated[int, nonnegative_int] = min(4, CORES)
    cache_dir: str = ".cache/index"
    librispeech_url: str = URL


@dataclass(kw_only=True)
class TrainingDataOptions(DataOptions):
    """Holds the options of training data in addition.

    Args:
        train_sets: LibriSpeech's subsets, folders or manifests to train on
        val_sets: those that choose checkpoints
        speed_perturb: speeds to draw from in training, e.g. 0.9 1.0 1.1
        skip_bad_audio: count files that cannot be read in place of stopping
        seed: of weights, order and augmentation
    """

    train_sets: Annotated[list[str], "+"] = ("train-clean-100",)
    val_sets: Annotated[list[str], "+"] = ("dev-clean", "dev-other")
    speed_perturb: list[Annotated[float, positive_float]] = ()
    skip_bad_audio: bool = False
    seed: Annotated[int, nonnegative_int] = 0
