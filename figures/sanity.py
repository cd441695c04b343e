"""What remains of a picture as weights become random (Adebayo et al., arXiv:1810.03292).

Weights become random from the top down, as in that paper, or from the bottom up. From the top down, the activations
below keep their scales, so that the result cannot rank methods (Binder et al., arXiv:2211.12486).
"""

import copy
import textwrap
from collections.abc import Iterator, Sequence
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
from figures.style import CAPTION_COLOR, RULE_STYLE, WIDTH_INCHES, format_two_digits, heading, styled, unpooling_note
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
    "Numbers: Spearman's rank correlation of absolute values with the trained network's picture, of the example below "
    "its tiles, of all images as median and quartiles. Tiles have a scale each; grey is zero, and with – the random "
    "network does not activate the channel.",
)

EXAMPLE = (
    "The example is the image whose mean correlation over all random networks and rules is the median of the images."
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


def pictures_by_networks(
    network: ResNet18,
    inputs: Tensor,
    images: Tensor,
    stage: str,
    channels: Sequence[int],
    unpool: str = "sum",
    batch_size: int = 24,
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Reconstruct whole maps by every rule while the network's weights become random, in both directions.

    inputs    (n, 3, H, W) normalised images, on the network's device
    images    (n, 3, H, W) the same in 0..1, on the CPU
    channels  of `stage`, one per image

    Yields direction, name of the network, and rule -> pictures (n, 3, H, W) on the CPU, for the trained network, the
    random ones, and at last "edges": Sobel edges of the images, which are what would be left by a picture that does
    not depend on the network.
    """

    def pictures_by(network: ResNet18) -> dict[str, Tensor]:
        mirrors = mirrors_by_rule(network, ALL_RULES, unpool)
        return reconstruct(network, mirrors, inputs, stage, channels, batch_size=batch_size)

    trained, edges = pictures_by(network), dict.fromkeys(ALL_RULES, sobel_edges(images))
    count = len(DIRECTIONS) * (STAGES.index(stage) + 1)
    with tqdm(total=count, desc="sanity", unit="networks", leave=False, disable=None) as progress:
        for direction in DIRECTIONS:
            yield direction, "trained", trained
            for name, random in randomized_networks(network, stage, direction):
                yield direction, name, pictures_by(random)
                progress.update()
            yield direction, "edges", edges


def check_sanity(*args, **kwargs) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """direction -> name -> rule -> Spearman's rank correlation of `saliency` with the trained network's, per image.

    The arguments are those of `pictures_by_networks`. None where a picture is zero everywhere.
    """
    found = {direction: {} for direction in DIRECTIONS}
    trained, edges = {}, None
    for direction, name, pictures in pictures_by_networks(*args, **kwargs):
        if name == "edges" and edges is not None:
            found[direction][name] = edges  # the same in both directions
            continue
        of_step = {rule: ranks(saliency(pictures[rule])) for rule in ALL_RULES}
        trained = trained or of_step
        found[direction][name] = {rule: correlations(trained[rule], of_step[rule]) for rule in ALL_RULES}
        edges = found[direction].get("edges")
    return found


def median_image(found: dict[str, dict[str, dict[str, list[float | None]]]]) -> int:
    """The image whose mean correlation over all random networks and rules is the median of all images.

    Among the images with the fewest pictures that are zero everywhere. found: as `check_sanity` returns it.
    """
    values = np.array([
        rules[rule] for steps in found.values() for name, rules in steps.items() for rule in ALL_RULES
        if name not in ("trained", "edges")
    ], float)  # (networks and rules, images); None becomes nan  # fmt: skip
    zeros = np.isnan(values).sum(0)
    fewest = np.flatnonzero(zeros == zeros.min())
    means = np.nan_to_num(values[:, fewest]).mean(0)
    return int(fewest[np.argsort(means, kind="stable")[(len(fewest) - 1) // 2]])


def quartiles(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Lower quartile, median and upper quartile of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return tuple(np.quantile(known, [0.25, 0.5, 0.75]).tolist()) if known else (None,) * 3


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
    passes=1300,
)
def draw_sanity(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """One channel under every rule, and curves over several images; at last the content of sanity.json."""
    stage = select_units_above_pooling(inspection, settings).stage
    images, channels = strongest_channels_of_images(inspection, stage)

    def arguments(rows: slice) -> tuple:
        stored = inspection.images[images[rows]]
        resized, sizes = inspection.resized(stored), (settings.unpool, settings.batch_size)
        return inspection.network, inspection.inputs(stored), resized, stage, channels[rows], *sizes

    found = check_sanity(*arguments(slice(None)))
    number = median_image(found)
    pictures = {direction: {} for direction in DIRECTIONS}
    for direction, name, by_rule in pictures_by_networks(*arguments(example := slice(number, number + 1))):
        pictures[direction][name] = by_rule
    title = f"What random weights leave of a picture ({stage}, whole maps{unpooling_note(settings.unpool)})"
    caption = f"image {images[number]}\nchannel {channels[number]}"
    image = inspection.resized(inspection.images[images[example]])
    yield Path("sanity"), sanity_figure(title, image, caption, pictures, found, number)
    by_name = {
        direction: {name: {rule: json_content(rules[rule]) for rule in rules} for name, rules in steps.items()}
        for direction, steps in found.items()
    }
    edges = [steps.pop("edges") for steps in by_name.values()]
    content = {"stage": stage, "images": images.tolist(), "channels": channels, "example": images[number].item()}
    yield Path("sanity"), content | {"directions": by_name, "edges": edges[0]}


def json_content(values: list[float | None]) -> dict:
    """The correlations of one network and rule in sanity.json."""
    low, median, high = quartiles(values)
    return {"median": median, "low": low, "high": high, "values": values}


@styled
def sanity_figure(
    title: str,
    image: Tensor,
    caption: str,
    pictures: dict[str, dict[str, dict[str, Tensor]]],
    found: dict[str, dict[str, dict[str, list[float | None]]]],
    number: int,
) -> Figure:
    """For each direction a row per rule: the example by ever more random networks; beside them, the curves.

    image     (1, 3, H, W) in 0..1: the example
    caption   what it is
    pictures  direction -> name -> rule -> (1, 3, H, W)
    found     as `check_sanity` returns it
    number    of the example among its images
    """
    figure = Figure((WIDTH_INCHES, 0.85 + 2.7 * len(found)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(figure, title, *NOTES, EXAMPLE)
    for block, (direction, steps) in zip(figure.subfigures(len(found)), found.items(), strict=True):
        block.suptitle(f"Random from the {direction.replace('-', ' ')}", x=0.007, ha="left", fontsize=7, weight="bold")
        block.supxlabel(DIRECTIONS[direction], x=0.007, ha="left", fontsize=7, color=CAPTION_COLOR)
        tiles, curves = block.subfigures(1, 2, width_ratios=(len(steps) + 2, 3))
        labels = {name: {rule: values[number] for rule, values in rules.items()} for name, rules in steps.items()}
        draw_example(tiles, image, caption, pictures[direction], labels)
        draw_curves(curves.subplots(), steps)
    return figure


def draw_example(
    figure: SubFigure,
    image: Tensor,
    caption: str,
    pictures: dict[str, dict[str, Tensor]],
    labels: dict[str, dict[str, float | None]],
) -> None:
    """The image, then a column for each network, with a row for each rule; all cropped like the trained network's."""
    box = crop_boxes(list(pictures["trained"].values()))
    grid = figure.subplots(len(ALL_RULES), 1 + len(pictures))
    show_tile(grid[0, 0], to_array(crop(image, *box))[0])
    grid[0, 0].set_title("image")
    grid[1, 0].text(0.5, 1, caption, ha="center", va="top")
    for row, rule in enumerate(ALL_RULES):
        show_tile(grid[row, 0])
        color, _ = RULE_STYLE[rule]
        grid[row, 0].set_ylabel(rule, rotation=0, ha="right", va="center", color=color, weight="bold")
        for axes, (name, by_rule) in zip(grid[row, 1:], pictures.items(), strict=True):
            show_tile(axes, diverging_tiles(crop(by_rule[rule], *box))[0])
            axes.set_xlabel(format_two_digits(labels[name][rule]), labelpad=1)
            if row == 0:
                axes.set_title(textwrap.fill(name, 9))


def draw_curves(axes: Axes, steps: dict[str, dict[str, list[float | None]]]) -> None:
    """Median and quartiles over the images, for each rule; the edges, the last step, apart from the networks."""
    x = [*range(len(steps) - 1), len(steps) - 0.7]
    for n, rule in enumerate(ALL_RULES):
        style = {"color": RULE_STYLE[rule][0], "marker": RULE_STYLE[rule][1], "markersize": 3, "linewidth": 1}
        low, median, high = np.array([quartiles(rules[rule]) for rules in steps.values()], float).T  # None: nan
        axes.fill_between(x[:-1], low[:-1], high[:-1], color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(x[:-1], median[:-1], label=rule, **style)
        spans = [median[-1:] - low[-1:], high[-1:] - median[-1:]]
        axes.errorbar([x[-1] + 0.12 * (n - 1)], median[-1:], spans, **style)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(x, [textwrap.fill(name, 9) for name in steps], rotation=90)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(top=1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, borderpad=0, labelspacing=0.2)
    count = len(steps["trained"][ALL_RULES[0]])
    axes.set_title(f"rank correlation,\n{count} images", loc="left")
