"""The exact mirror beside mirrors with one mistake each, as found in public code, and by stage how far they are off."""

import copy
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.channels import StrongestUnits, reconstruct_units
from analysis.crops import correlations, crop, crop_boxes, ratios
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.comparison import draw_rows, row_captions, select_units, select_units_above_pooling, show_tile
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import TIGHT, format_short, format_two_digits, new_figure, styled
from network import STAGES, BasicBlock, ResNet18
from reverse_network import ReverseBlock, ReverseConv2d, ReverseResNet18, rectify

UNITS_SHOWN = 4  # and compared at every stage


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


def build_mirror(
    network: ResNet18, rule: str, conv: type[ReverseConv2d] = ReverseConv2d, block: type[ReverseBlock] = ReverseBlock
) -> ReverseResNet18:
    """The network's mirror, made of other convolutions or blocks. Random biases are the same every time."""
    mirror = ReverseResNet18(network, rule)
    mirror.blocks = nn.ModuleList(block(forward, rule) for layer in network.layers for forward in layer)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for part in (mirror, *mirror.blocks):
            for name, child in list(part.named_children()):
                if conv is not ReverseConv2d and isinstance(child, ReverseConv2d):
                    setattr(part, name, conv(child.conv, child.bn))
    return mirror


# name -> what the code does, what becomes of the picture, and how the mirror with this mistake alone is built
MISTAKES = {
    "batch norm dropped": (
        "The transposed convolutions have the network's weights, without the scales of batch norm.",
        "The outline stays; size, contrast and colors are wrong.",
        partial(build_mirror, conv=BatchNormDropped),
    ),
    "batch norm forwards": (
        "Batch norm is applied as in the forward pass: it subtracts means and adds shifts to a signal on its way back.",
        "The shifts make a picture of their own, nearly the same for every unit, even for none.",
        partial(build_mirror, conv=BatchNormForwards),
    ),
    "branches summed twice": (
        "The shortcut's signal is added within the block, and once more after it.",
        "It looks right on its own scale, but is too strong, and most so what came through many shortcuts.",
        partial(build_mirror, block=ShortcutTwice),
    ),
    "shortcut dropped": (
        "A block is mirrored as two convolutions in a row.",
        "Nearly all of the signal is lost; the color scale makes what is left look like a picture.",
        partial(ReverseResNet18, branches="residual"),
    ),
    "unpooling overwrites": (
        "F.max_unpool2d keeps one of the values that share a switch, and drops the others.",
        "It looks right, but is too weak where pooling windows share their maximum: at edges and corners.",
        partial(ReverseResNet18, unpool="overwrite"),
    ),
    "stride on the wrong convolution": (
        "The layers of a block are reversed, but not their strides: conv2 gets the stride of conv1.",
        "It looks right, but conv2's patterns are half as large, and masks of ReLUs do not fit.",
        partial(build_mirror, block=StrideOnConv2),
    ),
    "bias added": (
        "The transposed convolutions keep the random bias that new layers have.",
        "A texture of the biases covers the picture, nearly the same for every unit, even for none.",
        partial(build_mirror, conv=BiasAdded),
    ),
}


def mirrors_by_mistake(network: ResNet18, rule: str) -> dict[str, ReverseResNet18]:
    """ "exact" and the names of MISTAKES -> the network's mirror with this mistake."""
    exact = {"exact": ReverseResNet18(network, rule)}
    return exact | {name: build(network, rule) for name, (_, _, build) in MISTAKES.items()}


def deviation(pictures: Tensor, exact: Tensor) -> dict[str, list[float | None]]:
    """How far pictures (n, 3, H, W) are from the exact ones.

    "error": norm of the difference, divided by the exact picture's norm; "correlation": Pearson's, over all pixels and
    colors. One value per picture; None where the exact picture is zero, or one of the two is constant.
    """
    pictures, exact = pictures.double().flatten(1), exact.double().flatten(1)  # squares of large values stay finite
    error = ratios((pictures - exact).norm(dim=1), exact.norm(dim=1))
    return {"error": error, "correlation": correlations(exact, pictures)}


def median(values: Iterable[float | None]) -> float | None:
    """Of the values that are not None, if any."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


@register(
    "mirrors",
    "The exact mirror beside faulty ones",
    "Each column has one mistake found in public code; the numbers say how far its pictures are from the exact "
    "ones, even where they look alike.",
    stages=STAGES,
    section="belief",
)
def draw_mirrors(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of mirrors.json."""
    shown = select_units_above_pooling(inspection, settings, UNITS_SHOWN)
    mirrors = mirrors_by_mistake(inspection.network, settings.main_rule)
    mistakes = {name: {"wrong": wrong, "visible": text, "stages": {}} for name, (wrong, text, _) in MISTAKES.items()}
    content = {"rule": settings.main_rule, "mistakes": mistakes, "units": []}
    for stage in (stage for stage in STAGES if stage in inspection.search.top):
        at_stage = replace(settings, stages=(stage,), channels="different")
        units = shown if stage == shown.stage else select_units(inspection, at_stage, UNITS_SHOWN)
        pictures = reconstruct_units(inspection, mirrors, units)
        deviations = {name: deviation(pictures[name], pictures["exact"]) for name in MISTAKES}
        for name, values in deviations.items():
            mistakes[name]["stages"][stage] = {key: median(numbers) for key, numbers in values.items()}
        for n, (channel, image) in enumerate(zip(units.channels, units.images.tolist(), strict=True)):
            unit = {"stage": stage, "channel": channel, "image": image}
            numbers = {key: {name: deviations[name][key][n] for name in MISTAKES} for key in ("error", "correlation")}
            content["units"].append(unit | numbers)
        if stage == shown.stage:
            box = crop_boxes([pictures["exact"]])
            columns = {"image": to_array(crop(inspection.resized(inspection.images[units.images]), *box))}
            columns |= {name: diverging_tiles(crop(by_mirror, *box)) for name, by_mirror in pictures.items()}
    yield Path("mirrors"), mirrors_figure(content, shown, columns)
    yield Path("mirrors"), content


@styled
def mirrors_figure(content: dict, shown: StrongestUnits, columns: dict[str, np.ndarray]) -> Figure:
    """A row per unit, a column per mirror; below, each mirror's medians by stage; at last, what is wrong with each.

    content  of mirrors.json
    columns  "image" and name of the mirror -> (n, s, s, 3) in 0..1
    """
    count, stages = len(shown.channels), list(content["mistakes"]["shortcut dropped"]["stages"])
    table, notes = 0.14 * len(stages), 0.25 * len(MISTAKES)  # inches
    title = f"Strongest units of {shown.stage} by the exact mirror, and with one mistake each ({content['rule']})"
    note = "error: norm of the difference to the exact picture, relative to its norm; corr.: correlation with it."
    note += " Each tile has its own scale; grey is zero."
    heights = 0.5 + 0.95 * count + table, notes
    figure = new_figure(sum(heights), title, note, **TIGHT)
    above, below = figure.subfigures(2, height_ratios=heights)
    grid = above.subplots(count + 1, len(columns), height_ratios=[*[0.65] * count, table])
    captions = {name: [] for name in MISTAKES}
    for name, unit in itertools.product(MISTAKES, (unit for unit in content["units"] if unit["stage"] == shown.stage)):
        error, correlation = format_short(unit["error"][name]), format_two_digits(unit["correlation"][name])
        captions[name].append(f"error {error}\ncorr. {correlation}")
    draw_rows(grid[:count], columns, row_captions(shown), captions)
    texts = [[], stages]  # below the images and the exact pictures
    for mistake in content["mistakes"].values():
        values = mistake["stages"].values()
        texts.append([f"{format_short(v['error'])} / {format_two_digits(v['correlation'])}" for v in values])
    for axes, lines in zip(grid[count], texts, strict=True):
        show_tile(axes)
        axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", linespacing=1.6)
    label = f"median over\nup to {UNITS_SHOWN} units:\nerror / corr."
    grid[count, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    for n, (name, (wrong, visible, _)) in enumerate(MISTAKES.items()):
        y = 1 - n / len(MISTAKES)
        below.text(0.19, y, textwrap.fill(name, 20), ha="right", va="top", weight="bold", linespacing=1.1)
        below.text(0.2, y, f"{wrong}\n{visible}", va="top", linespacing=1.1)
    return figure
