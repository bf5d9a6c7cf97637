"""Serves a web page that transcribes recordings and a microphone.

    pip install -r requirements-web.txt
    python -m models.inference.web
    python -m models.inference.web --checkpoint runs/mine/checkpoints/best.ckpt english --port 8080
"""

import argparse
import os
import signal
import tempfile

import torch

from models.inference.web.systems import Limits, build_systems, find_streaming, load_networks
from utils.checkpoint.pretrained import DEFAULT, network_names
from utils.cli.parser import OneLineParser, add_constructor_flags, pick_arguments
from utils.cli.values import positive_int, thread_count
from utils.errors import UsageError, one_line_errors
from utils.process import find_device

PROGRAM = "models.inference.web"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every flag."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", help="checkpoints that train.py wrote, or names of networks in "
                        "pretrained/; all of those where none is given")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for other machines too")
    parser.add_argument("--port", type=positive_int, default=7860)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=thread_count, help="CPU threads; all cores by default")
    add_constructor_flags(parser, Limits, title="limits")
    return parser


def serve(args: argparse.Namespace) -> None:
    """Loads the networks and serves the page until Ctrl-C or SIGTERM. Raises UserError."""
    networks = load_networks(args.checkpoint or network_names() or [DEFAULT], find_device(args.device))
    systems, limits = build_systems(networks), Limits(**pick_arguments(Limits, args))
    with tempfile.TemporaryDirectory(prefix="uploads-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # and nothing of a visit is left when the page ends
        try:
            from models.inference.web.page import build_page, launch
        except ModuleNotFoundError as error:
            raise UsageError(f"{error.name} is not installed: pip install -r requirements-web.txt") from None
        page = build_page(systems, find_streaming(networks), limits)
        try:
            address = launch(page, args.host, args.port, limits)
        except OSError:
            raise UsageError(f"--host {args.host} --port {args.port}: cannot listen there; try another port") from None
        print(f"{', '.join(networks)}: {address}", flush=True)
        page.block_thread()


def main(argv: list[str] | None = None) -> None:
    """Ends with one line where a flag or a checkpoint is wrong."""
    with one_line_errors(PROGRAM):
        args = build_parser().parse_args(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        serve(args)


if __name__ == "__main__":
    main()
