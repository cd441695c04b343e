"""Which part of the image a unit sees, and images cropped to it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.blocks import block_side
from network import STAGES, ResNet18


@dataclass(frozen=True)
class ReceptiveField:
    """The unit in row i sees `size` pixel rows from i * stride - offset on; columns likewise."""

    size: int
    stride: int
    offset: int


def receptive_field(network: ResNet18, stage: str) -> ReceptiveField:
    """The receptive field at a stage, by the recursion over kernel, stride and padding on the longest path."""
    depth = STAGES.index(stage)
    blocks = [block for layer in network.layers[:depth] for block in layer]
    convolutions = [conv for block in blocks for conv in (block.conv1, block.conv2)]
    size, stride, offset = 1, 1, 0
    for module in (network.conv1, *[network.maxpool][:depth], *convolutions):
        kernel, step, padding = (value if isinstance(value, int) else value[0]
                                 for value in (module.kernel_size, module.stride, module.padding))  # fmt: skip
        size += (kernel - 1) * stride
        offset += padding * stride
        stride *= step
    return ReceptiveField(size, stride, offset)


def units_inside(network: ResNet18, stage: str, image_size: int, least: float = 0.25) -> slice | None:
    """The rows, and likewise the columns, of the units that see no padding, for square images of `image_size` pixels.

    None if these units are less than `least` of the stage's (0..1); with 0, a slice that may be empty.
    """
    field = receptive_field(network, stage)
    units = -(-image_size // field.stride)  # strided layers round up
    first = -(-field.offset // field.stride)
    last = (image_size - field.size + field.offset) // field.stride
    inside = max(last - first + 1, 0)
    return slice(first, last + 1) if inside**2 >= least * units**2 else None


def searched_units(network: ResNet18, stages: Iterable[str], image_size: int, border: bool) -> dict[str, slice | None]:
    """What `search` takes as `inside`: `units_inside` of each stage, or all units if `border`."""
    return {stage: None if border else units_inside(network, stage, image_size) for stage in stages}


@dataclass(frozen=True)
class Units:
    """One unit of `stage` in each of N images."""

    stage: str
    inputs: Tensor  # (N, 3, H, W) normalised images
    channels: Tensor  # (N,) int64
    cells: Tensor  # (N, 2) int64: row and column in the feature map
    corners: Tensor  # (N, 2) int64: top and left of the receptive field in pixels; may lie outside the image
    size: int  # of the receptive field in pixels
    block: int  # side in pixels of a block: about 28x28 in the part of the receptive field that is in the image

    @property
    def centers(self) -> Tensor:
        """(N, 2) float: the middle of each receptive field in pixels, where a pixel's own middle is a whole number."""
        return self.corners + (self.size - 1) / 2


def locate_units(network: ResNet18, stage: str, inputs: Tensor, channels: Tensor, positions: Tensor) -> Units:
    """The units at these positions, row * w + column, in the feature maps of (N, 3, H, W) images; (N,) int64 each."""
    field = receptive_field(network, stage)
    columns = -(-inputs.shape[-1] // field.stride)
    cells = torch.stack([positions // columns, positions % columns], 1)
    corners = cells * field.stride - field.offset
    block = block_side(min(field.size, *inputs.shape[-2:]))
    return Units(stage, inputs, channels, cells, corners, field.size, block)


def crop_to_receptive_field(
    network: ResNet18, units: Units, maps: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Units, dict[str, Tensor]]]:
    """The same units in images cropped to what they see, in groups whose crops are equally large.

    Yields which units a group has, (n,) int64; the units in the crops; and maps (N, H, W), cropped alike. The
    activations are equal: a crop ends where a unit sees no further or the image ends, and it begins at a multiple of
    the stage's stride, so that the layers' grids stay where they are.
    """
    stride, size = receptive_field(network, units.stage).stride, units.inputs.shape[-2:]
    first = (units.corners // stride * stride).clamp(min=0)  # (N, 2)
    lengths = (units.corners + units.size).minimum(torch.tensor(size, device=first.device)) - first
    for height, width in lengths.unique(dim=0).tolist():
        members = ((lengths[:, 0] == height) & (lengths[:, 1] == width)).nonzero().flatten()
        corner = first[members]
        rows = corner[:, 0, None] + torch.arange(height, device=corner.device)
        columns = corner[:, 1, None] + torch.arange(width, device=corner.device)
        pixels = members[:, None, None], rows[:, :, None], columns[:, None, :]
        inputs = units.inputs.movedim(1, -1)[pixels].movedim(-1, 1)
        cells, corners = units.cells[members] - corner // stride, units.corners[members] - corner
        cropped = replace(units, inputs=inputs, channels=units.channels[members], cells=cells, corners=corners)
        yield members, cropped, {name: whole[pixels] for name, whole in maps.items()}


def blocks_seen(units: Units) -> Tensor:
    """(N, n) bool: the blocks of each image that its unit's receptive field touches."""
    seen = []
    for axis, length in enumerate(units.inputs.shape[-2:]):
        first = torch.arange(0, length, units.block, device=units.corners.device)
        corner = units.corners[:, axis, None]
        seen.append((first + units.block > corner) & (first < corner + units.size))
    return (seen[0][:, :, None] & seen[1][:, None, :]).flatten(1)
