"""How much features change when images are shifted, scaled or rotated (Zeiler & Fergus 2014, figure 5)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.inspection import Inspection, class_to_explain, one_per_class, spread
from analysis.settings import Settings
from figures.image_grid import image_grid, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, format_percent, heading, heading_inches, styled, truncate
from network import ResNet18

COMPARED_LAYERS = ("conv1", "conv5_x", "pooled")
MEASURES = {  # name -> heading
    "conv1": "change in conv1",
    "conv5_x": "change in conv5_x",
    "pooled": "change in the\npooled features",
    "probability": "probability of\nthe class",
}
EXAMPLES, MANY_IMAGES = 5, 200
COLORS = [colormaps["tab10"](n) for n in range(EXAMPLES)]


@dataclass(frozen=True)
class Transformation:
    """A way to change an image, by one number.

    apply    (images (N, 3, S, S), value) -> the changed images
    values   of the curves, the neutral one among them
    neutral  the value that changes nothing
    every    of these values, the share 1 / every is used for many images
    tiles    values of the images shown
    label    what the values are, with their unit
    """

    apply: Callable[[Tensor, float], Tensor]
    values: tuple[float, ...]
    neutral: float
    every: int
    tiles: tuple[float, ...]
    label: str


def shift_down(images: Tensor, pixels: float) -> Tensor:
    """Images (N, 3, S, S) moved down by a number of pixels, for images of 224: rounded, and in proportion to S."""
    by = shift_in_pixels(pixels, images.shape[2])
    return F.pad(images, (0, 0, by, -by))


def shift_in_pixels(pixels: float, image_size: int) -> int:
    """A shift of an image of 224 pixels -> that of an image of another size."""
    return round(pixels * image_size / 224)


def enlarge(images: Tensor, scale: float) -> Tensor:
    """Images (N, 3, S, S) enlarged about their centre, bilinearly; what leaves the frame is lost."""
    return transforms.affine(images, 0, [0, 0], scale, [0, 0], InterpolationMode.BILINEAR)


# counter-clockwise about the centre; zero where the images do not reach
rotate = partial(transforms.rotate, interpolation=InterpolationMode.BILINEAR)
TRANSFORMATIONS = {
    "translation": Transformation(shift_down, tuple(range(-60, 61, 10)), 0, 2, (-60, 0, 60), "vertical shift (px)"),
    "scale": Transformation(enlarge, tuple(1 + n / 10 for n in range(9)), 1, 2, (1, 1.4, 1.8), "scale"),
    "rotation": Transformation(rotate, tuple(range(0, 351, 10)), 0, 3, (0, 50, 100), "rotation (degrees)"),
}


@torch.inference_mode()
def sensitivity(
    network: ResNet18, inputs: Tensor, numbers: Tensor, transformation: Transformation, batch_size: int = 24
) -> dict[str, Tensor]:
    """Transform normalised images (N, 3, S, S), whose mean color is zero, and compare their features.

    numbers: (N,) int64, each image's class

    Returns name of MEASURES -> (N, values of the transformation) float64: for a layer the Euclidean distance to the
    features of the unchanged image, divided by their norm (NaN where that is zero); the probability of the class.
    Raises CheckpointError when features are not finite.
    """
    values = transformation.values
    measured = {name: torch.empty(len(inputs), len(values), dtype=torch.float64) for name in MEASURES}
    bar = tqdm(total=len(inputs) * len(values), desc=transformation.label, leave=False, disable=None, delay=2)
    for part in torch.arange(len(inputs)).split(batch_size):
        images, classes = inputs[part], numbers[part].to(inputs.device)
        whole = compared_features(network, images)
        for n, value in enumerate(values):
            changed = whole
            if value != transformation.neutral:
                changed = compared_features(network, transformation.apply(images, value))
            probabilities = network.fc(changed["pooled"]).softmax(1)
            measured["probability"][part, n] = probabilities.gather(1, classes[:, None])[:, 0].double().cpu()
            for layer in COMPARED_LAYERS:
                measured[layer][part, n] = relative_distances(changed[layer], whole[layer]).cpu()
            bar.update(len(part))
    bar.close()
    check_finite(measured["probability"], "probabilities")
    return measured


def compared_features(network: ResNet18, images: Tensor) -> dict[str, Tensor]:
    """The features of COMPARED_LAYERS, (N, C, h, w) or, pooled, (N, 512)."""
    features = network.trace(images.contiguous(memory_format=torch.channels_last)).features
    pooled = network.avgpool(features["conv5_x"]).flatten(1)
    return {"conv1": features["conv1"], "conv5_x": features["conv5_x"], "pooled": pooled}


def relative_distances(features: Tensor, references: Tensor) -> Tensor:
    """Each image's Euclidean distance to its reference, (N, ...) both, divided by the reference's norm: (N,) float64.

    NaN where the norm is zero.
    """
    norms = references.flatten(1).double().norm(dim=1)
    return (features - references).flatten(1).double().norm(dim=1) / norms.where(norms > 0, torch.nan)


def statistics(values: Tensor) -> dict[str, list[float | None]]:
    """Mean and quartiles over the images of (N, m), without NaN: three lists of m; None where nothing is left."""
    rows = {"mean": values.nanmean(0), "low": values.nanquantile(0.25, dim=0), "high": values.nanquantile(0.75, dim=0)}
    return {name: without_nan(row) for name, row in rows.items()}


def without_nan(values: Tensor) -> list[float | None]:
    """A list with None in the place of NaN, which JSON lacks."""
    return [None if math.isnan(value) else value for value in values.tolist()]


@register(
    "invariance",
    "Shifted, scaled and rotated images",
    "The lower and flatter a curve, the less the layer notices the change; the probability says whether the "
    "network still recognises the class.",
    passes=8000,
    is_slow=True,
)
def draw_invariance(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of invariance.json."""
    network, size = inspection.network, inspection.metadata.image_size
    pictures = one_per_class(inspection, EXAMPLES)
    if len(pictures) < EXAMPLES:
        print(f"invariance: {len(pictures)} images instead of {EXAMPLES}, the searched images have no more classes")
    predicted = inspection.search.logits.argmax(1)
    by_image = dict(zip(inspection.searched.tolist(), predicted.tolist(), strict=True))
    numbers = [class_to_explain(inspection, picture, by_image[picture.origin]) for picture in pictures]
    inputs = inspection.inputs(torch.stack([picture.image for picture in pictures]))
    chosen = spread(min(MANY_IMAGES, len(predicted)), len(predicted))
    many = inspection.searched[chosen]
    many_numbers = inspection.labels[many] if inspection.knows_labels else predicted[chosen]
    many_inputs = inspection.inputs(inspection.images[many])
    content = {
        "images": [picture.origin for picture in pictures],
        "classes": [inspection.metadata.classes[number] for number in numbers],
        "many": many.tolist(),
    }
    tiles = {}
    for name, transformation in TRANSFORMATIONS.items():
        coarse = replace(transformation, values=transformation.values[:: transformation.every])
        examples = sensitivity(network, inputs, torch.tensor(numbers), transformation, settings.batch_size)
        summary = sensitivity(network, many_inputs, many_numbers, coarse, settings.batch_size)
        content[name] = {
            "values": applied_values(name, transformation.values, size),
            "examples": {measure: [without_nan(row) for row in rows] for measure, rows in examples.items()},
            "many_values": applied_values(name, coarse.values, size),
            "many": {measure: statistics(rows) for measure, rows in summary.items()},
        }
        changed = torch.stack([transformation.apply(inputs, value) for value in transformation.tiles], 1)
        colors = (changed * inspection.preprocess.std_255 + inspection.preprocess.mean_255) / 255
        tiles[name] = to_array(colors.clamp(0, 1).cpu())
    yield Path("invariance"), invariance_figure(content, tiles)
    yield Path("invariance"), content


def applied_values(name: str, values: tuple[float, ...], image_size: int) -> list[float]:
    """The values as applied: shifts in pixels of the network's input."""
    return [shift_in_pixels(value, image_size) for value in values] if name == "translation" else list(values)


@styled
def invariance_figure(content: dict, tiles: dict[str, np.ndarray]) -> Figure:
    """A row per transformation: examples, distances in each layer, and the probability of the class.

    content  of invariance.json
    tiles    name of the transformation -> (examples, its `tiles`, S, S, 3) in 0..1
    """
    title, height = "How much features change when images are shifted, scaled and rotated", 7.1
    note = (
        "Change: Euclidean distance to the features of the unchanged image, divided by their norm. Outside the image: "
        "the mean color. Band: quartiles. The pooled features are the means of the maps of conv5_x: they tolerate "
        "shifts by construction."
    )
    title_inches, caption_inches = heading_inches(title, note)
    figure = Figure((WIDTH_INCHES, height))
    heading(figure, title, note)
    edges = {"left": 0.02, "right": 0.94, "wspace": 0.2, "hspace": 0.38}
    edges |= {"top": 1 - (title_inches + 0.4) / height, "bottom": (caption_inches + 0.65) / height}
    edges["width_ratios"] = (0.8, 1, 1, 1, 1)
    axes = figure.subplots(len(TRANSFORMATIONS), 1 + len(MEASURES), gridspec_kw=edges)
    distances = [content[name]["examples"][layer] for name in TRANSFORMATIONS for layer in COMPARED_LAYERS]
    highest = max(np.nanmax(np.array(values, float), initial=0.1) for values in distances)
    for row, letter, name in zip(axes, "abc", TRANSFORMATIONS, strict=True):
        row[0].set_title(f"({letter}) {name}", loc="left")
        draw_tiles(row[0], tiles[name], applied_values(name, TRANSFORMATIONS[name].tiles, tiles[name].shape[2]))
        for curves, measure in zip(row[1:], MEASURES, strict=True):
            draw_curves(curves, name, measure, content[name])
            curves.set_ylim(0, 1.05 * highest if measure in COMPARED_LAYERS else 1.03)
            curves.tick_params(labelleft=measure == "conv1")  # the layers have one scale
    for curves, name in zip(axes[0, 1:], MEASURES.values(), strict=True):
        curves.set_title(name, loc="left")
    lines = [
        Line2D([], [], color=color, label=truncate(name, 14))
        for name, color in zip(content["classes"], COLORS, strict=False)
    ]
    lines.append(Line2D([], [], color="black", linewidth=1.6, label=f"mean of {len(content['many'])} images"))
    figure.legend(
        handles=lines, loc="center", bbox_to_anchor=(0.5, (caption_inches + 0.15) / height), ncols=len(lines),
        frameon=False, columnspacing=1, handlelength=1.2,
    )  # fmt: skip
    return figure


def draw_tiles(axes: Axes, tiles: np.ndarray, values: list[float]) -> None:
    """The examples (n, values, S, S, 3), a row per example beside its color."""
    count, columns, size = tiles.shape[:3]
    gap = max(1, size // 16)
    axes.imshow(image_grid(tiles.reshape(-1, *tiles.shape[2:]), columns, gap), interpolation="antialiased")
    tops = np.arange(count) * (size + gap)
    axes.vlines([-2 * gap] * count, tops, tops + size, COLORS[:count], linewidth=2, clip_on=False)
    names = [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in values]
    axes.set_xticks([column * (size + gap) + size / 2 for column in range(columns)], names)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_anchor("NW")


def draw_curves(axes: Axes, name: str, measure: str, measured: dict) -> None:
    """One line per example, and mean and quartiles of many images."""
    for color, line in zip(COLORS, measured["examples"][measure], strict=False):
        axes.plot(measured["values"], np.array(line, float), color=color, linewidth=0.8)
    mean, low, high = (np.array(measured["many"][measure][key], float) for key in ("mean", "low", "high"))
    axes.fill_between(measured["many_values"], low, high, color="0.6", alpha=0.4, linewidth=0)
    axes.plot(measured["many_values"], mean, color="black", linewidth=1.6)
    axes.xaxis.set_major_locator(MultipleLocator(90) if name == "rotation" else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if measure == "probability":
        axes.yaxis.tick_right()
        axes.yaxis.set_major_formatter(lambda share, _: format_percent(share))
    axes.tick_params(pad=2)
    axes.margins(x=0.02)
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel(TRANSFORMATIONS[name].label, labelpad=1)
