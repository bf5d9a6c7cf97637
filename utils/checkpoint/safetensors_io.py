"""Networks as safetensors files, to share: weights under the network's own names, model and options as JSON beside.

Such a file holds nothing but numbers and texts, and other programs read it too. What training needs to go on
(optimiser, schedule, place in the epoch) stays in the checkpoint.
"""

import json
from pathlib import Path

from torch import Tensor

from utils.files.atomic import atomic_write

SUFFIX = ".safetensors"
VERSION = "1"  # of the metadata: `format_version`, and `config` as JSON


class SafetensorsError(ValueError):
    """Why a file cannot be used, without its path."""


def write_network(path, config: dict, weights: dict[str, Tensor]) -> None:
    """A file of a network's `state_dict`, in the types that it has, and its config. Raises OSError."""
    from safetensors.torch import save

    apart = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # tied weights too
    metadata = {"format": "pt", "format_version": VERSION, "config": json.dumps(config)}
    atomic_write(Path(path), save(apart, metadata=metadata))


def read_network(path) -> tuple[dict, dict[str, Tensor]]:
    """The config and the `state_dict`, on the CPU. Raises SafetensorsError and OSError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != VERSION:
                raise SafetensorsError("not a network of this project, or of another version: `python -m "
                                       "utils.checkpoint.reading export` writes those")
            names = file.keys()
            return json.loads(metadata["config"]), {name: file.get_tensor(name) for name in names}
    except SafetensorsError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, MemoryError) as error:
        raise SafetensorsError(f"damaged, or no safetensors file ({error})") from None
