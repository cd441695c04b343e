"""How well the network classifies the searched test images."""

from dataclasses import dataclass

import numpy as np

from analysis.inspection import Inspection


@dataclass(frozen=True)
class Scores:
    """Of n images whose classes are the network's."""

    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64
    confidence: np.ndarray  # (n,) probability of the predicted class

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return float((self.labels == self.predicted).mean())


def score(inspection: Inspection) -> Scores | None:
    """The network's scores; None if the test images' classes are not the network's."""
    if not inspection.knows_labels:
        return None
    labels, logits = inspection.labels[inspection.searched].numpy(), inspection.search.logits
    return Scores(labels, logits.argmax(1).numpy(), logits.softmax(1).amax(1).numpy())
