"""Mirrors with one mistake each, as found in public code, and how far their pictures are from the exact ones."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.correlation import correlations, ratios
from network import BasicBlock, ResNet18
from reverse_network import ReverseBlock, ReverseConv2d, ReverseResNet18, rectify


class BatchNormDropped(ReverseConv2d):
    """The convolution's own weights, without the scale of batch norm."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d):
        super().__init__(conv, nn.BatchNorm2d(bn.num_features, eps=0).to(conv.weight).eval())


class BatchNormForwards(BatchNormDropped):
    """Batch norm as in the forward pass, mean and beta included, before the transposed convolution."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d):
        super().__init__(conv, bn)
        self.forwards = bn

    def forward(self, signal: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(self.forwards(signal), size)


class BiasAdded(ReverseConv2d):
    """The bias that a new `nn.ConvTranspose2d` has by default, left at its random initialisation."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d):
        super().__init__(conv, bn)
        bound = conv.weight[0].numel() ** -0.5
        self.register_buffer("bias", torch.empty(conv.in_channels).uniform_(-bound, bound).to(conv.weight))

    def forward(self, signal: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(signal, size) + self.bias[:, None, None]


class ShortcutTwice(ReverseBlock):
    """Residual plus shortcut, plus the shortcut once more."""

    def forward(self, signal: Tensor, inner: Tensor, output: Tensor, size: tuple[int, int]) -> Tensor:
        total = super().forward(signal, inner, output, size)
        signal = rectify(signal, output, self.rule)
        return total + (signal if self.downsample is None else self.downsample(signal, size))


class StrideOnConv2(ReverseBlock):
    """conv2 is mirrored with the stride of conv1, and conv1 without; masks are enlarged to fit."""

    def __init__(self, block: BasicBlock, rule: str):
        super().__init__(block, rule)
        self.conv1.conv, self.conv2.conv = copy.copy(block.conv1), copy.copy(block.conv2)  # they share the weights
        self.conv1.conv.stride, self.conv2.conv.stride = block.conv2.stride, block.conv1.stride

    def forward(self, signal: Tensor, inner: Tensor, output: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(signal, F.interpolate(inner, size), output, size)


def build(
    network: ResNet18, rule: str, conv: type[ReverseConv2d] = ReverseConv2d, block: type[ReverseBlock] = ReverseBlock
) -> ReverseResNet18:
    """The network's mirror, made of other convolutions or blocks. Random biases are the same every time."""
    mirror = ReverseResNet18(network, rule)
    mirror.blocks = nn.ModuleList(block(each, rule) for layer in network.layers for each in layer)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for part in (mirror, *mirror.blocks):
            for name, child in list(part.named_children()):
                if conv is not ReverseConv2d and isinstance(child, ReverseConv2d):
                    setattr(part, name, conv(child.conv, child.bn))
    return mirror


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a mirror.

    wrong    what the code does
    visible  what becomes of the picture
    build    (network, rule) -> the mirror with this mistake, exact apart from it
    """

    wrong: str
    visible: str
    build: Callable[[ResNet18, str], ReverseResNet18]


MISTAKES = {
    "batch norm dropped": Mistake(
        "The transposed convolutions have the network's weights, without the scales of batch norm.",
        "The outline stays; size, contrast and colors are wrong.",
        partial(build, conv=BatchNormDropped),
    ),
    "batch norm forwards": Mistake(
        "Batch norm is applied as in the forward pass: it subtracts means and adds shifts to a signal on its way back.",
        "The shifts make a picture of their own, nearly the same for every unit, even for none.",
        partial(build, conv=BatchNormForwards),
    ),
    "branches summed twice": Mistake(
        "The shortcut's signal is added within the block, and once more after it.",
        "It looks right on its own scale, but is too strong, and most so what came through many shortcuts.",
        partial(build, block=ShortcutTwice),
    ),
    "shortcut dropped": Mistake(
        "A block is mirrored as two convolutions in a row.",
        "Nearly all of the signal is lost; the color scale makes what is left look like a picture.",
        partial(ReverseResNet18, branches="residual"),
    ),
    "unpooling overwrites": Mistake(
        "F.max_unpool2d keeps one of the values that share a switch, and drops the others.",
        "It looks right, but is too weak where pooling windows share their maximum: at edges and corners.",
        partial(ReverseResNet18, unpool="overwrite"),
    ),
    "stride on the wrong convolution": Mistake(
        "The layers of a block are reversed, but not their strides: conv2 gets the stride of conv1.",
        "It looks right, but conv2's patterns are half as large, and masks of ReLUs do not fit.",
        partial(build, block=StrideOnConv2),
    ),
    "bias added": Mistake(
        "The transposed convolutions keep the random bias that new layers have.",
        "A texture of the biases covers the picture, nearly the same for every unit, even for none.",
        partial(build, conv=BiasAdded),
    ),
}
EXACT = "exact"


def mirrors_by_mistake(network: ResNet18, rule: str) -> dict[str, ReverseResNet18]:
    """ "exact" and the names of MISTAKES -> the network's mirror with this mistake."""
    exact = {EXACT: ReverseResNet18(network, rule)}
    return exact | {name: mistake.build(network, rule) for name, mistake in MISTAKES.items()}


@dataclass(frozen=True)
class Deviation:
    """How far a mirror's pictures are from the exact ones, for each unit.

    error        norm of the difference, divided by the exact picture's norm
    correlation  Pearson's, over all pixels and colors

    None where the exact picture is zero, or one of the two is constant.
    """

    error: list[float | None]
    correlation: list[float | None]

    def medians(self) -> dict[str, float | None]:
        """ "error" and "correlation" -> the median over the units for which it is defined."""
        return {"error": median(self.error), "correlation": median(self.correlation)}


def median(values: list[float | None]) -> float | None:
    """The median of the values that are not None, if any."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def deviations(pictures: dict[str, Tensor]) -> dict[str, Deviation]:
    """name of the mistake -> its pictures' deviation from those of "exact"; pictures: (n, 3, H, W) each."""
    exact = pictures[EXACT].double().flatten(1)  # in double precision, squares of large values stay finite
    return {
        name: Deviation(
            ratios((each.double().flatten(1) - exact).norm(dim=1), exact.norm(dim=1)), correlations(exact, each)
        )
        for name, each in pictures.items()
        if name != EXACT
    }
