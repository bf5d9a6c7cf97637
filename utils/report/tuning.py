"""What tuning found: flags in a YAML file, and a figure of the error rates."""

from dataclasses import asdict, fields
from pathlib import Path

import yaml

from utils.decoding.options import DecodingOptions
from utils.decoding.tune import Tuning
from utils.files.atomic import atomic_write
from utils.report.plots import render, surface_figure


def summarize(tuning: Tuning) -> str:
    """Returns the error rates in one line."""
    counts = tuning.best_counts
    return (f"val WER {counts.wer:.2%} (greedy {tuning.greedy.wer:.2%}, beam search without an n-gram "
            f"{tuning.plain.wer:.2%}), CER {counts.cer:.2%}, {counts.utterances:,} utterances")


def write_tuning(path: Path, tuning: Tuning, options: DecodingOptions, command: str) -> None:
    """Writes the best options as flags for `--config`, and next to them a figure. Raises OSError.

    Args:
        path: `NAME.yaml`; the figure is `NAME.png`.
        tuning: the errors at every point tried.
        options: those of the search.
        command: as it was typed.
    """
    found = asdict(options) | tuning.best
    first = ["decoder", "lm", *tuning.names, "beam_size"]
    others = [one.name for one in fields(options) if found[one.name] not in (one.default, [])]
    flags = {name: found[name] for name in dict.fromkeys(first + others) if found[name] is not None}
    title = "val WER (%)" + (f" by the weights of {Path(options.lm).name}" if options.lm else "")
    rates = {point: counts.wer for point, counts in tuning.surface.items()}
    atomic_write(path, f"# {summarize(tuning)}\n# {command}\n{yaml.safe_dump(flags, sort_keys=False)}")
    if image := render(lambda: surface_figure(rates, tuning.names, tuple(tuning.best.values()), title)):
        atomic_write(path.with_suffix(".png"), image)
