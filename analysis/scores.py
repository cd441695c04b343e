"""How well the network classifies the searched test images."""

from dataclasses import dataclass

import numpy as np

from analysis.inspection import Inspection


@dataclass(frozen=True)
class Scores:
    """Of n images whose classes are the network's.

    labels, predicted  (n,) int64
    confidence         (n,) probability of the predicted class
    counts             (classes, classes) int64: confusion matrix, true class by predicted class
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return float(self.counts.trace() / self.counts.sum())


def score(inspection: Inspection) -> Scores | None:
    """The network's scores; None if the test images' classes are not the network's."""
    if not inspection.knows_labels:
        return None
    logits = inspection.search.logits
    labels, predicted = inspection.labels[inspection.searched].numpy(), logits.argmax(1).numpy()
    counts = confusion_counts(labels, predicted, len(inspection.metadata.classes))
    return Scores(labels, predicted, logits.softmax(1).amax(1).numpy(), counts)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class (row) is predicted as each (column): (num_classes, num_classes) int64."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
