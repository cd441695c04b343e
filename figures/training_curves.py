"""Lists of numbers -> matplotlib figures of how well a network does. Knows no torch."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import WIDTH, WRONG, heading, short, styled


@styled
def training_curves(history: list[dict], label_smoothing: float = 0) -> Figure:
    """Loss and accuracy over the iterations, from the lines of history.jsonl, with their last values.

    Lines over few iterations, as at a run's end, are left out: they are mostly chance. label_smoothing, which is in the
    training loss alone, is told beside it.
    """
    figure = Figure((WIDTH, 2.6), layout="constrained")
    train, test = ([entry for entry in history if entry["kind"] == kind] for kind in ("train", "test"))
    shown = {"train": _long_enough(train), "test": test}
    smoothed = f" (label smoothing {label_smoothing:g})" if label_smoothing else ""
    for axes, name, factor, text in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("{} {:.3f}", "{} {:.2f} %"), strict=True
    ):
        for (kind, lines), colour in zip(shown.items(), ("#2166ac", WRONG), strict=True):
            if lines:
                values = [factor * entry[name] for entry in lines]
                steps = [entry["step"] for entry in lines]
                label = text.format(kind, values[-1]) + (smoothed if (kind, name) == ("train", "loss") else "")
                style = "-" if kind == "train" and len(lines) >= 40 else ".-"
                axes.plot(steps, values, style, color=colour, markersize=3, linewidth=1, label=label)
        _mark_changes(axes, history, train)
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss (cross-entropy)" if name == "loss" else "accuracy (%)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.92", linewidth=0.5)
        axes.set_axisbelow(True)
        if axes.lines:
            axes.legend(title="last values", title_fontsize=6, frameon=False)
    return figure


def _long_enough(lines: list[dict]) -> list[dict]:
    """Without those over less than half as many iterations as the line before."""
    counts = np.diff([entry["step"] for entry in lines], prepend=0)
    before = np.concatenate([counts[:1], counts[:-1]])
    return [entry for entry, keeps in zip(lines, 2 * counts >= before, strict=True) if keeps]


def _mark_changes(axes: Axes, history: list[dict], train: list[dict]) -> None:
    """Dots at the learning rate's steps, constants that fall to below two thirds; grey where the image size changes."""
    for earlier, before, after in zip(train, train[1:], train[2:], strict=False):
        rates = [entry["learning_rate"] for entry in (earlier, before, after)]
        if rates[0] == rates[1] > 1.5 * rates[2]:
            axes.axvline(before["step"], color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    begins = [(0, history[0].get("image_size"))] if history else []
    begins += [
        (before["step"], after["image_size"])
        for before, after in pairwise(history)
        if before.get("image_size") != after.get("image_size")
    ]
    for step, size in begins if len(begins) > 1 else ():
        axes.axvline(step, color="0.8", linewidth=0.8, zorder=0)
        axes.text(step, 1, f" {size}x{size}", fontsize=6, va="bottom", transform=axes.get_xaxis_transform())


@styled
def confusion_matrix(counts: np.ndarray, names: list[str], title: str) -> Figure:
    """How often each class (row) is seen as each (column): (n, n) counts, shown as shares of the row in percent.

    With more than 20 classes the figure grows to the width of the page and leaves out the numbers.
    """
    count = len(names)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    width = WIDTH * 0.75 if count <= 20 else WIDTH
    figure = Figure((width, width * 0.88), layout="compressed")
    axes = figure.subplots()
    wrong = np.where(np.eye(count, dtype=bool), 0, shares)
    true, seen = np.unravel_index(wrong.argmax(), wrong.shape)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    labels = [short(name, 14) for name in names]
    tilt = 45 if count <= 20 else 90
    axes.set_xticks(range(count), labels, rotation=tilt, ha="right", va="center", rotation_mode="anchor")
    axes.set_yticks(range(count), [f"{label} ({total})" for label, total in zip(labels, counts.sum(1), strict=True)])
    for row, column in np.argwhere(counts) if count <= 20 else ():
        colour = "white" if shares[row, column] > 55 else "black"
        axes.text(column, row, f"{shares[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=6)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (its images)")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class (%)")
    most = f"most often mistaken: {wrong.max():.1f} % of {labels[true]} seen as {labels[seen]}"
    heading(figure, title, most if wrong.any() else "no mistakes", width=80)
    return figure


@styled
def mistakes(pictures: np.ndarray, captions: list[str], title: str) -> Figure:
    """Misclassified images (n, H, W, 3) in rows of six, each under what it was taken for."""
    columns, count = 6, len(captions)
    rows = max(1, -(-count // columns))
    figure = Figure((WIDTH, 0.35 + rows * (WIDTH / columns + 0.25)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, caption in zip(grid, pictures, captions, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, fontsize=6)
    heading(figure, title)
    return figure
