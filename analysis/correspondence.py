"""Does hiding a part in several images change their features alike? (Zeiler & Fergus 2014, section 4.3, table 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.activations import check_finite
from analysis.crops import bounding_boxes, corner_inside
from network import ResNet18
from reverse_network import class_signal

LAYERS = ("conv4_x", "conv5_x", "pooled")
DRAWS = 3  # of random squares in each image

Square = tuple[int, int, int]  # top, left, side, in pixels of the network's input


@dataclass(frozen=True)
class Disagreement:
    """How differently features change in n images, mean over all pairs of them.

    different  share of the features that change in at least one image of the pair whose changes have different signs
               (0..1; a feature that does not change has sign 0); None if nothing changes
    unchanged  share of all features that change in neither image of the pair
    """

    different: float | None
    unchanged: float


@dataclass(frozen=True)
class ChannelCorrespondence:
    """One channel's n images with the part that it found hidden, and with random squares hidden.

    parts, random                 squares of each image, (n,) and (DRAWS, n)
    parts_change, random_change   name of LAYERS -> disagreement; of the random squares, one per draw
    """

    channel: int
    parts: tuple[Square, ...]
    random: tuple[tuple[Square, ...], ...]
    parts_change: dict[str, Disagreement]
    random_change: tuple[dict[str, Disagreement], ...]

    def different(self, layer: str, is_random: bool) -> float | None:
        """The share of features that change differently; of random squares, the mean over the draws that have one."""
        found = [each[layer].different for each in (self.random_change if is_random else (self.parts_change,))]
        found = [share for share in found if share is not None]
        return sum(found) / len(found) if found else None


@torch.inference_mode()
def correspond(
    network: ResNet18, inputs: Tensor, pictures: Tensor, stage: str, channel: int, seed: int, draws: int = DRAWS
) -> ChannelCorrespondence:
    """Hide in each image the square that holds the channel's reconstruction, then random squares of the same size.

    inputs    (n, 3, S, S) normalised images
    pictures  (n, 3, S, S) on the CPU: what the channel saw in each
    seed      of the random squares, with the channel's number

    The channel itself is left out: it chose the parts. Raises CheckpointError when features are not finite.
    """
    trace = network.trace(inputs)
    features = trace.features["conv5_x"]
    classes = network.classify(features).argmax(1)
    activation = class_signal(network, features, classes, weighted=True).sum(1)  # (n, h, w)
    whole = layer_features(network, inputs, stage, channel)
    parts = part_squares(pictures)
    random = np.random.default_rng((seed, channel))
    others = [random_squares(activation, parts, inputs.shape[-1], random) for _ in range(draws)]
    found = [
        {name: disagreement(hidden[name] - whole[name]) for name in LAYERS}
        for squares in (parts, *others)
        for hidden in (layer_features(network, hide(inputs, squares), stage, channel),)
    ]
    return ChannelCorrespondence(channel, tuple(parts), tuple(map(tuple, others)), found[0], tuple(found[1:]))


def part_squares(pictures: Tensor) -> list[Square]:
    """The square around the energy of each reconstruction (n, 3, S, S), shifted into the image."""
    size = tuple(pictures.shape[-2:])
    squares = []
    for box in bounding_boxes(pictures):
        top, left, bottom, right = box or (0, 0, *size)
        side = min(max(bottom - top, right - left), *size)
        squares.append((*corner_inside(((top + bottom) // 2, (left + right) // 2), side, size), side))
    return squares


def random_squares(
    activation: Tensor, squares: Sequence[Square], image_size: int, random: np.random.Generator
) -> list[Square]:
    """Squares of the same sides, centred where the class activation map is positive; if that is nowhere, anywhere.

    activation  (n, h, w), enlarged bilinearly to the image
    squares     n of them

    The squares are shifted into the image.
    """
    size = (image_size, image_size)
    is_positive = F.interpolate(activation[:, None].float(), size, mode="bilinear")[:, 0].cpu() > 0
    found = []
    for allowed, (*_, side) in zip(is_positive.flatten(1), squares, strict=True):
        places = allowed.nonzero().flatten() if allowed.any() else torch.arange(allowed.numel())
        place = places[random.integers(len(places))].item()
        found.append((*corner_inside(divmod(place, image_size), side, size), side))
    return found


def hide(inputs: Tensor, squares: Sequence[Square]) -> Tensor:
    """Normalised images (n, 3, S, S), a copy, each with the mean color (zero) in its square."""
    hidden = inputs.clone()
    for image, (top, left, side) in zip(hidden, squares, strict=True):
        image[:, top : top + side, left : left + side] = 0
    return hidden


def layer_features(network: ResNet18, inputs: Tensor, stage: str, channel: int) -> dict[str, Tensor]:
    """name of LAYERS -> all features (n, m) on the CPU, without those of the channel of `stage`."""
    features = network.trace(inputs).features
    found = {name: features[name] for name in LAYERS[:2]} | {"pooled": network.avgpool(features["conv5_x"])}
    own = {stage, "pooled"} if stage == "conv5_x" else {stage}
    for name in own & found.keys():
        found[name] = torch.cat([found[name][:, :channel], found[name][:, channel + 1 :]], 1)
    return {name: check_finite(each.flatten(1).cpu(), f"features of {name}") for name, each in found.items()}


def disagreement(changes: Tensor) -> Disagreement:
    """Over all pairs of images: whose features change with different signs. changes: (n, m), with n at least 2."""
    signs = changes.sign().to(torch.int8)
    shares, unchanged = [], []
    for first, second in combinations(signs, 2):
        changed = int(((first != 0) | (second != 0)).sum())
        unchanged.append(1 - changed / signs.shape[1])
        if changed:
            shares.append(int((first != second).sum()) / changed)
    return Disagreement(sum(shares) / len(shares) if shares else None, sum(unchanged) / len(unchanged))
