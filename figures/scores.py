"""How well a network does on its test images, in figures and in plots/summary.json."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.inspection import Subject, to_array
from dataset.preprocess import resize
from figures import training_curves
from figures.style import short

SHOWN = 24  # mistakes
MOST_CLASSES = 50  # that a confusion matrix is legible for


def draw_confusion_matrix(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """Which classes are taken for which."""
    if not subject.comparable or len(subject.classes) > MOST_CLASSES:
        print(f"confusion_matrix: left out, it needs test images of the network's classes, {MOST_CLASSES} at most")
        return
    labels, predicted = labels_and_predictions(subject)
    title = f"accuracy {(labels == predicted).mean():.2%} on {len(labels):,} test images"
    counts = confusion(labels, predicted, len(subject.classes))
    yield Path("confusion_matrix"), training_curves.confusion_matrix(counts, subject.classes, title)


def draw_mistakes(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The misclassified images that the network is most certain of."""
    if not subject.comparable:
        print("mistakes: left out, they need test images of the network's classes")
        return
    labels, predicted = labels_and_predictions(subject)
    confidence = subject.logits(subject.searched.tolist()).softmax(1).amax(1).numpy()
    wrong = np.flatnonzero(labels != predicted)
    if not len(wrong):
        print(f"mistakes: left out, there are none in {len(labels):,} test images")
        return
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    indices = subject.searched[worst]
    captions = [
        f"{short(subject.classes[labels[n]], 12)}, image {index}\n"
        f"as {short(subject.classes[predicted[n]], 14)}, {confidence[n]:.1%}"
        for n, index in zip(worst, indices.tolist(), strict=True)
    ]
    pictures = to_array(resize(subject.test[0][indices], subject.image_size))
    title = f"the {len(worst)} of {len(wrong):,} mistakes on {len(labels):,} test images that the network is surest of"
    yield Path("mistakes"), training_curves.mistakes(pictures, captions, title)


def labels_and_predictions(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Of the searched test images, (n,) int64 each."""
    _ = subject.top  # the search, which is wanted for the summary anyway, mostly finds the logits, too
    predicted = subject.logits(subject.searched.tolist()).argmax(1)
    return subject.test[1][subject.searched].numpy(), predicted.numpy()


def accuracy(subject: Subject) -> float | None:
    """On the searched test images; None where their classes are not the network's."""
    if not subject.comparable:
        return None
    labels, predicted = labels_and_predictions(subject)
    return float((labels == predicted).mean())


def confusion(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """How often each class (row) is taken for each (column): (count, count) int64."""
    return np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)


def summary(subject: Subject) -> dict:
    """What plots/summary.json holds: accuracy, accuracy by class, dead channels by stage, and the settings used.

    A channel is dead when it is zero in every image that was searched.
    """
    found = {
        "checkpoint": str(subject.args.ckpt),
        "data": subject.source,
        "result": subject.info.result,
        "settings": vars(subject.args),
        "images_searched": len(subject.searched),
        "dead_channels": {
            stage: (top.scores[:, 0] <= 0).nonzero().flatten().tolist() for stage, top in subject.top.items()
        },
    }
    if subject.comparable:
        labels, predicted = labels_and_predictions(subject)
        counts = confusion(labels, predicted, len(subject.classes))
        totals = counts.sum(1)
        found["accuracy"] = float(counts.trace() / counts.sum())
        found["accuracy_by_class"] = {
            name: counts[n, n] / totals[n] if totals[n] else None for n, name in enumerate(subject.classes)
        }
    return found
