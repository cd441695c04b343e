"""Which part of the image a unit sees."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from network import STAGES, ResNet18

LEAST_INSIDE = 0.25  # share of a stage's units that must see no padding for the others to be left out


@dataclass(frozen=True)
class ReceptiveField:
    """The unit in row i sees `size` pixel rows from i * stride - offset on; columns likewise."""

    size: int
    stride: int
    offset: int


def receptive_field(network: ResNet18, stage: str) -> ReceptiveField:
    """The receptive field at a stage, by the recursion over kernel, stride and padding on the longest path."""
    size, stride, offset = 1, 1, 0
    for module in _modules(network, stage):
        kernel, step, padding = (value if isinstance(value, int) else value[0]
                                 for value in (module.kernel_size, module.stride, module.padding))  # fmt: skip
        size += (kernel - 1) * stride
        offset += padding * stride
        stride *= step
    return ReceptiveField(size, stride, offset)


def _modules(network: ResNet18, stage: str) -> list[nn.Module]:
    depth = STAGES.index(stage)
    blocks = [block for layer in network.layers[:depth] for block in layer]
    pooling = [network.maxpool] if depth else []
    return [network.conv1, *pooling, *(conv for block in blocks for conv in (block.conv1, block.conv2))]


def units_inside(network: ResNet18, stage: str, image_size: int, least: float = LEAST_INSIDE) -> slice | None:
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
