"""How much of a unit's activation depends on the blocks that a map of its receptive field marks.

Of the blocks that a unit sees, the most important ones are removed, or all others are. A removed block has the training
data's mean color. The share of the activation that survives says whether the unit responds to what the map marks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.activations import check_finite
from analysis.blocks import block_side, importance_ranks, remove_blocks
from analysis.receptive_field import receptive_field
from network import ResNet18

SHARES = (0.05, 0.1, 0.2)  # of the blocks in the receptive field
CHANGES = tuple((kind, share) for kind in ("removed", "kept") for share in SHARES)


@dataclass(frozen=True)
class Units:
    """One unit of `stage` in each of N images.

    inputs    (N, 3, H, W) normalised images
    channels  (N,) int64
    places    (N, 2) int64: row and column in the feature map
    corners   (N, 2) int64: top and left of the receptive field in pixels; may lie outside the image
    size      of the receptive field in pixels
    block     side of a block in pixels: about 28x28 blocks in the part of the receptive field that is in the image
    """

    stage: str
    inputs: Tensor
    channels: Tensor
    places: Tensor
    corners: Tensor
    size: int
    block: int

    @property
    def centers(self) -> Tensor:
        """(N, 2) float: the middle of each receptive field in pixels, where a pixel's own middle is a whole number."""
        return self.corners + (self.size - 1) / 2


def locate_units(network: ResNet18, stage: str, inputs: Tensor, channels: Tensor, positions: Tensor) -> Units:
    """The units at these positions, row * w + column, in the feature maps of (N, 3, H, W) images; (N,) int64 each."""
    field = receptive_field(network, stage)
    columns = -(-inputs.shape[-1] // field.stride)
    places = torch.stack([positions // columns, positions % columns], 1)
    corners = places * field.stride - field.offset
    block = block_side(min(field.size, *inputs.shape[-2:]))
    return Units(stage, inputs, channels, places, corners, field.size, block)


def crop_to_receptive_field(
    network: ResNet18, units: Units, maps: dict[str, Tensor]
) -> tuple[Units, dict[str, Tensor]]:
    """The same units in images cropped to what they see, and maps (N, H, W) cropped alike. Their activations are equal.

    Exact for units that see no padding. A crop begins at a multiple of the stage's stride, so that the layers' grids
    stay where they are.
    """
    field = receptive_field(network, units.stage)
    before = -field.offset % field.stride
    length = before + field.size
    corners = units.corners - before  # of the crops
    rows, columns = (corners[:, axis, None] + torch.arange(length, device=corners.device) for axis in (0, 1))
    number = torch.arange(len(corners), device=corners.device)[:, None, None]
    pixels = number, rows[:, :, None], columns[:, None, :]
    inputs = units.inputs.movedim(1, -1)[pixels].movedim(-1, 1)
    cropped = Units(
        units.stage,
        inputs,
        units.channels,
        units.places - corners // field.stride,
        units.corners - corners,
        units.size,
        units.block,
    )
    return cropped, {name: each[pixels] for name, each in maps.items()}


def blocks_seen(units: Units) -> Tensor:
    """(N, n) bool: the blocks of each image that its unit's receptive field touches."""
    seen = []
    for axis, length in enumerate(units.inputs.shape[-2:]):
        first = torch.arange(0, length, units.block, device=units.corners.device)
        corner = units.corners[:, axis, None]
        seen.append((first + units.block > corner) & (first < corner + units.size))
    return (seen[0][:, :, None] & seen[1][:, None, :]).flatten(1)


def turn_about_unit(maps: Tensor, units: Units) -> Tensor:
    """Maps (N, H, W), each turned by 180 degrees about its unit's place; 0 where that brings in what is outside.

    Same values, same distances from the unit: only the shape is another.
    """
    found = []
    for axis, length in enumerate(maps.shape[-2:]):
        source = 2 * units.corners[:, axis, None] + units.size - 1 - torch.arange(length, device=maps.device)
        found.append((source.clamp(0, length - 1), (0 <= source) & (source < length)))
    (rows, has_row), (columns, has_column) = found
    number = torch.arange(len(maps), device=maps.device)[:, None, None]
    turned = maps[number, rows[:, :, None], columns[:, None, :]]
    return turned * (has_row[:, :, None] & has_column[:, None, :])


def square_importance(units: Units) -> Tensor:
    """(N, n): the closer a block to its unit's place, the higher; the first ones form a square."""
    offsets = []
    for axis, length in enumerate(units.inputs.shape[-2:]):
        first = torch.arange(0, length, units.block, device=units.corners.device)
        middle = (first + (first + units.block).clamp(max=length) - 1) / 2
        offsets.append((middle - units.centers[:, axis, None]).abs())
    down, across = offsets[0][:, :, None], offsets[1][:, None, :]
    larger, smaller = torch.maximum(down, across), torch.minimum(down, across)
    return -(larger + smaller * 1e-3).flatten(1)  # of equally distant rings, the sides before the corners


def surviving_shares(
    network: ResNet18,
    units: Units,
    importance: dict[str, Tensor],
    changes: Sequence[tuple[str, float]] = CHANGES,
    batch_size: int = 24,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Tensor]:
    """What is left of each unit's activation: method -> (N, len(changes)), relative to that in the whole image.

    importance  method -> (N, n) of the blocks
    changes     of CHANGES: the most important share of the blocks seen, at least one, is removed, or it alone is kept
    advance     called with the number of images after each forward pass

    NaN where the whole image does not activate the unit: rounding can take all of a weak activation.

    Raises CheckpointError when an activation is not finite.
    """
    seen = blocks_seen(units)
    ranks = torch.stack([importance_ranks(each.masked_fill(~seen, -torch.inf)) for each in importance.values()], 1)
    shares = torch.tensor([share for _, share in changes], device=seen.device)
    is_kept = torch.tensor([kind == "kept" for kind, _ in changes], device=seen.device)
    counts = (shares * seen.sum(1, keepdim=True)).round().clamp(min=1)  # (N, len(changes))
    whole = _activations(network, units, units.inputs, torch.arange(len(seen), device=seen.device))
    left = units.inputs.new_empty(len(seen), len(importance), len(changes))
    for part in torch.cartesian_prod(*map(torch.arange, left.shape)).to(seen.device).split(batch_size):
        image, method, change = part.T
        is_important = ranks[image, method] < counts[image, change, None]
        changed = remove_blocks(units.inputs[image], is_important != is_kept[change, None], units.block)
        left[image, method, change] = _activations(network, units, changed, image)
        advance(len(part))
    check_finite(torch.cat([whole, left.flatten()]), "activations")
    left = (left / whole[:, None, None]).masked_fill((whole <= 0)[:, None, None], torch.nan)
    return {name: left[:, n] for n, name in enumerate(importance)}


def _activations(network: ResNet18, units: Units, inputs: Tensor, which: Tensor) -> Tensor:
    """(n,): the activations of these units, (n,) int64, in other images (n, 3, H, W)."""
    features = network.trace(inputs, units.stage).features[units.stage]
    row, column = units.places[which].T
    return features[torch.arange(len(which), device=which.device), units.channels[which], row, column].to(inputs.dtype)
