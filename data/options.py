"""What a user may say of the data, each declared once: the flags of `train.py` and `evaluate.py` come from here."""

import os
from dataclasses import dataclass

from data.index import DataError
from data.librispeech import URL


@dataclass(kw_only=True)
class DataOptions:
    """What every use of a corpus needs.

    Args:
        data_root: folder of the corpora
        test_sets: LibriSpeech's subsets, folders or manifests, reported at the end
        batch_size: utterances per batch and process
        batch_seconds: seconds of padded audio per batch and process; wins over --batch_size
        num_workers: processes that read audio
        cache_dir: durations of audio files
        librispeech_url: where LibriSpeech's archives are

    Raises DataError for a value that is none.
    """

    data_root: str = "data"
    test_sets: list[str] = ("test-clean", "test-other")
    batch_size: int = 32
    batch_seconds: float | None = None
    num_workers: int = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    cache_dir: str = ".cache/index"
    librispeech_url: str = URL

    def __post_init__(self):
        if self.batch_size < 1:
            raise DataError(f"--batch_size {self.batch_size}: must be at least 1")
        if self.batch_seconds is not None and not 0 < self.batch_seconds < float("inf"):
            raise DataError(f"--batch_seconds {self.batch_seconds}: must be above 0 and finite")
        if self.num_workers < 0:
            raise DataError(f"--num_workers {self.num_workers}: must be at least 0")


@dataclass(kw_only=True)
class TrainingDataOptions(DataOptions):
    """What training needs as well.

    Args:
        train_sets: LibriSpeech's subsets, folders or manifests to train on
        val_sets: those that choose checkpoints
        speed_perturb: speeds to draw from in training, e.g. 0.9 1.0 1.1
        skip_bad_audio: count files that cannot be read in place of stopping
        seed: of weights, order and augmentation

    Raises DataError for a value that is none.
    """

    train_sets: list[str] = ("train-clean-100",)
    val_sets: list[str] = ("dev-clean", "dev-other")
    speed_perturb: list[float] = ()
    skip_bad_audio: bool = False
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for speed in self.speed_perturb:
            if not 0 < speed < float("inf"):
                raise DataError(f"--speed_perturb {speed}: must be above 0 and finite")
        if self.seed < 0:
            raise DataError(f"--seed {self.seed}: must be at least 0")
