"""What the network loses when a square of the image is hidden (Zeiler & Fergus 2014, section 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.inspection import Inspection, spread
from analysis.settings import Settings
from network import STAGES, ResNet18

LAST_STAGE = STAGES[-1]
SQUARE_PIXELS, STEP_PIXELS = 48, 8  # for inputs of 224 pixels
MIN_STEP_PIXELS = 2
EXAMPLES = 3  # images by default, and other images that excite the map
CANDIDATES, COARSE_SQUARES = 64, 4  # images tried to find these, and the number of squares along each axis


def square_side(image_size: int) -> int:
    """The side of the square in pixels: SQUARE_PIXELS, in proportion to the image."""
    return max(1, round(SQUARE_PIXELS * image_size / 224))


def grid_centers(image_size: int) -> list[int]:
    """The centres along one axis: STEP_PIXELS apart, in proportion to the image, with equal margins."""
    step = max(MIN_STEP_PIXELS, round(STEP_PIXELS * image_size / 224))
    count = image_size // step
    first = (image_size - (count - 1) * step) // 2
    return [first + n * step for n in range(count)]


def hide_squares(inputs: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Normalised images under squares of the mean color, which is zero: (n, 3, H, W).

    A square covers center - side // 2 to center - side // 2 + side - 1, clipped at the border.

    inputs         (n, 3, H, W), or (1, 3, H, W) for the same image under every square
    rows, columns  (n,) int64: the centre of each square, pixels
    """
    covered = []
    for centers, length in zip((rows, columns), inputs.shape[2:], strict=True):
        offsets = torch.arange(length) - (centers[:, None] - side // 2)
        covered.append((0 <= offsets) & (offsets < side))  # (n, length)
    hidden = (covered[0][:, None, :, None] & covered[1][:, None, None, :]).to(inputs.device)
    return inputs.masked_fill(hidden, 0).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def occlude(
    network: ResNet18,
    inputs: Tensor,
    classes: Sequence[str],
    label: str | None = None,
    side: int | None = None,
    batch_size: int = 24,
    centers: Sequence[int] | None = None,
) -> dict:
    """Hide each square of a normalised image (1, 3, S, S) in turn.

    classes     names of the network's
    label       the class whose probability is recorded; if it is not one of them, the whole image's most probable one
    side        of the square, pixels, at most S; by default `square_side`
    batch_size  squares per forward pass
    centers     rows, and likewise columns, of the squares' centres, pixels; by default `grid_centers`

    Returns the image's part of occlusion.json, with lists by row and column of the centre:

    class          the one whose probability is recorded
    channel        of conv5_x: the map with the largest sum in the whole image
    side, rows, columns   of the squares: their side and their centres, pixels
    whole          of the whole image: sum over the channel's map, probability, and predicted class
    activation, probability, predicted   the same under each square

    Raises CheckpointError when activations are not finite.
    """
    size = inputs.shape[-1]
    side, centers = side or square_side(size), list(centers or grid_centers(size))
    features = network.trace(inputs, LAST_STAGE).features[LAST_STAGE]
    channel = features[0].sum((1, 2)).argmax().item()
    probabilities = network.classify(features)[0].softmax(0)
    predicted = probabilities.argmax().item()
    number = classes.index(label) if label in classes else predicted
    squares = torch.cartesian_prod(torch.tensor(centers), torch.tensor(centers))  # (n * n, 2)
    measured = []
    for part in tqdm(squares.split(batch_size), "squares", unit="batches", leave=False, disable=None, delay=2):
        hidden = network.trace(hide_squares(inputs, *part.T, side), LAST_STAGE).features[LAST_STAGE]
        under = network.classify(hidden).softmax(1)
        measured.append((hidden[:, channel].sum((1, 2)), under[:, number], under.argmax(1)))
    maps = [torch.cat(values).cpu().unflatten(0, (len(centers), -1)) for values in zip(*measured, strict=True)]
    check_finite(maps[0], f"activations of {LAST_STAGE}")
    whole = (features[0, channel].sum().item(), probabilities[number].item(), classes[predicted])
    return {
        "class": classes[number],
        "channel": channel,
        "side": side,
        "rows": centers,
        "columns": centers,
        "whole": dict(zip(("activation", "probability", "predicted"), whole, strict=True)),
        "activation": maps[0].tolist(),
        "probability": maps[1].tolist(),
        "predicted": [[classes[number] for number in row] for row in maps[2].tolist()],
    }


def costly_images(inspection: Inspection, settings: Settings) -> tuple[dict[int, float], int]:
    """The EXAMPLES images of different classes that lose most of their class's probability under a coarse grid.

    Returns index in the test split -> the largest loss (0..1), in descending order, and how many images were tried: at
    most CANDIDATES, evenly spread over the searched ones that are classified correctly. If the test images' classes
    are not the network's, the predicted classes take their place.
    """
    predicted, size = inspection.search.logits.argmax(1), inspection.metadata.image_size
    labels, classes = inspection.labels[inspection.searched], inspection.metadata.classes
    labels = labels if inspection.knows_labels else predicted
    right = (predicted == labels).nonzero().flatten()
    right = right[spread(min(CANDIDATES, len(right)), len(right))] if len(right) else right
    centers = [size * (2 * n + 1) // (2 * COARSE_SQUARES) for n in range(COARSE_SQUARES)]
    losses: dict[int, float] = {}  # by row of the search
    for row in tqdm(right.tolist(), "images to show", unit="images", leave=False, disable=None, delay=2):
        inputs = inspection.inputs(inspection.images[inspection.searched[row]][None])
        label = classes[labels[row]]
        entry = occlude(inspection.network, inputs, classes, label, settings.occluder, settings.batch_size, centers)
        losses[row] = entry["whole"]["probability"] - min(map(min, entry["probability"]))
    of_class: dict[int, int] = {}  # class -> row
    for row in sorted(losses, key=losses.get, reverse=True):
        of_class.setdefault(labels[row].item(), row)
    chosen = list(of_class.values())[:EXAMPLES]
    return {inspection.searched[row].item(): losses[row] for row in chosen}, len(right)


def most_exciting_others(inspection: Inspection, channel: int, origin: int | str) -> Tensor:
    """Indices of the EXAMPLES searched images with the channel's highest peaks above zero, without the image itself."""
    peaks = inspection.search.peaks[LAST_STAGE][:, channel]
    order = peaks.sort(descending=True, stable=True).indices
    indices = inspection.searched[order[peaks[order] > 0]]
    return (indices[indices != origin] if isinstance(origin, int) else indices)[:EXAMPLES]
