"""Loss and accuracy during training."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.entry import NotDrawn
from figures.style import WIDTH, WRONG, styled


def draw_training_curves(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The history that a checkpoint of train.py holds."""
    metadata = inspection.metadata
    if not metadata.history:
        raise NotDrawn("this checkpoint has no history")
    yield Path("training_curves"), training_curves(metadata.history, metadata.config.get("label_smoothing", 0))


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
