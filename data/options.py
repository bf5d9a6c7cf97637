"""What a user may say of the data, each declared once: the flags of `train.py` and `evaluate.py` come from here."""

import os
from dataclasses import dataclass
from typing import Annotated

from data.librispeech import URL
from utils.cli.values import (
    decibels,
    name_and_factor,
    nonnegative_int,
    positive_float,
    positive_int,
    probability,
    share,
    speed,
    weighted_name,
)
from utils.errors import UsageError
from utils.normalizers import NormalizerType

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # of this process


@dataclass(kw_only=True)
class DataOptions:
    """Holds the options that every use of a corpus has.

    Args:
        data_root: folder of the corpora
        test_sets: LibriSpeech's subsets, folders, manifests or tables to report error rates of
        batch_size: utterances per batch and process
        batch_seconds: seconds of padded audio per batch and process; wins over --batch_size
        num_workers: processes that read audio
        text_normalizer: of transcripts: basic lower-cases; english also drops punctuation and spells out numbers
        cache_dir: where the durations of audio files are cached
        librispeech_url: mirror of LibriSpeech's archives
    """

    data_root: str = "data"
    test_sets: list[str] = ("test-clean", "test-other")
    batch_size: Annotated[int, positive_int] = 32
    batch_seconds: Annotated[float, positive_float] | None = None
    num_workers: Annotated[int, nonnegative_int] = min(4, CORES)
    text_normalizer: NormalizerType = "basic"
    cache_dir: str = ".cache/index"
    librispeech_url: str = URL


@dataclass(kw_only=True)
class AugmentationOptions:
    """Holds what is done to training waveforms, drawn anew for each utterance in each epoch; nothing by default.

    Args:
        noise_db: range of the signal-to-noise ratio in dB, e.g. 5 40
        noise_dir: folder of noise recordings; without it noise is synthetic, from white to brown
        reverb_share: fraction of utterances with reverberation
        reverb_dir: folder of room impulse responses; without it they are synthetic
        tilt: largest spectral tilt: filters by x[n] - t x[n-1] with t from -tilt to tilt, e.g. 0.35
        telephone_share: fraction of utterances through a telephone channel: a band below 4 kHz, and codec noise
        gain_db: range of the gain in dB, e.g. -15 5; peaks stay within full scale
    """

    noise_db: list[Annotated[float, decibels]] = ()
    noise_dir: str | None = None
    reverb_share: Annotated[float, probability] = 0.0
    reverb_dir: str | None = None
    tilt: Annotated[float, share] = 0.0
    telephone_share: Annotated[float, probability] = 0.0
    gain_db: list[Annotated[float, decibels]] = ()

    def __post_init__(self):
        """Raises UsageError that names the flag."""
        for name in ("noise_db", "gain_db"):
            values = list(getattr(self, name))
            if values and (len(values) != 2 or values[0] > values[1]):
                raise UsageError(f"--{name} {' '.join(map(str, values))}: give the lowest and the highest")
        if self.noise_dir and not self.noise_db:
            raise UsageError(f"--noise_dir {self.noise_dir}: needs --noise_db, how far the noise lies below the speech")
        if self.reverb_dir and not self.reverb_share:
            raise UsageError(f"--reverb_dir {self.reverb_dir}: needs --reverb_share, of the utterances")

    @property
    def augments(self) -> bool:
        """Returns whether anything is done at all."""
        return bool(self.noise_db or self.reverb_share or self.tilt or self.telephone_share or self.gain_db)


@dataclass(kw_only=True)
class TrainingDataOptions(DataOptions, AugmentationOptions):
    """Holds the options of training data in addition.

    Args:
        train_sets: LibriSpeech's subsets, folders, manifests or tables; hibari*0.5 draws half of hibari per epoch
        val_sets: validation sets, which choose the checkpoints
        speed_perturb: speed factors, one of which is drawn per utterance, e.g. 0.9 1.0 1.1
        shard_window: about how many utterances of tar shards are shuffled together
        skip_bad_audio: skip and count unreadable files instead of stopping, which a batch of nothing else still does
        seed: random seed of initialisation, data order and augmentation
    """

    train_sets: Annotated[list[Annotated[str, weighted_name]], "+"] = ("train-clean-100",)
    val_sets: Annotated[list[str], "+"] = ("dev-clean", "dev-other")
    speed_perturb: list[Annotated[float, speed]] = ()
    shard_window: Annotated[int, positive_int] = 20_000
    skip_bad_audio: bool = False
    seed: Annotated[int, nonnegative_int] = 0

    def train_factors(self) -> list[tuple[str, float]]:
        """Returns the name of each training set, and how many times each epoch has it."""
        return [name_and_factor(text) for text in self.train_sets]
