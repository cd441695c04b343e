"""Loss and accuracy during training."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.inspection import LoadedNetwork
from analysis.settings import Settings
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, new_figure, styled


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
    yield Path("training_curves"), training_curves(metadata.history, metadata.config)


@styled
def training_curves(history: list[dict], config: Mapping) -> Figure:
    """Loss and accuracy over the iterations, from the lines of history.jsonl, with their last values.

    Test points of different image sizes are not connected. Training lines over few iterations, as at the end of a run,
    are mostly noise and left out. Of the flags in config, init and label_smoothing, which raises the training loss
    alone, are named.
    """
    train, test = ([entry for entry in history if entry["kind"] == kind] for kind in ("train", "test"))
    lines = {"train": [_without_short_lines(train)] if train else [], "test": _by_image_size(test)}
    smoothing = f" (label smoothing {config['label_smoothing']:g})" if config.get("label_smoothing") else ""
    sizes = _by_image_size(history)
    falls = [  # the iterations after which a constant learning rate falls to less than two thirds
        before["step"]
        for earlier, before, after in zip(train, train[1:], train[2:], strict=False)
        if earlier["learning_rate"] == before["learning_rate"] > 1.5 * after["learning_rate"]
    ]
    notes = ["Train: mean since the point before, with augmentation. Test: after an epoch, without it."]
    notes += ["Bands: the size of the images."] * (len(sizes) > 1) + ["Dotted: the learning rate falls."] * bool(falls)
    notes += [f"The run began with the weights of {Path(config['init']).name}."] if config.get("init") else []
    figure = new_figure(2.6, "Loss and accuracy during training", " ".join(notes))
    panels = ("loss", "loss (cross-entropy)", 1, "{} {:.3f}"), ("accuracy", "accuracy (%)", 100, "{} {:.2f} %")
    for axes, (name, label, factor, last_value) in zip(figure.subplots(1, 2), panels, strict=True):
        for (kind, segments), color in zip(lines.items(), ("#2166ac", ERROR_COLOR), strict=True):
            for segment in segments:
                steps, values = [entry["step"] for entry in segment], [factor * entry[name] for entry in segment]
                marks = "-" if kind == "train" and len(segment) >= 40 else ".-"
                line = axes.plot(steps, values, marks, color=color, markersize=4, linewidth=1)[0]
            if segments:  # the legend has the last segment's last value
                line.set_label(last_value.format(kind, values[-1]) + smoothing * ((kind, name) == ("train", "loss")))
        if len(sizes) > 1:
            _mark_image_sizes(axes, sizes)
        for step in falls:
            axes.axvline(step, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        axes.set(xlabel="iteration", ylabel=label, axisbelow=True)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.92", linewidth=0.5)
        if axes.lines:
            axes.legend(title="last values", title_fontsize=7, frameon=False, alignment="left")
    return figure


def _without_short_lines(lines: list[dict]) -> list[dict]:
    """Without those over less than half as many iterations as the line before."""
    counts = np.diff([entry["step"] for entry in lines], prepend=0)
    before = np.concatenate([counts[:1], counts[:-1]])
    return [entry for entry, keeps in zip(lines, 2 * counts >= before, strict=True) if keeps]


def _by_image_size(lines: list[dict]) -> list[list[dict]]:
    """Consecutive lines of one image size."""
    return [list(group) for _, group in groupby(lines, key=lambda entry: entry.get("image_size"))]


def _mark_image_sizes(axes: Axes, sizes: list[list[dict]]) -> None:
    """Bands of two shades with the image size in pixels above each."""
    ends = [segment[-1]["step"] for segment in sizes]
    for n, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if n % 2:
            axes.axvspan(start, end, color="0.95", linewidth=0, zorder=-1)
        label = str(sizes[n][0]["image_size"]) + " px" * (n == 0)
        axes.text((start + end) / 2, 1.01, label, ha="center", transform=axes.get_xaxis_transform())
    axes.set_xlim(right=ends[-1])
