"""Transfer: a new run that begins with the weights of another network, and layers that stay as they are."""

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.loading import WithoutInitialization
from models.recognizer import Recognizer
from utils.checkpoint.reading import CheckpointError, network_weights, read_checkpoint
from utils.errors import UsageError
from utils.options import constructor_options
from utils.tokenizer import PRIVATE_USE, build_tokenizer

TOKENS = ("tokenizer", "alphabet", "vocabulary")  # options that say what each output stands for
STATISTICS = ("features", "n_mels", "n_mfcc", "window_ms", "hop_ms", "feature_norm")  # and what features.mean is of


def take_weights(network: Recognizer, path) -> str:
    """Copies a checkpoint's weights into each layer of `network` that has the same name and shapes there.

    A layer is a module with weights of its own, of which all are taken or none. Layers with a row per token are taken
    where the tokens are the same, and global feature statistics where they are of the same features.

    Returns one line that counts the layers taken and names the others. Raises CheckpointError where the file cannot be
    read, or no layer agrees.
    """
    checkpoint = read_checkpoint(path)
    layers, found = by_layer(network.state_dict()), by_layer(network_weights(checkpoint))
    if network.config["feature_norm"] != "global":
        del layers["features"]  # constants
    other = changed_layers(network.config, checkpoint["recognizer"])
    taken = [name for name in layers if name not in other and shapes(layers[name]) == shapes(found.get(name, {}))]
    if not taken:
        raise CheckpointError(path, f"no layer of this {network.name} network has the same name and shapes there, so "
                                    "nothing can be taken from it")
    network.load_state_dict({name: value for layer in taken for name, value in found[layer].items()}, strict=False)
    others = {"begin anew": layers.keys() - set(taken), "not used": found.keys() - layers.keys() - {"features"}}
    named = [f"{what}: {', '.join(shortened(names, taken))}" for what, names in others.items() if names]
    return "; ".join([f"{path}: {len(taken)} of {len(layers)} layers taken", *named])


def by_layer(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns a `state_dict`'s weights by the name of the layer that they are in."""
    layers = defaultdict(dict)
    for name, value in weights.items():
        layers[name.rpartition(".")[0]][name] = value
    return dict(layers)


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Returns the shapes of weights by name."""
    return {name: value.shape for name, value in weights.items()}


def changed_layers(config: dict, saved: dict) -> set[str]:
    """Returns the layers whose weights mean something else in the network of the options `saved`, whatever the shapes.

    Those are the layers with a row per token where the tokens differ, and the statistics of other features.
    """
    saved = {option.name: option.default for option in constructor_options(Recognizer)} | saved
    changed = {"features"} if any(saved[name] != config[name] for name in STATISTICS) else set()
    if any(saved[name] != config[name] for name in TOKENS):
        with torch.device("meta"), WithoutInitialization():
            wider = {**config, "alphabet": config["alphabet"] + chr(PRIVATE_USE)}
            before, after = (by_layer(Recognizer.build(**one).state_dict()) for one in (config, wider))
        changed |= {name for name in before if shapes(before[name]) != shapes(after[name])}
    return changed


def shortened(names: Iterable[str], kept: Collection[str]) -> list[str]:
    """Returns layers by name, those of a module without any layer among `kept` by the module's name, each once."""
    short = set()
    for name in names:
        parts = name.split(".")
        modules = (".".join(parts[:count]) for count in range(1, len(parts)))
        short.add(next((one for one in modules if not any(f"{other}.".startswith(f"{one}.") for other in kept)), name))
    return sorted(short)


def kept_vocabulary(path, *, alphabet: str, vocab_size: int | None) -> list[str] | None:
    """Returns a checkpoint's pieces of byte-pair encoding; None where it has none, of another alphabet or number.

    Raises CheckpointError where the file cannot be read.
    """
    saved = read_checkpoint(path)["recognizer"]
    if (saved.get("tokenizer"), saved.get("alphabet")) != ("bpe", alphabet):
        return None
    try:
        tokenizer = build_tokenizer("bpe", alphabet=alphabet, vocabulary=saved.get("vocabulary"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(path, f"damaged: {error}") from None
    return saved["vocabulary"] if vocab_size in (None, tokenizer.ctc_size - 1) else None


def freeze(network: nn.Module, patterns: Iterable[str]) -> str:
    """Excludes the parameters that match shell-style patterns, such as `rnn.0.*`, from training.

    Batch normalisation whose weight is frozen also keeps its running statistics, and normalises by them in
    training. Dropout and SpecAugment go on, since they regularise the layers above.

    Returns one line that counts the frozen parameters. Raises UsageError for a pattern that matches nothing, and where
    nothing is left to train.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            there = ", ".join(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in parameters))
            raise UsageError(f"--freeze {pattern}: no parameter of this network has such a name; there are {there}")
        for name in names:
            parameters[name].requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()
    sizes = {trained: sum(one.numel() for one in network.parameters() if one.requires_grad == trained)
             for trained in (True, False)}
    if not sizes[True]:
        raise UsageError(f"--freeze {' '.join(patterns)}: no parameter is left to train")
    return f"{sizes[False]:,} of {sum(sizes.values()):,} parameters frozen"
