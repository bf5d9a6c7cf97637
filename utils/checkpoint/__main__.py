"""Exports a checkpoint's network as a safetensors file, to share.

    python -m utils.checkpoint export runs/NAME/checkpoints/best.ckpt NAME.safetensors

The file can be used wherever a checkpoint can, but for --checkpoint_path: no run goes on from it.
"""

import json
from pathlib import Path

from torch import Tensor

from utils.checkpoint.reading import CheckpointError, network_weights, read_checkpoint
from utils.checkpoint.untrusted import SUFFIX, VERSION
from utils.cli.parser import OneLineParser
from utils.errors import one_line_errors
from utils.files.atomic import atomic_write


def export(source, target) -> None:
    """Writes a checkpoint's network as a safetensors file. Raises CheckpointError and OSError."""
    if Path(target).suffix != SUFFIX:
        raise CheckpointError(target, f"must end in {SUFFIX}")
    checkpoint = read_checkpoint(source)
    write_network(target, checkpoint["recognizer"], network_weights(checkpoint))


def write_network(path, config: dict, weights: dict[str, Tensor]) -> None:
    """Writes a network's config and its `state_dict`, in the types that it has. Raises OSError."""
    from safetensors.torch import save

    separate = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # tied weights too
    metadata = {"format": "pt", "format_version": VERSION, "config": json.dumps(config)}
    atomic_write(path, save(separate, metadata=metadata))


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, or 2 where a flag or a file is wrong."""
    parser = OneLineParser(prog="python -m utils.checkpoint", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(metavar="export", required=True).add_parser("export", help="to a safetensors file")
    command.add_argument("source", help="a checkpoint that train.py wrote")
    command.add_argument("target", help="NAME.safetensors")
    with one_line_errors(parser.prog):
        args = parser.parse_args(argv)
        export(args.source, args.target)
        print(f"{args.target}: {Path(args.target).stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
