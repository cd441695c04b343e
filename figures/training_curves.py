"""Loss and accuracy during training."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.inspection import LoadedNetwork
from analysis.settings import Settings
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, heading, styled


@register(
    "training_curves",
    "Loss and accuracy during training",
    "A growing gap between the training and the test curve is overfitting.",
    needs="checkpoint",
    section="curves",
)
def draw_training_curves(inspection: LoadedNetwork, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The history that a checkpoint of train.py holds."""
    metadata = inspection.metadata
    if not metadata.history:
        raise NotDrawn("this checkpoint has no history")
    yield Path("training_curves"), training_curves(metadata.history, metadata.config.get("label_smoothing", 0))


@styled
def training_curves(history: list[dict], label_smoothing: float = 0) -> Figure:
    """Loss and accuracy over the iterations, from the lines of history.jsonl, with their last values.

    Test points of different image sizes are not connected, and each size has a band with its name. Training lines over
    few iterations, as at the end of a run, are mostly noise and left out. label_smoothing is named in the legend,
    because it raises the training loss alone.
    """
    figure = Figure((WIDTH_INCHES, 3), layout="constrained")
    train, test = ([entry for entry in history if entry["kind"] == kind] for kind in ("train", "test"))
    lines = {"train": [_without_short_lines(train)] if train else [], "test": _by_image_size(test)}
    for axes, name, factor, text in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("{} {:.3f}", "{} {:.2f} %"), strict=True
    ):
        for (kind, segments), color in zip(lines.items(), ("#2166ac", ERROR_COLOR), strict=True):
            for segment in segments:
                steps, values = [entry["step"] for entry in segment], [factor * entry[name] for entry in segment]
                style = "-" if kind == "train" and len(segment) >= 40 else ".-"
                line = axes.plot(steps, values, style, color=color, markersize=4, linewidth=1)[0]
            if segments:  # the legend has the last segment's last value
                smoothing = f" (label smoothing {label_smoothing:g})" if label_smoothing else ""
                line.set_label(text.format(kind, values[-1]) + smoothing * ((kind, name) == ("train", "loss")))
        _mark_image_sizes(axes, history)
        for step in _learning_rate_steps(train):
            axes.axvline(step, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss (cross-entropy)" if name == "loss" else "accuracy (%)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.92", linewidth=0.5)
        axes.set_axisbelow(True)
        if axes.lines:
            axes.legend(title="last values", title_fontsize=7, frameon=False, alignment="left")
    notes = ["Train: mean since the point before, with augmentation. Test: after an epoch, without it."]
    notes += ["Bands: the size of the images."] * (len(_by_image_size(history)) > 1)
    notes += ["Dotted: the learning rate falls."] * bool(_learning_rate_steps(train))
    heading(figure, "Loss and accuracy during training", " ".join(notes))
    return figure


def _without_short_lines(lines: list[dict]) -> list[dict]:
    """Without those over less than half as many iterations as the line before."""
    counts = np.diff([entry["step"] for entry in lines], prepend=0)
    before = np.concatenate([counts[:1], counts[:-1]])
    return [entry for entry, keeps in zip(lines, 2 * counts >= before, strict=True) if keeps]


def _by_image_size(lines: list[dict]) -> list[list[dict]]:
    """Consecutive lines of one image size."""
    return [list(group) for _, group in groupby(lines, key=lambda entry: entry.get("image_size"))]


def _mark_image_sizes(axes: Axes, history: list[dict]) -> None:
    """Bands of two shades with the image size in pixels above each, if there are several sizes."""
    segments = _by_image_size(history)
    if len(segments) < 2:
        return
    start = 0
    for n, segment in enumerate(segments):
        end = segment[-1]["step"]
        if n % 2:
            axes.axvspan(start, end, color="0.95", linewidth=0, zorder=-1)
        label = str(segment[0]["image_size"]) + " px" * (n == 0)
        axes.text((start + end) / 2, 1.01, label, ha="center", transform=axes.get_xaxis_transform())
        start = end
    axes.set_xlim(right=start)


def _learning_rate_steps(train: list[dict]) -> list[int]:
    """The iterations after which a constant learning rate falls to less than two thirds."""
    return [
        before["step"]
        for earlier, before, after in zip(train, train[1:], train[2:], strict=False)
        if earlier["learning_rate"] == before["learning_rate"] > 1.5 * after["learning_rate"]
    ]
