"""What the network loses when a square of the image is hidden (Zeiler & Fergus 2014, section 4.2 and figure 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from network import STAGES, ResNet18

STAGE = STAGES[-1]
SIDE, STEP = 48, 8  # pixels, for inputs of 224 pixels
LEAST_STEP = 2


@dataclass(frozen=True)
class Occlusion:
    """An image under a square of the mean color, at every place of a regular grid.

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
    """The side of the square in pixels; by default SIDE, in proportion to the image."""
    return max(1, round(SIDE * image_size / 224)) if side is None else side


def grid_centers(image_size: int) -> list[int]:
    """The centres along one axis: STEP pixels apart, in proportion to the image, with equal margins."""
    step = max(LEAST_STEP, round(STEP * image_size / 224))
    count = image_size // step
    first = (image_size - (count - 1) * step) // 2
    return [first + n * step for n in range(count)]


def covered(centers: Sequence[int] | Tensor, side: int, length: int) -> Tensor:
    """What squares around these centres cover along one axis: (n, length) bool.

    A square covers center - side // 2 to center - side // 2 + side - 1, clipped at the border.
    """
    first = torch.as_tensor(centers)[:, None] - side // 2
    place = torch.arange(length)
    return (first <= place) & (place < first + side)


def hide_squares(inputs: Tensor, rows: Sequence[int], columns: Sequence[int], side: int) -> Tensor:
    """Normalised images under squares of the mean color, which is zero.

    inputs         (n, 3, H, W), or (1, 3, H, W) for the same image under every square
    rows, columns  the centre of each square, pixels

    Returns (n, 3, H, W).
    """
    down, across = covered(rows, side, inputs.shape[2]), covered(columns, side, inputs.shape[3])
    hidden = (down[:, None, :, None] & across[:, None, None, :]).to(inputs.device)
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
    features = network.trace(inputs, STAGE).features[STAGE]
    channel = features[0].sum((1, 2)).argmax().item()
    probabilities = network.classify(features)[0].softmax(0)
    predicted = probabilities.argmax().item()
    number = predicted if number is None else number
    centers = list(grid_centers(size) if centers is None else centers)
    places = torch.cartesian_prod(torch.tensor(centers), torch.tensor(centers))
    sums, chances, labels = [], [], []
    for part in tqdm(places.split(batch_size), "squares", unit="batches", leave=False, disable=None, delay=2):
        hidden = network.trace(hide_squares(inputs, part[:, 0], part[:, 1], side), STAGE).features[STAGE]
        found = network.classify(hidden).softmax(1)
        sums.append(hidden[:, channel].sum((1, 2)))
        chances.append(found[:, number])
        labels.append(found.argmax(1))
    grid = (len(centers), len(centers))
    activation = check_finite(torch.cat(sums).cpu(), f"activations of {STAGE}")
    return Occlusion(
        channel,
        number,
        side,
        tuple(centers),
        (features[0, channel].sum().item(), probabilities[number].item(), predicted),
        activation.unflatten(0, grid),
        torch.cat(chances).cpu().unflatten(0, grid),
        torch.cat(labels).cpu().unflatten(0, grid),
    )
