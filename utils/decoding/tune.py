"""Search for the weights of beam search that give the fewest errors on validation sets.

A grid is measured first; then a pattern search (Hooke and Jeeves 1961) goes on around its best point, with half the
grid's spacing in each round. `models.inference.tuning` measures the errors.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

from utils.cli.values import nonnegative_int
from utils.decoding.options import LIMITS, DecodingOptions
from utils.errors import UsageError
from utils.metrics import ErrorCounts

Grid = dict[str, list[float]]  # values of each weight, by its name in DecodingOptions
Point = tuple[float, ...]  # one value per weight
Surface = dict[Point, ErrorCounts]  # the errors at every point tried

CTC_GRID: Grid = {"alpha": [0.0, 0.5, 1.0, 1.5, 2.0], "beta": [0.0, 1.0, 2.0, 3.0]}
ATTENTION_GRID: Grid = {"alpha": [0.0, 0.3], "length_power": [0.5, 1.0], "ctc_score_weight": [0.0, 0.3],
                        "coverage_weight": [0.0, 0.002]}
RESCORING_ALPHAS = [0.0, 0.01]  # around the 0.008 of Chan et al. 2015, section 3.4


class Tuning(NamedTuple):
    """Result of a search: the errors at every point tried, and without tuning."""

    names: list[str]  # of the weights
    surface: Surface
    greedy: ErrorCounts
    plain: ErrorCounts  # of beam search without an n-gram, with the weights that were given

    @property
    def best(self) -> dict[str, float]:
        """Weights with the fewest errors, by name."""
        return dict(zip(self.names, best_point(self.surface), strict=True))

    @property
    def best_counts(self) -> ErrorCounts:
        """Errors with these weights."""
        return self.surface[best_point(self.surface)]


def parse_axis(text: str) -> tuple[str, list[float]]:
    """Returns the name and the values in `NAME=V,V,...`; an argparse type."""
    name, _, values = text.partition("=")
    return name, [float(value) for value in values.split(",")]


@dataclass(kw_only=True)
class TuningOptions:
    """Options of the search for the weights of beam search.

    Args:
        tune: search the weights of beam search that give the lowest WER on --val_sets
        val_sets: subsets, folders or manifests for --tune, dev-clean where none is named
        output: NAME.yaml for the flags found by --tune; NAME.png shows the error rates
        grid: NAME=VALUE,VALUE,... for --tune: values tried first, e.g. alpha=0,0.5,1; one value fixes a weight
        rounds: times that --tune halves the grid's spacing around the best point

    Raises UsageError for values that do not go together.
    """

    tune: bool = False
    val_sets: list[str] | None = None
    output: Path | None = None
    grid: list[Annotated[str, parse_axis]] = ()
    rounds: Annotated[int, nonnegative_int] = 2

    def __post_init__(self):
        for name in ("val_sets", "output", "grid"):
            if getattr(self, name) and not self.tune:
                raise UsageError(f"--{name} is for --tune; what is measured is named by --test_sets")
        self.val_sets = list(dict.fromkeys(self.val_sets or (["dev-clean"] if self.tune else [])))
        for name in self.val_sets:
            if re.match("test(?![a-z])", Path(name).name):
                raise UsageError(f"--val_sets {name}: test sets choose nothing; tune on validation sets")
        if self.tune and (self.output is None or self.output.suffix not in (".yaml", ".yml") or self.output.is_dir()):
            raise UsageError(f"--output {self.output or ''}: --tune needs the name of a file that ends in .yaml")


def build_grid(network, options: DecodingOptions, axes: Iterable[tuple[str, list[float]]] = ()) -> Grid:
    """Returns the default grid of a network's weights, with the values of `axes` in place of its own.

    Raises UsageError for weights that the network does not have, and where there is nothing to search.
    """
    grid = dict(ATTENTION_GRID if network.autoregressive else CTC_GRID)
    if options.lm is None:
        if not network.autoregressive:
            raise UsageError("--tune: the weights of a CTC model are those of an n-gram; add --lm")
        del grid["alpha"]
    elif options.lm_fusion == "rescore" and network.autoregressive:
        grid["alpha"] = RESCORING_ALPHAS
    if network.autoregressive and network.ctc is None:
        del grid["ctc_score_weight"]
    for name, values in axes:
        if name not in grid:
            raise UsageError(f"--grid {name}: no weight of this search; there are {', '.join(grid)}")
        for value in values:
            replace(options, **{name: value})  # raises UsageError beyond its limits
        grid[name] = sorted(set(values))
    return grid


def pattern_search(measure: Callable[[list[Point]], list[ErrorCounts]], grid: Grid, rounds: int) -> Surface:
    """Measures a grid, then points around the best one with half the spacing, `rounds` times.

    A round goes on while a neighbour is better, so the best point may leave the grid. With one or two weights all
    3^n - 1 neighbours are tried, with more the 2n along the axes. A weight with one value in the grid keeps it.

    Returns the errors at every point tried.
    """
    points = list(product(*grid.values()))
    surface = dict(zip(points, measure(points), strict=True))
    steps = [_spacing(values) for values in grid.values()]
    for _ in range(rounds):
        steps = [step / 2 for step in steps]
        centre = None
        while centre != (centre := best_point(surface)):
            new = [point for point in _neighbours(centre, steps, grid) if point not in surface]
            surface.update(zip(new, measure(new) if new else [], strict=True))
    return surface


def best_point(surface: Surface) -> Point:
    """Returns the point with the lowest WER, then the lowest CER, then the smallest weights."""
    return min(surface, key=lambda point: (surface[point].word_errors, surface[point].char_errors,
                                           *map(abs, point), *point))


def _spacing(values: list[float]) -> float:
    """Returns the smallest distance between values; 0 for a single one."""
    ordered = sorted(set(values))
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0.0)


def _neighbours(centre: Point, steps: list[float], names: Iterable[str]) -> list[Point]:
    """Returns the points within the limits of DecodingOptions that are one step away."""
    moves = [move for move in product((-1, 0, 1), repeat=len(steps)) if len(steps) <= 2 or sum(map(abs, move)) == 1]
    points = [tuple(round(value + sign * step, 6) for value, sign, step in zip(centre, move, steps, strict=True))
              for move in moves]
    limits = [LIMITS.get(name, (-math.inf, math.inf)) for name in names]
    return [point for point in dict.fromkeys(points)
            if all(low <= value <= high for value, (low, high) in zip(point, limits, strict=True))]
