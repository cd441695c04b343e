"""How well the network classifies: confusion matrix, mistakes, and the content of summary.json."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.activations import split_dead_channels
from analysis.inspection import Inspection, LoadedNetwork
from analysis.scores import Scores, score
from analysis.settings import Settings
from figures.image_grid import to_array
from figures.registry import NotDrawn, register
from figures.style import WIDTH_INCHES, format_percent, heading, styled, truncate
from network import CHANNELS

MISTAKES_SHOWN = 24
MAX_CLASSES = 50  # that a confusion matrix is legible for
MAX_CLASSES_WITH_DECIMALS = 10  # whose cells are wider than "100.0 %"
MAX_CLASSES_WITH_SIGN = 12  # whose cells are wider than "100 %"


@register(
    "confusion_matrix",
    "Confusion matrix",
    "Each row is a true class, in percent of its images; colors show the mistakes alone, on their own scale.",
    section="results",
)
def draw_confusion_matrix(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """Which classes are predicted as which."""
    scores, classes = score(inspection), inspection.metadata.classes
    if not scores or len(classes) > MAX_CLASSES:
        raise NotDrawn(f"it needs test images of the network's classes, {MAX_CLASSES} at most")
    title = f"Accuracy {format_percent(scores.accuracy, 2)} on {len(scores.labels):,} test images"
    yield Path("confusion_matrix"), confusion_figure(scores.counts, classes, title)


@register(
    "mistakes",
    "Most confident mistakes",
    "Each image is captioned with its class and the prediction: look for wrong labels and for classes that look alike.",
    section="results",
)
def draw_mistakes(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The misclassified images with the highest confidence."""
    if not (scores := score(inspection)):
        raise NotDrawn("they need test images of the network's classes")
    wrong = np.flatnonzero(scores.labels != scores.predicted)
    if not len(wrong):
        raise NotDrawn(f"there are none in {len(scores.labels):,} test images")
    worst = wrong[np.argsort(-scores.confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    indices, classes = inspection.searched[worst], inspection.metadata.classes
    captions = [
        f"{truncate(classes[scores.labels[n]], 12)}, image {index}\n"
        f"as {truncate(classes[scores.predicted[n]], 14)}, {format_percent(scores.confidence[n], 1)}"
        for n, index in zip(worst, indices.tolist(), strict=True)
    ]
    pictures = to_array(inspection.resized(inspection.images[indices]))
    total, searched = len(wrong), len(scores.labels)
    title = f"The {len(worst)} most confident of {total:,} mistakes on {searched:,} test images"
    yield Path("mistakes"), mistakes_figure(pictures, captions, title)


def summary(inspection: LoadedNetwork, settings: Settings) -> dict:
    """What summary.json says of the network and the settings, and after a search, of the images searched.

    That is: accuracy, accuracy by class, classes never predicted, dead channels by stage. A channel is dead if it is
    zero at all units searched, in every searched image.
    """
    content = {
        "checkpoint": str(inspection.checkpoint),
        "data": inspection.source,
        "result": inspection.metadata.result,
        "settings": asdict(settings) | {"device": str(inspection.device)},
    }
    if not isinstance(inspection, Inspection):
        return content
    top = inspection.search.top.items()
    content["images_searched"] = len(inspection.searched)
    content["dead_channels"] = {stage: split_dead_channels(best, range(CHANNELS[stage]))[1] for stage, best in top}
    if scores := score(inspection):
        classes = inspection.metadata.classes
        if scores.accuracy <= 1 / len(classes):
            print(f"warning: an accuracy of {scores.accuracy:.1%}, not above chance: are the classes in another order?")
        content |= {
            "accuracy": scores.accuracy,
            "accuracy_by_class": accuracy_by_class(inspection, scores),
            "never_predicted": [classes[n] for n in np.flatnonzero(scores.counts.sum(0) == 0)],
        }
    return content


def accuracy_by_class(inspection: Inspection, scores: Scores) -> dict[str, float | None]:
    """Class -> accuracy in 0..1 on its images; None without any."""
    totals = scores.counts.sum(1)
    return {
        name: float(scores.counts[n, n] / totals[n]) if totals[n] else None
        for n, name in enumerate(inspection.metadata.classes)
    }


@styled
def confusion_figure(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Confusion matrix (n, n), true class by predicted class; beyond 20 classes without numbers.

    The diagonal is white, so that the scale is that of the mistakes.
    """
    count = len(names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(count, dtype=bool), 0, shares)
    figure = Figure((WIDTH_INCHES, WIDTH_INCHES * 0.86), layout="compressed")
    axes = figure.subplots()
    largest = float(wrong.max()) or 1.0
    picture = axes.imshow(np.ma.masked_equal(100 * wrong, 0), cmap="Oranges", vmin=0, vmax=100 * largest)
    labels = [truncate(name, 14) for name in names]
    tilt = 45 if count <= 20 else 90
    axes.set_xticks(range(count), labels, rotation=tilt, ha="right", va="center", rotation_mode="anchor")
    axes.set_yticks(range(count), [f"{label} ({total})" for label, total in zip(labels, counts.sum(1), strict=True)])
    for row, column in np.argwhere(counts) if count <= 20 else ():
        color = "white" if row != column and shares[row, column] > 0.6 * largest else "black"
        number = format_percent(shares[row, column], int(count <= MAX_CLASSES_WITH_DECIMALS))
        number = number if count <= MAX_CLASSES_WITH_SIGN else number.removesuffix(" %")
        weight = "bold" if row == column else "normal"
        axes.text(column, row, number, ha="center", va="center", color=color, weight=weight)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (number of images)")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="mistaken for the column's class (% of the row's images)")
    true, seen = np.unravel_index(wrong.argmax(), wrong.shape)
    most = f"Most frequent confusion: {format_percent(wrong.max(), 1)} of {labels[true]} predicted as {labels[seen]}."
    never = [label for label, total in zip(labels, counts.sum(0), strict=True) if not total]
    notes = [f"Never predicted: {', '.join(never)}."] if never else []
    how = "A row's numbers are percentages of a true class. The diagonal is right; the colors show mistakes alone."
    heading(figure, title, how, most if wrong.any() else "No mistakes.", *notes)
    return figure


@styled
def mistakes_figure(pictures: np.ndarray, captions: list[str], title: str) -> Figure:
    """Images (n, H, W, 3) in rows of six, each with its caption."""
    columns, count = 6, len(captions)
    rows = max(1, -(-count // columns))
    figure = Figure((WIDTH_INCHES, 0.55 + rows * (WIDTH_INCHES / columns + 0.25)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, caption in zip(grid, pictures, captions, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, loc="left")
    first, second = "the class and the index in the test split", "the predicted class and its probability"
    heading(figure, title, f"First line: {first}. Second line: {second}.")
    return figure
