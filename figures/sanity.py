"""What remains of a picture as weights become random, from the top down and from the bottom up (arXiv:1810.03292)."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.crops import crop, crop_boxes
from analysis.inspection import Inspection, spread
from analysis.reconstruction import ALL_RULES
from analysis.sanity import SanityCheck, Step, check_sanity
from analysis.settings import Settings
from figures.comparison import select_units_above_pooling
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import RULE_STYLE, WIDTH_INCHES, bare_axes_at, format_two_digits, styled, text_at, unpooling_note

MOST_IMAGES = 50  # of the curves
PIXELS_ON_CPU = MOST_IMAGES * 224**2  # of all these images: about a minute on a CPU
EXPLAINED = {
    "top-down": "Below the random layers, activations keep their scales: this direction cannot rank methods (Binder et "
    "al., arXiv:2211.12486).",
    "bottom-up": "Above the random layers, weights stay as trained, but get inputs that they have never seen.",
}
NOTE = (
    "Numbers: rank correlation (Spearman) of absolute values with the trained network's picture.\n"
    "Tiles: own scale each, grey is zero; – and all grey: the random network does not activate the channel."
)
LEFT, TOP, GAP, TILE = 0.7, 0.62, 0.04, 0.5  # inches: left and above the tiles, between them, and a tile's side
ROW, BLOCK_TOP, TICKS = 0.66, 0.63, 0.48  # inches: from row to row, of text above the rows, and below the curves


@dataclass(frozen=True)
class SanityContent:
    """What the figure shows.

    stage    of the channels
    images   (n,) int64, indices in the test split: that of the example, then those of the curves
    channels one per image
    patch    (s, s, 3) in 0..1: the example
    box      side and corners of the example's tiles
    check    of all images
    note     on the unpooling, for the title
    """

    stage: str
    images: Tensor
    channels: list[int]
    patch: np.ndarray
    box: tuple[int, list[tuple[int, int]]]
    check: SanityCheck
    note: str


@register(
    "sanity",
    "Pictures from random weights",
    "A picture that stays the same, with a correlation near 1, as weights become random does not explain what the "
    "network learned.",
    section="belief",
)
def draw_sanity(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """One channel under every rule, and curves over several images; at last the content of sanity.json."""
    example = select_units_above_pooling(inspection, settings)
    images, channels = strongest_channels_of_images(inspection, example.stage)
    images, channels = torch.cat([example.images[:1], images]), [example.channels[0], *channels]
    stored, shown = inspection.images[images], inspection.resized(inspection.images[images])
    check = check_sanity(
        inspection.network,
        inspection.inputs(stored),
        shown,
        example.stage,
        channels,
        settings.unpool,
        settings.batch_size,
    )
    trained = check.directions["top-down"][0]
    box = crop_boxes([trained.example[rule][None] for rule in ALL_RULES])
    patch = to_array(crop(shown[:1], *box))[0]
    content = SanityContent(example.stage, images, channels, patch, box, check, unpooling_note(settings.unpool))
    yield Path("sanity"), sanity_figure(content)
    yield Path("sanity"), json_content(content)


def strongest_channels_of_images(inspection: Inspection, stage: str) -> tuple[Tensor, list[int]]:
    """Searched images, evenly spread, as indices in the test split; and the channel that each excites most."""
    peaks = inspection.search.peaks[stage]
    count = min(MOST_IMAGES, len(peaks))
    if inspection.device.type == "cpu":
        count = min(count, max(1, PIXELS_ON_CPU // inspection.metadata.image_size**2))
    places = spread(count, len(peaks))
    return inspection.searched[places], peaks[places.to(peaks.device)].argmax(1).tolist()


def quartiles(values: list[float | None]) -> tuple[float, float, float] | None:
    """Lower quartile, median and upper quartile of the values that are not None, if any."""
    known = [value for value in values if value is not None]
    return tuple(np.quantile(known, [0.25, 0.5, 0.75]).tolist()) if known else None


def json_content(content: SanityContent) -> dict:
    """The content of sanity.json."""

    def step_content(step: Step) -> dict:
        found = {}
        for rule, (_, *values) in step.correlation.items():
            low, median, high = quartiles(values) or (None, None, None)
            found[rule] = {"median": median, "low": low, "high": high, "values": values}
        return found

    directions = {
        direction: {step.name: step_content(step) for step in steps}
        for direction, steps in content.check.directions.items()
    }
    return {
        "stage": content.stage,
        "images": content.images[1:].tolist(),
        "channels": content.channels[1:],
        "directions": directions,
        "edges": step_content(content.check.edges),
    }


@styled
def sanity_figure(content: SanityContent) -> Figure:
    """For each direction a row per rule: the example by ever more random networks; beside them, the curves."""
    rows = len(ALL_RULES) * ROW
    block = BLOCK_TOP + rows + 0.08
    figure = Figure((WIDTH_INCHES, TOP + len(content.check.directions) * block))
    title = f"What random weights leave of a picture ({content.stage}, whole maps{content.note})"
    text_at(figure, WIDTH_INCHES / 2, 0.13, title, fontsize=8)
    text_at(figure, WIDTH_INCHES / 2, 0.37, NOTE, fontsize=7)
    for n, (direction, steps) in enumerate(content.check.directions.items()):
        top = TOP + n * block
        name = f"Random from the {direction.replace('-', ' ')}"
        text_at(figure, 0.08, top + 0.1, name, ha="left", fontsize=7, weight="bold")
        text_at(figure, 0.08, top + 0.25, EXPLAINED[direction], ha="left", fontsize=7)
        draw_example(figure, top + BLOCK_TOP, content, [*steps, content.check.edges])
        left = LEFT + (len(steps) + 2) * (TILE + GAP) + 0.4
        axes = bare_axes_at(figure, left, top + BLOCK_TOP, WIDTH_INCHES - 0.08 - left, rows - TICKS)
        draw_curves(axes, steps, content.check.edges)
    return figure


def draw_example(figure: Figure, top: float, content: SanityContent, steps: list[Step]) -> None:
    """The image, then a column for each step, with a row for each rule."""
    axes = bare_axes_at(figure, LEFT, top, TILE, TILE)
    axes.imshow(content.patch, interpolation="antialiased")
    axes.set_title("image", fontsize=6, pad=2)
    text = f"image {content.images[0]}\nchannel {content.channels[0]}"
    text_at(figure, LEFT + TILE / 2, top + TILE + 0.03, text, va="top")
    for row, rule in enumerate(ALL_RULES):
        color, _ = RULE_STYLE[rule]
        y = top + row * ROW + TILE / 2
        text_at(figure, LEFT - 0.05, y, rule, ha="right", color=color, fontsize=7, weight="bold")
        for column, step in enumerate(steps, 1):
            axes = bare_axes_at(figure, LEFT + column * (TILE + GAP), top + row * ROW, TILE, TILE)
            axes.imshow(diverging_tiles(crop(step.example[rule][None], *content.box))[0], interpolation="antialiased")
            axes.set_xlabel(format_two_digits(step.correlation[rule][0]), fontsize=6, labelpad=1)
            if row == 0:
                axes.set_title(textwrap.fill(step.name, 9), fontsize=6, pad=2)


def draw_curves(axes: Axes, steps: list[Step], edges: Step) -> None:
    """Median and quartiles over the images, for each rule; the edges apart from the networks."""
    places = [*range(len(steps)), len(steps) + 0.3]
    for n, rule in enumerate(ALL_RULES):
        color, marker = RULE_STYLE[rule]
        found = [quartiles(step.correlation[rule][1:]) or [np.nan] * 3 for step in [*steps, edges]]
        low, median, high = np.array(found).T
        axes.fill_between(places[:-1], low[:-1], high[:-1], color=color, alpha=0.2, linewidth=0)
        axes.plot(places[:-1], median[:-1], color=color, marker=marker, markersize=3, linewidth=1, label=rule)
        spread = np.array([[median[-1] - low[-1]], [high[-1] - median[-1]]])
        at = [places[-1] + 0.12 * (n - 1)]
        axes.errorbar(at, median[-1:], spread, color=color, marker=marker, markersize=3, linewidth=1)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(places, [textwrap.fill(step.name, 9) for step in [*steps, edges]], rotation=90)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(top=1.03)
    axes.spines[["left", "bottom"]].set_visible(True)
    axes.legend(frameon=False, borderpad=0, labelspacing=0.2, fontsize=6)
    count = len(steps[0].correlation[ALL_RULES[0]]) - 1
    axes.set_title(f"rank correlation, {count} images:\nmedian and quartiles", pad=3, fontsize=6)
