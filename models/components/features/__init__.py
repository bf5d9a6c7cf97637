"""Kinds of features, by name: an entry here and a file next to it make a new one."""

from typing import Literal

from models.components.features.base import Features
from models.components.features.logmel import LogMel
from models.components.features.mfcc import MFCC
from utils.options import constructor_options

FeatureType = Literal["logmel", "mfcc"]
FEATURES: dict[str, type[Features]] = {"logmel": LogMel, "mfcc": MFCC}


def build_features(kind: FeatureType, **options) -> Features:
    """Returns features of a kind; each kind takes of the options what it has."""
    cls = FEATURES[kind]
    return cls(**{option.name: options[option.name] for option in constructor_options(cls)})
