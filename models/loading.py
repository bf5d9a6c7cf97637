"""Networks from checkpoints; a file's weights are compared with its options before either takes memory."""

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils.checkpoint.reading import CheckpointError, network_weights, read_checkpoint


def load_network(path, build: Callable[..., nn.Module], models: Container[str]) -> nn.Module:
    """Returns the network of a checkpoint with its weights.

    Args:
        path: the checkpoint.
        build: makes a network of the options that the checkpoint holds, `model` among them.
        models: the models that `build` knows.

    Raises CheckpointError in one line where the file cannot be read, or options and weights do not fit together.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["recognizer"]
    if config["model"] not in models:
        raise CheckpointError(path, f"holds a model {config['model']!r}, which this version does not have")
    weights = network_weights(checkpoint)
    for name, value in config.items():
        if name.endswith(("_layers", "_blocks")) and isinstance(value, int) and value > len(weights):  # none is empty
            raise CheckpointError(path, f"states {name} {value:,}, and holds {len(weights):,} weights")
    try:
        with torch.device("meta"), WithoutInitialization():  # shapes alone: a file may state a network of any size
            check_shapes(build(**config).state_dict(), weights)
        network = build(**config)
        network.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(path, f"does not fit this version's {config['model']}: {reason}") from None
    return network


class WithoutInitialization(TorchFunctionMode):
    """Skips the initialisation of weights, for which the meta device would load PyTorch's compiler: 0.8 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises ValueError that names a weight which only one of two networks has, or has in another shape."""
    for name in sorted(expected.keys() | found.keys()):
        shapes = [tuple(one[name].shape) if name in one else None for one in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"size mismatch: {name} is {shapes[1]}, the network's options say {shapes[0]}")
