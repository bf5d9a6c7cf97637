"""Figures: spectrograms with output posteriors, and the curves of runs.

    python -m utils.plots runs/digits/history.jsonl [MORE ...] --output curves.png
"""

import argparse
import json
from pathlib import Path

from torch import Tensor

from utils.types import Batch


def posterior_figure(features: Tensor, log_probs: Tensor, alphabet: str, title: str):
    """The log-mel spectrogram of one utterance above its output posteriors.

    Args:
        features: (T, F).
        log_probs: (T', 1 + len(alphabet)), the blank first.

    Returns a matplotlib Figure, not registered with pyplot, so that it needs no closing.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    top.imshow(features.T.float().numpy(), origin="lower", aspect="auto", cmap="magma")
    top.set(title=title, ylabel="mel bin", xlabel="frame")
    posteriors = log_probs.exp().float().numpy()
    bottom.set_prop_cycle(color=colormaps["tab20"].colors)
    bottom.plot(posteriors[:, 0], color="0.8", label="blank")
    for index, char in enumerate(alphabet, start=1):
        if posteriors[:, index].max() > 0.3:
            bottom.plot(posteriors[:, index], label="space" if char == " " else char)
    bottom.set(xlim=(0, len(posteriors) - 1), ylim=(0, 1.02), xlabel="output frame", ylabel="probability")
    figure.legend(loc="outside lower center", ncols=15, fontsize=8)
    return figure


def attention_figure(weights: list[Tensor], texts: list[str]):
    """Which encoder frames, of (U, T) `weights`, each character of a text looked at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5 * -(-len(weights) // 3)), layout="constrained")
    for i, (map_, text) in enumerate(zip(weights, texts, strict=True)):
        axis = figure.add_subplot(-(-len(weights) // 3), min(3, len(weights)), i + 1)
        axis.imshow(map_.float().cpu().numpy(), origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1)
        axis.set_title(text if len(text) <= 45 else text[:44] + "…", fontsize=9)
        if len(text) <= 45:
            axis.set_yticks(range(len(text)), ["␣" if char == " " else char for char in text], fontsize=5)
        axis.set(xlabel="encoder frame")
    return figure


def diagnostic_figures(network, batch: Batch) -> dict:
    """One figure a kind of the network's views of a batch: attention of all, posteriors of the first."""
    figures = {}
    for kind, views in network.diagnostics(batch).items():
        if kind == "attention":
            figures[kind] = attention_figure(views, batch.texts)
        else:
            features, lengths = network.features(batch.waveforms[:1], batch.sample_counts[:1])
            title = f"{batch.ids[0]}: {batch.texts[0]}"
            figures[kind] = posterior_figure(features[0, : lengths[0]].cpu(), views[0].cpu(),
                                             network.tokenizer.alphabet, title)
    return figures


def curve_figure(histories: dict[str, list[dict]]):
    """Training loss and dev word error rate by epoch, one line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in histories.items():
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["train/loss"] for row in rows], label=name)
        right.plot(epochs, [100 * row["val/wer"] for row in rows], label=name)
    left.set(xlabel="epoch", ylabel="training loss (nats a character)", yscale="log")
    right.set(xlabel="epoch", ylabel="dev word error rate (%)", ylim=(0, 105))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def surface_figure(rates: dict[tuple[float, float], float], best: tuple[float, float], title: str):
    """Word error rates over the (alpha, beta) that were tried, the chosen pair marked; a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    alphas, betas = zip(*rates, strict=True)
    percent = [100 * rate for rate in rates.values()]
    if len(set(alphas)) > 1 and len(set(betas)) > 1:  # else they lie on a line, over which nothing can be drawn
        axis.tricontourf(alphas, betas, percent, levels=20, cmap="viridis_r")
    points = axis.scatter(alphas, betas, c=percent, cmap="viridis_r", edgecolors="white", s=30)
    axis.scatter(*best, marker="*", s=300, color="red", edgecolors="white",
                 label=f"alpha {best[0]:g}, beta {best[1]:g}: {100 * rates[best]:.2f} %")
    figure.colorbar(points, label="word error rate (%)")
    axis.margins(0.04)
    axis.set(title=title, xlabel="alpha, weight of the n-gram", ylabel="beta, bonus for a word")
    axis.legend(loc="upper right")
    return figure


def read_history(path: Path) -> list[dict]:
    """The rows of a run's `history.jsonl`; where a resumed run repeated an epoch, its last word counts."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({row["epoch"]: row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the curves of runs.")
    parser.add_argument("history", nargs="+", type=Path)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    figure = curve_figure({path.parent.name: read_history(path) for path in args.history})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=100)


if __name__ == "__main__":
    main()
