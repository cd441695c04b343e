"""How much features change when the image is shifted, scaled or rotated (Zeiler & Fergus 2014, figure 5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from network import ResNet18

LAYERS = ("conv1", "conv5_x", "pooled")
MEASURES = (*LAYERS, "probability")


@dataclass(frozen=True)
class Transformation:
    """A way to change an image, by one number.

    apply    (images (N, 3, S, S), value) -> the changed images
    values   of the curves, the neutral one among them
    neutral  the value that changes nothing
    every    of these values, the share 1 / every is used for many images
    label    what the values are, with their unit
    """

    apply: Callable[[Tensor, float], Tensor]
    values: tuple[float, ...]
    neutral: float
    every: int
    label: str


@dataclass(frozen=True)
class Sensitivity:
    """What a transformation changed in N images, at each of m values.

    values    of the transformation, (m,)
    measures  name of MEASURES -> (N, m) float64: for a layer, the Euclidean distance to the features of the unchanged
              image, divided by their norm (NaN where that is zero); for "probability", that of each image's class
    """

    values: tuple[float, ...]
    measures: dict[str, Tensor]


def shift_down(images: Tensor, pixels: float) -> Tensor:
    """Images (N, 3, S, S) moved down by a number of pixels, for images of 224: rounded, and in proportion to S."""
    by = shift_in_pixels(pixels, images.shape[2])
    return F.pad(images, (0, 0, by, -by))


def shift_in_pixels(pixels: float, image_size: int) -> int:
    """A shift of an image of 224 pixels -> that of an image of another size."""
    return round(pixels * image_size / 224)


def enlarge(images: Tensor, scale: float) -> Tensor:
    """Images (N, 3, S, S) enlarged about their centre, bilinearly; what leaves the frame is lost."""
    return _sample(images, 1 / scale, 0.0)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images (N, 3, S, S) rotated counter-clockwise about their centre, bilinearly; zero where they do not reach."""
    return _sample(images, math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


def _sample(images: Tensor, along: float, across: float) -> Tensor:
    """The pixel at (x, y) from the centre is read at (along x - across y, across x + along y)."""
    matrix = torch.tensor([[along, -across, 0.0], [across, along, 0.0]], dtype=images.dtype).to(images.device)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


TRANSFORMATIONS = {
    "translation": Transformation(shift_down, tuple(range(-60, 61, 10)), 0, 2, "vertical shift (px)"),
    "scale": Transformation(enlarge, tuple(1 + n / 10 for n in range(9)), 1, 2, "scale"),
    "rotation": Transformation(rotate, tuple(range(0, 351, 10)), 0, 3, "rotation (degrees)"),
}


@torch.inference_mode()
def sensitivity(
    network: ResNet18, inputs: Tensor, numbers: Tensor, transformation: Transformation, batch_size: int = 24
) -> Sensitivity:
    """Transform normalised images (N, 3, S, S), whose mean color is zero, and compare their features.

    numbers  (N,) int64: each image's class

    Raises CheckpointError when features are not finite.
    """
    values = transformation.values
    found = {name: torch.empty(len(inputs), len(values), dtype=torch.float64) for name in MEASURES}
    bar = tqdm(total=len(inputs) * len(values), desc=transformation.label, leave=False, disable=None, delay=2)
    for part in torch.arange(len(inputs)).split(batch_size):
        images, classes = inputs[part], numbers[part].to(inputs.device)
        whole = layer_features(network, images)
        for place, value in enumerate(values):
            changed = whole
            if value != transformation.neutral:
                changed = layer_features(network, transformation.apply(images, value))
            chances = network.fc(changed["pooled"]).softmax(1)
            found["probability"][part, place] = chances.gather(1, classes[:, None])[:, 0].double().cpu()
            for layer in LAYERS:
                found[layer][part, place] = relative_distances(changed[layer], whole[layer]).cpu()
            bar.update(len(part))
    bar.close()
    check_finite(found["probability"], "probabilities")
    return Sensitivity(values, found)


def layer_features(network: ResNet18, images: Tensor) -> dict[str, Tensor]:
    """The features of LAYERS, (N, C, h, w) or, pooled, (N, 512)."""
    features = network.trace(images.contiguous(memory_format=torch.channels_last)).features
    found = {layer: features[layer] for layer in LAYERS[:2]}
    return found | {"pooled": network.avgpool(features["conv5_x"]).flatten(1)}


def relative_distances(features: Tensor, references: Tensor) -> Tensor:
    """Each image's Euclidean distance to its reference, divided by the reference's norm: (N,) float64.

    NaN where the norm is zero. features, references: (N, ...)
    """
    distances = (features - references).flatten(1).double().norm(dim=1)
    return distances / references.flatten(1).double().norm(dim=1).where(references.flatten(1).any(1), torch.nan)
