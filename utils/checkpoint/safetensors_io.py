"""Networks as safetensors files, to share: weights under the network's own names, and its config as JSON.

Such a file holds nothing but numbers and texts, and other programs read it too. What training needs to go on
(optimiser, schedule, place in the epoch) stays in the checkpoint.
"""

import json

from torch import Tensor

from utils.checkpoint.validation import DAMAGE, ValidationError
from utils.files.atomic import atomic_write

SUFFIX = ".safetensors"
VERSION = "1"  # of the metadata: `format_version`, and `config` as JSON


def write_network(path, config: dict, weights: dict[str, Tensor]) -> None:
    """Writes a network's `state_dict`, in the types that it has, and its config. Raises OSError."""
    from safetensors.torch import save

    separate = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # tied weights too
    metadata = {"format": "pt", "format_version": VERSION, "config": json.dumps(config)}
    atomic_write(path, save(separate, metadata=metadata))


def read_network(path) -> tuple[dict, dict[str, Tensor]]:
    """Returns the config and the `state_dict`, on the CPU. Raises ValidationError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != VERSION:
                raise ValidationError("not a network of this project, or of another version: `python -m "
                                      "utils.checkpoint export` writes those")
            return json.loads(metadata["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except ValidationError:
        raise
    except (SafetensorError, *DAMAGE) as error:
        raise ValidationError(f"damaged, or no safetensors file ({error})") from None
