"""`python -m data.synthetic`: the flags of `data.synthetic.corpus.build_corpus`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import os

from data.synthetic.conditions import RECORDINGS
from data.synthetic.corpus import __doc__ as description
from data.synthetic.corpus import build_corpus
from data.synthetic.engines import ENGINES
from utils.cli.parser import OneLineParser
from utils.errors import one_line_errors


def main(arguments: list[str] | None = None) -> None:
    """Builds the corpus that the flags name and prints what each split has."""
    parser = OneLineParser(prog="python -m data.synthetic", description=description,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to build, e.g. data/corpora/demo")
    parser.add_argument("--hours", type=float, default=2.0, help="size of train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--num_workers", type=int, default=workers, help="processes; 0 for none but this one")
    parser.add_argument("--engine", choices=ENGINES, default="espeak", help="synthesiser (default: espeak)")
    parser.add_argument("--text", help="file of sentences or paragraphs, one per line (default: a small grammar)")
    parser.add_argument("--recording", choices=RECORDINGS, help="plain: low white noise, the default without --text; "
                        "varied: rooms, microphones, telephones and coloured noise, the default with it")
    with one_line_errors(parser.prog):
        counts = build_corpus(**vars(parser.parse_args(arguments)))["splits"]
        for split, count in counts.items():
            print(f"{split}: " + ", ".join(f"{value} {name}" for name, value in count.items()))


if __name__ == "__main__":
    main()
