"""How well the network classifies: confusion matrix, mistakes, and the content of summary.json."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.activations import split_dead_channels
from analysis.inspection import Inspection, LoadedNetwork, Scores, score
from analysis.settings import Settings
from figures.image_grid import draw_pictures, to_array
from figures.registry import NotDrawn, register
from figures.style import WIDTH_INCHES, format_percent, new_figure, styled, truncate
from network import CHANNELS

MISTAKES_SHOWN, MISTAKES_ACROSS = 24, 6
MAX_CLASSES, MAX_CLASSES_WITH_NUMBERS = 50, 20  # that a confusion matrix, and a number in each cell, are legible for
MAX_CLASSES_WITH_DECIMALS = 10  # whose cells are wider than "100.0 %"


def confusion_counts(scores: Scores, num_classes: int) -> np.ndarray:
    """How often each class (row) is predicted as each (column): (num_classes, num_classes) int64."""
    pairs = scores.labels * num_classes + scores.predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def summary(inspection: LoadedNetwork, settings: Settings) -> dict:
    """What summary.json says of the network and the settings, and after a search, of the images searched.

    That is: accuracy, accuracy by class (None without images), classes never predicted, dead channels by stage. A
    channel is dead if it is zero at all units searched, in every searched image.
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
        content["accuracy"] = accuracy = float((scores.labels == scores.predicted).mean())
        if accuracy <= 1 / len(classes):
            print(f"warning: an accuracy of {accuracy:.1%}, not above chance: are the classes in another order?")
        counts = confusion_counts(scores, len(classes))
        rows = zip(classes, counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)
        content["accuracy_by_class"] = {name: right / total if total else None for name, right, total in rows}
        content["never_predicted"] = [classes[n] for n in np.flatnonzero(counts.sum(0) == 0)]
    return content


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
    yield Path("confusion_matrix"), confusion_figure(confusion_counts(scores, len(classes)), classes)


@styled
def confusion_figure(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix (n, n), true class by predicted class. The diagonal is white: the scale is the mistakes'."""
    count, totals = len(names), counts.sum(1)
    shares = counts / np.maximum(totals[:, None], 1)
    wrong = np.where(np.eye(count, dtype=bool), 0, shares)
    largest = float(wrong.max()) or 1.0
    has_numbers = count <= MAX_CLASSES_WITH_NUMBERS
    true, seen = np.unravel_index(wrong.argmax(), wrong.shape)
    labels = [truncate(name, 14) for name in names]
    most = f"Most frequent confusion: {format_percent(wrong.max(), 1)} of {labels[true]} predicted as {labels[seen]}."
    how = "A row's numbers are percentages of a true class. The diagonal is right; the colors show mistakes alone."
    title = f"Accuracy {format_percent(counts.trace() / counts.sum(), 2)} on {counts.sum():,} test images"
    figure = new_figure(WIDTH_INCHES * 0.8, title, how, most if wrong.any() else "No mistakes.", compress=True)
    axes = figure.subplots()
    picture = axes.imshow(np.ma.masked_equal(100 * wrong, 0), cmap="Oranges", vmin=0, vmax=100 * largest)
    tilted = {"rotation": 45 if has_numbers else 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    axes.set_xticks(range(count), labels, **tilted)
    axes.set_yticks(range(count), [f"{label} ({total})" for label, total in zip(labels, totals, strict=True)])
    for row, column in np.argwhere(counts) if has_numbers else ():
        color = "white" if row != column and shares[row, column] > 0.6 * largest else "black"
        percent = format_percent(shares[row, column], int(count <= MAX_CLASSES_WITH_DECIMALS))
        number = percent if count <= MAX_CLASSES_WITH_DECIMALS else percent.removesuffix(" %")
        weight = "bold" if row == column else "normal"
        axes.text(column, row, number, ha="center", va="center", color=color, weight=weight)
    edges = np.arange(1, count) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted class", ylabel="true class (number of images)")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="mistaken for the column's class (% of the row's images)")
    return figure


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
    title = f"The {len(worst)} most confident of {len(wrong):,} mistakes on {len(scores.labels):,} test images"
    yield Path("mistakes"), mistakes_figure(inspection, scores, worst, title)


@styled
def mistakes_figure(inspection: Inspection, scores: Scores, rows: np.ndarray, title: str) -> Figure:
    """Searched images, each with its caption. rows: their numbers in `scores`."""
    height = WIDTH_INCHES / MISTAKES_ACROSS + 0.25
    lines, classes = -(-len(rows) // MISTAKES_ACROSS), inspection.metadata.classes
    indices, captions = inspection.searched[rows], []
    for index, row in zip(indices.tolist(), rows, strict=True):
        label, predicted = (truncate(classes[numbers[row]], 10) for numbers in (scores.labels, scores.predicted))
        captions.append(f"{label}, image {index}\nas {predicted}, {format_percent(scores.confidence[row], 1)}")
    how = "First line: the class and the index in the test split. Second line: the predicted class and its probability."
    figure = new_figure(0.05 + lines * height, title, how, w_pad=0.03, h_pad=0.05)
    draw_pictures(figure, MISTAKES_ACROSS, to_array(inspection.resized(inspection.images[indices])), captions, pad=2)
    return figure
