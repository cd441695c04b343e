"""Features and probability of shifted, scaled and rotated images (Zeiler & Fergus 2014, figure 5)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator
from torch import Tensor

from analysis.inspection import Inspection, class_to_explain, one_per_class, spread
from analysis.invariance import LAYERS, MEASURES, TRANSFORMATIONS, Sensitivity, sensitivity, shift_in_pixels
from analysis.settings import Settings
from figures.image_grid import to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, bare_axes_at, styled, text_at, truncate

EXAMPLES, IMAGES = 5, 200
SHOWN = {"translation": (-60, 0, 60), "scale": (1, 1.4, 1.8), "rotation": (0, 50, 100)}  # values of the tiles
QUARTILES = (0.25, 0.75)
COLORS = [colormaps["tab10"](n) for n in range(EXAMPLES)]
# inches: left of and above the tiles, from tile to tile, width of the curves, from row to row, left of each curve
LEFT, TOP, TILE, WIDTH, ROW = 0.1, 0.62, 0.29, 1.24, 2.02
LEFTS = dict(zip(MEASURES, (1.34, 2.68, 4.02, 5.7), strict=True))


@dataclass(frozen=True)
class ShownInvariance:
    """What the figure shows.

    images    indices of the examples in the test split
    classes   name of each example's class
    many      indices of the images that mean and quartiles are of
    examples  name of the transformation -> of the examples
    summary   name of the transformation -> of the many
    tiles     name of the transformation -> (examples, values of SHOWN, S, S, 3) in 0..1
    """

    images: tuple[int, ...]
    classes: tuple[str, ...]
    many: tuple[int, ...]
    examples: dict[str, Sensitivity]
    summary: dict[str, Sensitivity]
    tiles: dict[str, np.ndarray]


@register(
    "invariance",
    "Shifted, scaled and rotated images",
    "The lower and flatter a curve, the less the layer notices the change; the probability says whether the "
    "network still recognises the class.",
    is_slow=True,
)
def draw_invariance(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of invariance.json."""
    content = measure(inspection, settings)
    if len(content.images) < EXAMPLES:
        print(
            f"invariance: {len(content.images)} images instead of {EXAMPLES}, the searched images have no more classes"
        )
    yield Path("invariance"), invariance_figure(content, inspection.metadata.image_size)
    yield Path("invariance"), json_content(content, inspection.metadata.image_size)


def measure(inspection: Inspection, settings: Settings) -> ShownInvariance:
    """All that the figure shows."""
    network, batch_size = inspection.network, settings.batch_size
    pictures = one_per_class(inspection, EXAMPLES)
    predicted = dict(zip(inspection.searched.tolist(), inspection.search.logits.argmax(1).tolist(), strict=True))
    numbers = torch.tensor([class_to_explain(inspection, each, predicted[each.origin]) for each in pictures])
    inputs = inspection.inputs(torch.stack([picture.image for picture in pictures]))
    total = len(inspection.searched)
    places = spread(min(IMAGES, total), total)
    many = inspection.searched[places]
    of_many = inspection.labels[many] if inspection.knows_labels else inspection.search.logits[places].argmax(1)
    many_inputs = inspection.inputs(inspection.images[many])
    examples, summary, tiles = {}, {}, {}
    for name, transformation in TRANSFORMATIONS.items():
        examples[name] = sensitivity(network, inputs, numbers, transformation, batch_size)
        coarse = replace(transformation, values=transformation.values[:: transformation.every])
        summary[name] = sensitivity(network, many_inputs, of_many, coarse, batch_size)
        changed = torch.stack([transformation.apply(inputs, value) for value in SHOWN[name]], 1)
        tiles[name] = to_array(in_colors(inspection, changed))
    classes = tuple(inspection.metadata.classes[number] for number in numbers.tolist())
    images = tuple(picture.origin for picture in pictures)
    return ShownInvariance(images, classes, tuple(many.tolist()), examples, summary, tiles)


def in_colors(inspection: Inspection, inputs: Tensor) -> Tensor:
    """Normalised images (..., 3, S, S) -> colors in 0..1, on the CPU."""
    preprocess = inspection.preprocess
    return ((inputs * preprocess.std_color + preprocess.mean_color) / 255).clamp(0, 1).cpu()


def statistics(values: Tensor) -> dict[str, list[float | None]]:
    """Mean and quartiles over the images of (N, m), without NaN: three lists of m; None where nothing is left."""
    low, high = (values.nanquantile(share, dim=0) for share in QUARTILES)
    return {"mean": _numbers(values.nanmean(0)), "low": _numbers(low), "high": _numbers(high)}


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def json_content(content: ShownInvariance, image_size: int) -> dict:
    """What invariance.json holds."""
    found = {"images": list(content.images), "classes": list(content.classes), "many": list(content.many)}
    for name, examples in content.examples.items():
        summary = content.summary[name]
        found[name] = {
            "values": values_of(name, examples.values, image_size),
            "examples": {each: [_numbers(row) for row in examples.measures[each]] for each in MEASURES},
            "many_values": values_of(name, summary.values, image_size),
            "many": {each: statistics(summary.measures[each]) for each in MEASURES},
        }
    return found


def values_of(name: str, values: Sequence[float], image_size: int) -> list[float]:
    """The values as applied: shifts in pixels of the network's input."""
    return [shift_in_pixels(value, image_size) for value in values] if name == "translation" else list(values)


@styled
def invariance_figure(content: ShownInvariance, image_size: int) -> Figure:
    """A row per transformation: examples, distances in each layer, and the probability of the class."""
    height = TOP + len(TRANSFORMATIONS) * ROW + 0.42
    figure = Figure((WIDTH_INCHES, height))
    text_at(figure, WIDTH_INCHES / 2, 0.14, "Features of shifted, scaled and rotated images", fontsize=9)
    headings = (
        "change in conv1",
        "change in conv5_x",
        "change in the\npooled features",
        "probability of\nthe class",
    )
    for left, text in zip(LEFTS.values(), headings, strict=True):
        text_at(figure, left + WIDTH / 2, TOP - 0.2, text, fontsize=7)
    most = max(np.nanmax(each.measures[layer], initial=0.1) for each in content.examples.values() for layer in LAYERS)
    for row, (name, letter) in enumerate(zip(TRANSFORMATIONS, "abc", strict=True)):
        top = TOP + row * ROW
        draw_tiles(figure, top, name, letter, content.tiles[name], values_of(name, SHOWN[name], image_size))
        for measure, left in LEFTS.items():
            axes = bare_axes_at(figure, left, top, WIDTH, EXAMPLES * TILE)
            draw_curves(axes, name, measure, content, image_size)
            axes.set_ylim(0, 1.05 * most if measure in LAYERS else 1.03)
            axes.tick_params(labelleft=measure in (LAYERS[0], MEASURES[-1]))
    draw_legend(figure, height - 0.42, content)
    lines = (
        "Change: Euclidean distance to the features of the unchanged image, divided by their norm. "
        "Outside the image: the mean color.",
        f"Band: quartiles. The pooled features are the means of the maps of {LAYERS[1]}: they tolerate shifts by "
        "construction.",
    )
    text_at(figure, WIDTH_INCHES / 2, height - 0.14, "\n".join(lines))
    return figure


def draw_tiles(figure: Figure, top: float, name: str, letter: str, tiles: np.ndarray, values: Sequence[float]) -> None:
    """The examples under three values each, a row per example beside its color."""
    text_at(figure, LEFT, top - 0.1, f"({letter}) {name}", ha="left", fontsize=7)
    for row, images in enumerate(tiles):
        bare_axes_at(figure, LEFT - 0.05, top + row * TILE, 0.03, TILE - 0.02).set_facecolor(COLORS[row])
        for column, image in enumerate(images):
            axes = bare_axes_at(figure, LEFT + column * TILE, top + row * TILE, TILE - 0.02, TILE - 0.02)
            axes.imshow(image, interpolation="antialiased")
    for column, value in enumerate(values):
        text_at(figure, LEFT + (column + 0.5) * TILE, top + len(tiles) * TILE + 0.07, f"{value:g}")


def draw_curves(axes: Axes, name: str, measure: str, content: ShownInvariance, image_size: int) -> None:
    """One line per example, and mean and quartiles of many images."""
    examples, summary = content.examples[name], content.summary[name]
    values = values_of(name, examples.values, image_size)
    for color, line in zip(COLORS, examples.measures[measure], strict=False):
        axes.plot(values, line, color=color, linewidth=0.8)
    found = {key: np.array(each, float) for key, each in statistics(summary.measures[measure]).items()}
    values = values_of(name, summary.values, image_size)
    axes.fill_between(values, found["low"], found["high"], color="0.6", alpha=0.4, linewidth=0)
    axes.plot(values, found["mean"], color="black", linewidth=1.6)
    axes.spines[:].set_visible(True)
    axes.xaxis.set_major_locator(MultipleLocator(90) if name == "rotation" else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(pad=2)
    axes.margins(x=0.02)
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel(TRANSFORMATIONS[name].label, labelpad=1)


def draw_legend(figure: Figure, top: float, content: ShownInvariance) -> None:
    """What the lines are."""
    lines = [Line2D([], [], color=color, linewidth=1) for color, _ in zip(COLORS, content.images, strict=False)]
    names = [truncate(name, 16) for name in content.classes]
    mean = Line2D([], [], color="black", linewidth=1.6)
    place = (0.5, 1 - top / figure.get_figheight())
    figure.legend(
        [*lines, mean], [*names, f"mean of {len(content.many)} images"], loc="center", bbox_to_anchor=place,
        ncols=len(names) + 1, frameon=False, fontsize=6, columnspacing=1, handlelength=1.2,
    )  # fmt: skip
