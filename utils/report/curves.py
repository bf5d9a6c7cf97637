"""Draws the curves of runs: training loss and validation WER by epoch.

    python -m utils.report.curves runs/deepspeech2_digits/history.jsonl [MORE ...] --output curves.png
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import json
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli.parser import OneLineParser
from utils.errors import UsageError, one_line_errors, printable
from utils.files.atomic import atomic_write
from utils.report.plots import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("epoch", "train/loss", "val/wer")  # the fields of a row of history.jsonl that are drawn
FORMATS = ("png", "jpg", "webp", "pdf", "svg")


def read_history(path: Path) -> list[dict]:
    """Returns what is drawn of a run's `history.jsonl`, the last row of an epoch that a resumed run repeated.

    Raises UsageError where the file holds something else, and OSError.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return list({row["epoch"]: {name: float(row[name]) for name in CURVES} for row in rows}.values())
    except KeyError as error:
        raise UsageError(f"{path}: not the history.jsonl of a run (a line without {error})") from None
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: not the history.jsonl of a run ({printable(error, 100)})") from None


def read_histories(paths: list[Path]) -> dict[str, list[dict]]:
    """Returns each run's history by the name of its folder, or by its path where several folders have that name."""
    names = [path.absolute().parent.name for path in paths]
    return {name if names.count(name) == 1 else str(path): read_history(path)
            for name, path in zip(names, paths, strict=True)}


def curve_figure(histories: dict[str, list[dict]]) -> "Figure":
    """Draws training loss and validation WER by epoch, one line per run; returns a matplotlib Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    class PlainLogFormatter(LogFormatter):
        """Writes 0.3 where matplotlib's own writes a formula, which `render` does not typeset."""

        def __call__(self, x, pos=None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in histories.items():
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["train/loss"] for row in rows], label=printable(name))
        right.plot(epochs, [100 * row["val/wer"] for row in rows], label=printable(name))
    left.set(xlabel="epoch", ylabel="training loss (nats per token)", yscale="log")
    left.yaxis.set_major_formatter(PlainLogFormatter())
    left.yaxis.set_minor_formatter(PlainLogFormatter())
    right.set(xlabel="epoch", ylabel="validation word error rate (%)", ylim=(0, 105))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draws the curves of the runs that the command line names."""
    parser = OneLineParser(prog="utils.report.curves", description="Draws the curves of runs.")
    parser.add_argument("history", nargs="+", type=Path, help="history.jsonl in the folders of runs")
    parser.add_argument("--output", required=True, type=Path, help=f"image file: {', '.join(FORMATS)}")
    with one_line_errors(parser.prog):
        args = parser.parse_args(argv)
        kind = args.output.suffix.removeprefix(".").lower()
        if kind not in FORMATS:
            raise UsageError(f"--output {args.output}: must end in .{', .'.join(FORMATS)}")
        histories = read_histories(args.history)
        image = render(lambda: curve_figure(histories), format=kind)
        if image is None:
            raise UsageError(f"--output {args.output}: not written, the figure cannot be drawn")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(args.output, image)


if __name__ == "__main__":
    main()
