"""Figures: spectrograms with posteriors, attention maps, and error rates over the weights of decoding.

Programs draw by `render` or `diagnostic_images`, which use matplotlib's own style whatever the user's matplotlibrc
says, take no text for a formula, and leave out what cannot be drawn: no figure ends a run.
"""

import io
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from torch import Tensor

from utils.errors import printable
from utils.types import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(draw: Callable, *, dpi: int = 100, format: str = "png", **options) -> bytes | None:
    """Returns the image file of the matplotlib Figure that `draw()` makes, or None where it cannot be drawn.

    `options` are passed on to `Figure.savefig`. The first failure of a process is reported on standard error.
    """
    try:
        import matplotlib.style

        plain = {"text.parse_math": False}  # a `$` in the name of a file begins no formula
        with matplotlib.style.context(["default", plain]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            image = io.BytesIO()
            draw().savefig(image, format=format, dpi=dpi, **options)
    except Exception as error:  # matplotlib raises anything, e.g. RuntimeError without LaTeX, OSError without fonts
        _warn_once(printable(f"{type(error).__name__}: {error}", 200))
        return None
    return image.getvalue()


@cache
def _warn_once(reason: str) -> None:
    print(f"note: a figure was left out, matplotlib cannot draw it ({reason})", file=sys.stderr, flush=True)


def diagnostic_images(network, batch: Batch, *, titles: bool = True, **options) -> dict[str, bytes]:
    """Returns the images of `diagnostic_figures`, without those that cannot be drawn; `options` are of `render`."""
    images = {kind: render(draw, **options) for kind, draw in diagnostic_figures(network, batch, titles=titles).items()}
    return {kind: image for kind, image in images.items() if image is not None}


def diagnostic_figures(network, batch: Batch, *, titles: bool = True) -> dict[str, Callable]:
    """Returns what draws a figure per kind of the network's diagnostics, from its present weights.

    Attention is drawn of all utterances, posteriors of the first.
    """
    figures = {}
    for kind, values in network.diagnostics(batch).items():
        if kind == "attention":
            pieces = [[network.tokenizer.labels[token] for token in tokens[:count]]
                      for tokens, count in zip(batch.tokens.tolist(), batch.token_counts.tolist(), strict=True)]
            figures[kind] = partial(attention_figure, values, batch.texts, pieces, titles=titles)
        else:
            features, lengths = network.features(batch.waveforms[:1], batch.sample_counts[:1])
            title = f"{batch.ids[0]}: {batch.texts[0]}" if titles else ""
            figures[kind] = partial(posterior_figure, features[0, : lengths[0]].cpu(), values[0].cpu(),
                                    ["blank", *network.tokenizer.labels[1:]], title)
    return figures


def posterior_figure(features: Tensor, log_probs: Tensor, labels: list[str], title: str) -> "Figure":
    """Draws the log-mel spectrogram of one utterance above its output posteriors.

    Args:
        features: (T, F).
        log_probs: (T', C), the blank first.
        labels: names of the C classes.
        title: of the figure.

    Returns a matplotlib Figure, not registered with pyplot, so that it needs no closing.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    top.imshow(features.T.float().numpy(), origin="lower", aspect="auto", cmap="magma")
    top.set(title=printable(title), ylabel="mel bin", xlabel="frame")
    posteriors = log_probs.exp().float().numpy()
    bottom.set_prop_cycle(color=colormaps["tab20"].colors)
    bottom.plot(posteriors[:, 0], color="0.8", label=labels[0])
    for index, label in enumerate(labels[1:], start=1):
        if posteriors[:, index].max() > 0.3:
            bottom.plot(posteriors[:, index], label="space" if label == " " else label)
    bottom.set(xlim=(0, max(1, len(posteriors) - 1)), ylim=(0, 1.02), xlabel="output frame", ylabel="probability")
    figure.legend(loc="outside lower center", ncols=15, fontsize=8)
    return figure


def attention_figure(weights: list[Tensor], texts: list[str], pieces: list[list[str]], *,
                     titles: bool = True) -> "Figure":
    """Draws the (U, T) attention weights of each text over encoder frames; returns a matplotlib Figure.

    `pieces` are what the tokens of each text stand for.
    """
    from matplotlib.figure import Figure

    rows = -(-len(weights) // 3)
    figure = Figure(figsize=(12, 3.5 * rows), layout="constrained")
    for i, (attention, text, labels) in enumerate(zip(weights, texts, pieces, strict=True)):
        axis = figure.add_subplot(rows, min(3, len(weights)), i + 1)
        axis.imshow(attention.float().cpu().numpy(), origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1)
        if titles:
            axis.set_title(printable(text) if len(text) <= 45 else printable(text[:44]) + "…", fontsize=9)
        if len(labels) <= 45:
            names = ["␣" if label == " " else printable(label) for label in labels]
            axis.set_yticks(range(len(names)), names, fontsize=5)
        axis.set(xlabel="encoder frame")
    return figure


def surface_figure(rates: dict[tuple[float, ...], float], names: list[str], best: tuple[float, ...],
                   title: str) -> "Figure":
    """Draws word error rates over the weights of decoding that were tried, the best marked.

    Two weights that vary are the axes of one map; other numbers of them get one panel each, with the WER as height.

    Args:
        rates: WER at each point, fractions.
        names: of the weights that a point consists of.
        best: the point chosen.
        title: of the figure.

    Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    axes = [i for i in range(len(names)) if len({point[i] for point in rates}) > 1] or [0]
    figure = Figure(figsize=(7 if len(axes) <= 2 else 3.5 * len(axes), 5), layout="constrained")
    figure.suptitle(printable(title))
    percent = [100 * rate for rate in rates.values()]
    chosen = ", ".join(f"{name} {value:g}" for name, value in zip(names, best, strict=True))
    mark = {"marker": "*", "s": 300, "color": "red", "edgecolors": "white",
            "label": f"{chosen}: {100 * rates[best]:.2f} %"}
    if len(axes) == 2:
        axis, (x, y) = figure.subplots(), ([point[i] for point in rates] for i in axes)
        axis.tricontourf(x, y, percent, levels=20, cmap="viridis_r")
        points = axis.scatter(x, y, c=percent, cmap="viridis_r", edgecolors="white", s=30)
        axis.scatter(*(best[i] for i in axes), **mark)
        figure.colorbar(points, label="word error rate (%)")
        axis.set(xlabel=names[axes[0]], ylabel=names[axes[1]])
    else:
        for i, axis in zip(axes, figure.subplots(1, len(axes), sharey=True, squeeze=False)[0], strict=True):
            axis.scatter([point[i] for point in rates], percent)
            axis.scatter(best[i], 100 * rates[best], **mark)
            axis.set(xlabel=names[i], ylabel="word error rate (%)")
    axis.legend(loc="upper right")
    return figure
