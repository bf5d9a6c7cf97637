"""Search for the weights of decoding that give the fewest errors on validation sets.

A grid is measured first; then a pattern search (Hooke and Jeeves 1961) goes on around its best point, with half the
grid's spacing in each round.
"""

from collections.abc import Callable
from itertools import product

from utils.decoding.options import LIMITS
from utils.metrics import ErrorCounts

Grid = dict[str, list[float]]  # values of each weight, by its name in DecodingOptions
Point = tuple[float, ...]  # one value per weight
Surface = dict[Point, ErrorCounts]  # the errors at every point tried

CTC_GRID: Grid = {"alpha": [0.0, 0.5, 1.0, 1.5, 2.0], "beta": [0.0, 1.0, 2.0, 3.0]}
ATTENTION_GRID: Grid = {"alpha": [0.0, 0.3], "length_power": [0.5, 1.0], "ctc_score_weight": [0.0, 0.3],
                        "coverage_weight": [0.0, 0.002]}


def pattern_search(measure: Callable[[list[Point]], list[ErrorCounts]], grid: Grid, rounds: int) -> Surface:
    """Measures a grid, then points around the best one with half the spacing, `rounds` times.

    A round goes on while a neighbour is better, so the best point may leave the grid. With one or two weights all
    3^n - 1 neighbours are tried, with more the 2n along the axes. A weight with one value in the grid keeps it.

    Args:
        measure: returns the errors at each of several points.
        grid: values of each weight.
        rounds: times the spacing is halved.

    Returns the errors at every point tried; `best_point` picks one.
    """
    points = list(product(*grid.values()))
    surface = dict(zip(points, measure(points), strict=True))
    steps = [_spacing(values) for values in grid.values()]
    for _ in range(rounds):
        steps = [step / 2 for step in steps]
        centre = None
        while centre != (centre := best_point(surface)):
            new = [point for point in _neighbours(centre, steps, list(grid)) if point not in surface]
            surface.update(zip(new, measure(new), strict=True))
    return surface


def best_point(surface: Surface) -> Point:
    """Returns the point with the lowest WER, then the lowest CER, then the smallest weights."""
    return min(surface, key=lambda point: (surface[point].word_errors, surface[point].char_errors,
                                           *map(abs, point), *point))


def _spacing(values: list[float]) -> float:
    """Returns the smallest distance between values; 0 for a single one."""
    ordered = sorted(set(values))
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0.0)


def _neighbours(centre: Point, steps: list[float], names: list[str]) -> list[Point]:
    moves = [move for move in product((-1, 0, 1), repeat=len(steps)) if len(steps) <= 2 or sum(map(abs, move)) == 1]
    points = [tuple(round(value + move * step, 6) for value, move, step in zip(centre, one, steps, strict=True))
              for one in moves]
    return [point for point in dict.fromkeys(points)
            if all(low <= value <= high for value, (low, high) in
                   ((value, LIMITS.get(name, (-float("inf"), float("inf")))) for name, value in
                    zip(names, point, strict=True)))]
