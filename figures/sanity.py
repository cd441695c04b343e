"""What remains of a picture as weights become random (Adebayo et al., arXiv:1810.03292).

Weights become random from the top down, as in that paper, or from the bottom up. From the top down, the activations
below keep their scales, so that the result cannot rank methods (Binder et al., arXiv:2211.12486).
"""

import copy
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from tqdm import tqdm

from analysis.crops import correlations, crop, crop_boxes
from analysis.importance import saliency, sobel_edges
from analysis.inspection import Inspection, spread
from analysis.reconstruction import ALL_RULES, mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.comparison import select_units_above_pooling, show_tile
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import RULE_STYLE, WIDTH_INCHES, format_two_digits, heading, styled, unpooling_note
from network import STAGES, ResNet18

MODULES = dict(zip(STAGES, (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), strict=True))
DIRECTIONS = {
    "top-down": "Below the random layers, activations keep their scales: this direction cannot rank methods (Binder et "
    "al., arXiv:2211.12486).",
    "bottom-up": "Above the random layers, weights stay as trained, but get inputs that they have never seen.",
}
MOST_IMAGES = 50  # of the curves
PIXELS_ON_CPU = 20 * 224**2  # of all these images: about 20 s on two cores
NOTES = (
    "Numbers: rank correlation (Spearman) of absolute values with the trained network's picture.",
    "Tiles: own scale each, grey is zero; – and all grey: the random network does not activate the channel.",
)


def randomized_networks(network: ResNet18, stage: str, direction: str = "top-down") -> Iterator[tuple[str, ResNet18]]:
    """(name, network) for each stage up to `stage`, from the top down or from the bottom up: it and those before.

    The weights of these stages are a fixed random initialisation. All names share one copy of the network, which
    changes from step to step; the network itself does not.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = ResNet18(network.fc.out_features)
    network = copy.deepcopy(network)
    stages = STAGES[: STAGES.index(stage) + 1]
    for n, random in enumerate(stages[::-1] if direction == "top-down" else stages):
        for name in MODULES[random]:
            getattr(network, name).load_state_dict(getattr(fresh, name).state_dict())
        yield f"+ {random}" if n else f"{random} random", network


def ranks(values: Tensor) -> Tensor:
    """The ranks of each row's values, (n, ...) -> (n, m) float64, from 1; equal values share their mean rank.

    Spearman's correlation is Pearson's of the ranks.
    """
    rows = []
    for row in values.flatten(1):
        _, inverse, counts = row.unique(return_inverse=True, return_counts=True)
        rows.append((counts.cumsum(0) - (counts.double() - 1) / 2)[inverse])
    return torch.stack(rows)


@dataclass(frozen=True)
class Step:
    """The pictures by one network, or of the edges, compared with those by the trained network.

    name          of the network, or "edges"
    example       rule -> (3, H, W): the first picture
    correlations  rule -> one value per picture: Spearman's rank correlation of `saliency` with the trained network's;
                  None if a picture is zero everywhere
    """

    name: str
    example: dict[str, Tensor]
    correlations: dict[str, list[float | None]]

    def quartiles(self, rule: str) -> tuple[float | None, ...]:
        """Lower quartile, median and upper quartile over the pictures but the example; None if there are none."""
        known = [value for value in self.correlations[rule][1:] if value is not None]
        return tuple(np.quantile(known, [0.25, 0.5, 0.75]).tolist()) if known else (None,) * 3


def check_sanity(
    network: ResNet18,
    inputs: Tensor,
    images: Tensor,
    stage: str,
    channels: Sequence[int],
    unpool: str = "sum",
    batch_size: int = 24,
) -> dict[str, list[Step]]:
    """Reconstruct whole maps by every rule while the network's weights become random, in both directions.

    inputs    (n, 3, H, W) normalised images, on the network's device
    images    (n, 3, H, W) the same in 0..1, on the CPU
    channels  of `stage`, one per image

    Returns direction -> steps: the trained network, the random ones, and at last Sobel edges of the images, which are
    what would be left by a picture that does not depend on the network.
    """

    def pictures_by(network: ResNet18) -> dict[str, Tensor]:
        mirrors = mirrors_by_rule(network, ALL_RULES, unpool)
        return reconstruct(network, mirrors, inputs, stage, channels, batch_size=batch_size)

    def compare(name: str, pictures: dict[str, Tensor]) -> Step:
        return Step(
            name,
            {rule: pictures[rule][0].clone() for rule in ALL_RULES},
            {rule: correlations(expected[rule], ranks(saliency(pictures[rule]))) for rule in ALL_RULES},
        )

    trained = pictures_by(network)
    expected = {rule: ranks(saliency(pictures)) for rule, pictures in trained.items()}
    first, last = compare("trained", trained), compare("edges", dict.fromkeys(ALL_RULES, sobel_edges(images)))
    directions = {direction: [first] for direction in DIRECTIONS}
    count = len(DIRECTIONS) * (STAGES.index(stage) + 1)
    with tqdm(total=count, desc="sanity", unit="networks", leave=False, disable=None) as progress:
        for direction, steps in directions.items():
            for name, random in randomized_networks(network, stage, direction):
                steps.append(compare(name, pictures_by(random)))
                progress.update()
            steps.append(last)
    return directions


def strongest_channels_of_images(inspection: Inspection, stage: str) -> tuple[Tensor, list[int]]:
    """Searched images, evenly spread, as indices in the test split; and the channel that each excites most."""
    peaks = inspection.search.peaks[stage]
    count = min(MOST_IMAGES, len(peaks))
    if inspection.device.type == "cpu":
        count = min(count, max(1, PIXELS_ON_CPU // inspection.metadata.image_size**2))
    rows = spread(count, len(peaks))
    return inspection.searched[rows], peaks[rows].argmax(1).tolist()


@register(
    "sanity",
    "Pictures from random weights",
    "A picture that stays the same, with a correlation near 1, as weights become random does not explain what the "
    "network learned.",
    section="belief",
)
def draw_sanity(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """One channel under every rule, and curves over several images; at last the content of sanity.json."""
    units = select_units_above_pooling(inspection, settings)
    images, channels = strongest_channels_of_images(inspection, units.stage)
    stored = inspection.images[torch.cat([units.images[:1], images])]
    directions = check_sanity(
        inspection.network,
        inspection.inputs(stored),
        inspection.resized(stored),
        units.stage,
        [units.channels[0], *channels],
        settings.unpool,
        settings.batch_size,
    )
    title = f"What random weights leave of a picture ({units.stage}, whole maps{unpooling_note(settings.unpool)})"
    caption = f"image {units.images[0]}\nchannel {units.channels[0]}"
    yield Path("sanity"), sanity_figure(title, inspection.resized(stored[:1]), caption, directions)
    by_name = {direction: {step.name: json_content(step) for step in steps} for direction, steps in directions.items()}
    edges = [steps.pop("edges") for steps in by_name.values()]
    content = {"stage": units.stage, "images": images.tolist(), "channels": channels}
    yield Path("sanity"), content | {"directions": by_name, "edges": edges[0]}


def json_content(step: Step) -> dict[str, dict]:
    """A step's part of sanity.json: rule -> its numbers over the images of the curves."""
    content = {}
    for rule, (_, *values) in step.correlations.items():
        low, median, high = step.quartiles(rule)
        content[rule] = {"median": median, "low": low, "high": high, "values": values}
    return content


@styled
def sanity_figure(title: str, image: Tensor, caption: str, directions: dict[str, list[Step]]) -> Figure:
    """For each direction a row per rule: the example by ever more random networks; beside them, the curves.

    image    (1, 3, H, W) in 0..1: the example
    caption  what it is
    """
    figure = Figure((WIDTH_INCHES, 0.6 + 2.75 * len(directions)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(figure, title, *NOTES)
    for block, (direction, steps) in zip(figure.subfigures(len(directions)), directions.items(), strict=True):
        block.suptitle(f"Random from the {direction.replace('-', ' ')}", x=0.01, ha="left", fontsize=7, weight="bold")
        block.supxlabel(DIRECTIONS[direction], x=0.01, ha="left", fontsize=7)
        tiles, curves = block.subfigures(1, 2, width_ratios=(len(steps) + 2, 3))
        draw_example(tiles, image, caption, steps)
        draw_curves(curves.subplots(), steps)
    return figure


def draw_example(figure: SubFigure, image: Tensor, caption: str, steps: list[Step]) -> None:
    """The image, then a column for each step, with a row for each rule; all cropped like the trained network's."""
    box = crop_boxes([steps[0].example[rule][None] for rule in ALL_RULES])
    grid = figure.subplots(len(ALL_RULES), 1 + len(steps))
    show_tile(grid[0, 0], to_array(crop(image, *box))[0])
    grid[0, 0].set_title("image")
    grid[1, 0].text(0.5, 1, caption, ha="center", va="top")
    for row, rule in enumerate(ALL_RULES):
        show_tile(grid[row, 0])
        color, _ = RULE_STYLE[rule]
        grid[row, 0].set_ylabel(rule, rotation=0, ha="right", va="center", color=color, weight="bold")
        for axes, step in zip(grid[row, 1:], steps, strict=True):
            show_tile(axes, diverging_tiles(crop(step.example[rule][None], *box))[0])
            axes.set_xlabel(format_two_digits(step.correlations[rule][0]), labelpad=1)
            if row == 0:
                axes.set_title(textwrap.fill(step.name, 9))


def draw_curves(axes: Axes, steps: list[Step]) -> None:
    """Median and quartiles over the images, for each rule; the edges, the last step, apart from the networks."""
    x = [*range(len(steps) - 1), len(steps) - 0.7]
    for n, rule in enumerate(ALL_RULES):
        style = {"color": RULE_STYLE[rule][0], "marker": RULE_STYLE[rule][1], "markersize": 3, "linewidth": 1}
        low, median, high = np.array([step.quartiles(rule) for step in steps], float).T  # None becomes nan
        axes.fill_between(x[:-1], low[:-1], high[:-1], color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(x[:-1], median[:-1], label=rule, **style)
        spans = [median[-1:] - low[-1:], high[-1:] - median[-1:]]
        axes.errorbar([x[-1] + 0.12 * (n - 1)], median[-1:], spans, **style)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(x, [textwrap.fill(step.name, 9) for step in steps], rotation=90)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(top=1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, borderpad=0, labelspacing=0.2)
    count = len(steps[0].correlations[ALL_RULES[0]]) - 1
    axes.set_title(f"rank correlation, {count} images:\nmedian and quartiles")
