"""Exports the network of a checkpoint, or the mean of several, as a safetensors file, uploads it, or shows its flags.

    python -m utils.checkpoint export runs/NAME/checkpoints/best.ckpt NAME.safetensors
    python -m utils.checkpoint export runs/NAME/checkpoints/best.ckpt NAME.safetensors --dtype float16
    python -m utils.checkpoint export runs/A/checkpoints/best.ckpt runs/B/checkpoints/best.ckpt MEAN.safetensors
    python -m utils.checkpoint push runs/NAME/checkpoints/best.ckpt user/name --results runs/NAME/results.json
    python -m utils.checkpoint flags NAME.safetensors > network.yaml

The first three files, and hf://user/name after the fourth command, can be used wherever a checkpoint can, but for
--checkpoint_path: no run goes on from them. The last one is for `train.py --config network.yaml --init_from
NAME.safetensors`. ONNX files: `python -m models.export`.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import json
import tempfile
from pathlib import Path

import torch
import yaml
from torch import Tensor

from utils.checkpoint.averaging import average_checkpoints
from utils.checkpoint.card import model_card, read_error_rates
from utils.checkpoint.hub import HubError, upload
from utils.checkpoint.pretrained import WEIGHTS
from utils.checkpoint.reading import CheckpointError, find_checkpoint, network_weights, read_checkpoint
from utils.checkpoint.untrusted import SUFFIX, VERSION
from utils.cli.parser import OneLineParser
from utils.errors import one_line_errors, printable
from utils.files.atomic import atomic_write

PROGRAM = "python -m utils.checkpoint"


def export(sources: list, target, dtype: torch.dtype | None = None) -> None:
    """Writes the network of a checkpoint, or the mean of several, as a safetensors file.

    Its weights have the types of the first one, or those that `convert` makes. The mean of runs that began with each
    other's weights is often better than each of them (Wortsman et al. 2022, arXiv:2203.05482).
    Raises CheckpointError, also for a weight that `dtype` cannot hold, and OSError.
    """
    if Path(target).suffix != SUFFIX:
        raise CheckpointError(target, f"must end in {SUFFIX}")
    checkpoint = read_checkpoint(sources[0])
    if len(sources) > 1:
        checkpoint["state_dict"] = average_checkpoints(sources)
    weights = network_weights(checkpoint)
    try:
        write_network(target, checkpoint["recognizer"], convert(weights, dtype) if dtype else weights)
    except OverflowError as error:
        raise CheckpointError(sources[0], str(error)) from None


def convert(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns weights with matrices and filters as `dtype`; vectors (biases, norms, statistics) are few and stay.

    Raises OverflowError for a number that becomes infinite.
    """
    converted = {name: value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
                 for name, value in weights.items()}
    for name, value in weights.items():
        if not torch.equal(value.isfinite(), converted[name].isfinite()):
            raise OverflowError(f"{name} holds {value.abs().max():g}, too much for {str(dtype).removeprefix('torch.')}")
    return converted


def write_network(path, config: dict, weights: dict[str, Tensor]) -> None:
    """Writes a network's config and its `state_dict`, in the types that it has. Raises OSError."""
    from safetensors.torch import save

    separate = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # tied weights too
    metadata = {"format": "pt", "format_version": VERSION, "config": json.dumps(config)}
    atomic_write(path, save(separate, metadata=metadata))


def push(source, name: str, *, dtype: torch.dtype | None = None, private: bool = False, results=None) -> str:
    """Uploads a network, its config and its model card to the Hugging Face Hub, and returns its address there.

    Args:
        source: the checkpoint.
        name: user/name on the Hub.
        dtype: as `export` takes it.
        private: whether a new model is for its owner alone.
        results: results.json of train.py, or report.json of evaluate.py, whose error rates the card states.

    Raises CheckpointError, UsageError, and ImportError without huggingface_hub.
    """
    rates, config = read_error_rates(results) if results else [], read_checkpoint(source)["recognizer"]
    with tempfile.TemporaryDirectory() as folder:
        export([source], Path(folder, WEIGHTS), dtype)
        Path(folder, "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        Path(folder, "README.md").write_text(model_card(name, config, rates), encoding="utf-8")
        try:
            return upload(folder, name, private=private)
        except HubError as error:
            raise CheckpointError(name, printable(error, 200)) from None


def network_flags(source) -> str:
    """Returns a checkpoint's model and its options as YAML for `train.py --config`, subwords left out.

    Raises CheckpointError.
    """
    config = read_checkpoint(source)["recognizer"]
    return yaml.safe_dump({name: value for name, value in config.items() if name != "vocabulary"}, sort_keys=False)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the command and what it is about. Raises UsageError."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="export|push|flags", required=True)
    command = commands.add_parser("export", help="to a safetensors file")
    command.add_argument("sources", nargs="+", metavar="source", help="a checkpoint that train.py wrote, or several")
    command.add_argument("target", help="NAME.safetensors")
    add_dtype(command)
    command = commands.add_parser("push", help="to the Hugging Face Hub")
    command.add_argument("source", help="a checkpoint, or the name of a network in pretrained/")
    command.add_argument("name", help="user/name, as the Hub is to call it")
    command.add_argument("--results", help="results.json of train.py or report.json of evaluate.py, for the model card")
    command.add_argument("--private", action=argparse.BooleanOptionalAction, default=False,
                         help="a new model is for its owner alone")
    add_dtype(command)
    command = commands.add_parser("flags", help="of the network, in YAML")
    command.add_argument("source", help="a checkpoint, or the name of a network in pretrained/")
    return parser.parse_args(argv)


def add_dtype(command: argparse.ArgumentParser) -> None:
    """Adds the flag that two commands have."""
    command.add_argument("--dtype", choices=["float32", "float16"],
                         help="type of matrices and filters, which are float32 again once they are read")


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, or 2 where a flag or a file is wrong."""
    with one_line_errors(PROGRAM):
        args = parse_arguments(argv)
        if args.command == "flags":
            print(network_flags(args.source), end="")
            return
        dtype = args.dtype and getattr(torch, args.dtype)
        if args.command == "push":
            print(push(args.source, args.name, dtype=dtype, private=args.private, results=args.results))
            return
        export(args.sources, args.target, dtype)
        sizes = [f"{Path(path).stat().st_size / 1e6:,.1f} MB" for path in map(find_checkpoint, args.sources)]
        whence = ", ".join(f"{source} of {size}" for source, size in zip(args.sources, sizes, strict=True))
        print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:,.1f} MB, from {whence}")


if __name__ == "__main__":
    main()
