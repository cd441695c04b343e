"""Which test images stand for the others: one of each class."""

from analysis.inspection import Inspection, Picture, picture_of

CONFIDENT = 0.5  # probability


def one_per_class(inspection: Inspection, count: int) -> list[Picture]:
    """Up to `count` searched images of different classes: of each class, the first that is recognised confidently.

    That is, classified correctly with a probability of at least CONFIDENT. If these are too few, classes without one
    add their first correctly classified image, then their first image. If the test images' classes are not the
    network's, the predicted classes take their place.
    """
    confidence, predicted = inspection.search.logits.softmax(1).max(1)
    labels = inspection.labels[inspection.searched] if inspection.knows_labels else predicted
    right = predicted == labels
    first: dict[int, int] = {}  # class -> index in the test split
    for candidates in (right & (confidence >= CONFIDENT), right, ~right):
        for place in candidates.nonzero().flatten().tolist():
            first.setdefault(labels[place].item(), inspection.searched[place].item())
    return [picture_of(inspection, index) for index in list(first.values())[:count]]


def class_to_explain(inspection: Inspection, picture: Picture, predicted: int) -> int:
    """The number of the picture's class; of the predicted one if its class is unknown, or not the network's."""
    classes = inspection.metadata.classes
    return classes.index(picture.label) if picture.label in classes else predicted
