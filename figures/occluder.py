"""What the network loses when a square of the image is hidden (Zeiler & Fergus 2014, section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

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
CANDIDATES, COARSE_SQUARES = 64, 4  # images tried to find these, with so many squares along each axis


@dataclass(frozen=True)
class Occlusion:
    """An image under a square of the mean color, at every position of a regular grid.

    channel      of conv5_x: the map with the largest sum in the whole image
    number       of the class whose probability is recorded
    side         of the square, pixels
    centers      rows, and likewise columns, of the squares' centres, pixels
    whole        sum over the channel's map, probability and predicted class of the whole image
    activation   (n, n) float32: sum over the channel's map, by row and column of the centre
    probability  (n, n) float32 in 0..1: of the class
    predicted    (n, n) int64: the most probable class
    """

    channel: int
    number: int
    side: int
    centers: tuple[int, ...]
    whole: tuple[float, float, int]
    activation: Tensor
    probability: Tensor
    predicted: Tensor


def square_side(image_size: int, side: int | None = None) -> int:
    """The side of the square in pixels; by default SQUARE_PIXELS, in proportion to the image."""
    return max(1, round(SQUARE_PIXELS * image_size / 224)) if side is None else side


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
    number: int | None = None,
    side: int | None = None,
    batch_size: int = 24,
    centers: Sequence[int] | None = None,
) -> Occlusion:
    """Hide each square of a normalised image (1, 3, S, S) in turn.

    number      of the class whose probability is recorded; by default the most probable one of the whole image
    side        of the square, pixels; by default `square_side`
    batch_size  squares per forward pass
    centers     rows, and likewise columns, of the squares' centres, pixels; by default `grid_centers`

    Raises ValueError for a square larger than the image, CheckpointError when activations are not finite.
    """
    size = inputs.shape[-1]
    side = square_side(size, side)
    if side > size:
        raise ValueError(f"a square of {side} pixels does not fit an image of {size}")
    features = network.trace(inputs, LAST_STAGE).features[LAST_STAGE]
    channel = features[0].sum((1, 2)).argmax().item()
    probabilities = network.classify(features)[0].softmax(0)
    predicted = probabilities.argmax().item()
    number = predicted if number is None else number
    whole = (features[0, channel].sum().item(), probabilities[number].item(), predicted)
    centers = tuple(grid_centers(size) if centers is None else centers)
    squares = torch.cartesian_prod(torch.tensor(centers), torch.tensor(centers))  # (n * n, 2)
    sums, of_class, most_probable = [], [], []
    for part in tqdm(squares.split(batch_size), "squares", unit="batches", leave=False, disable=None, delay=2):
        features = network.trace(hide_squares(inputs, *part.T, side), LAST_STAGE).features[LAST_STAGE]
        probabilities = network.classify(features).softmax(1)
        sums.append(features[:, channel].sum((1, 2)))
        of_class.append(probabilities[:, number])
        most_probable.append(probabilities.argmax(1))
    maps = [torch.cat(values).cpu().unflatten(0, (len(centers), -1)) for values in (sums, of_class, most_probable)]
    check_finite(maps[0], f"activations of {LAST_STAGE}")
    return Occlusion(channel, number, side, centers, whole, *maps)


def costly_images(inspection: Inspection, settings: Settings) -> tuple[dict[int, float], int]:
    """The EXAMPLES images of different classes that lose most of their class's probability under a coarse grid.

    Returns index in the test split -> the largest loss (0..1), in descending order, and how many images were tried: at
    most CANDIDATES, evenly spread over the searched ones that are classified correctly. If the test images' classes
    are not the network's, the predicted classes take their place.
    """
    predicted, size = inspection.search.logits.argmax(1), inspection.metadata.image_size
    labels = inspection.labels[inspection.searched] if inspection.knows_labels else predicted
    right = (predicted == labels).nonzero().flatten()
    right = right[spread(min(CANDIDATES, len(right)), len(right))] if len(right) else right
    centers = [size * (2 * n + 1) // (2 * COARSE_SQUARES) for n in range(COARSE_SQUARES)]
    losses: dict[int, float] = {}  # by row of the search
    for row in tqdm(right.tolist(), "images to show", unit="images", leave=False, disable=None, delay=2):
        inputs = inspection.inputs(inspection.images[inspection.searched[row]][None])
        found = occlude(inspection.network, inputs, labels[row].item(), settings.occluder, settings.batch_size, centers)
        losses[row] = found.whole[1] - found.probability.min().item()
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
