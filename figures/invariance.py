"""How much features change when images are shifted, scaled or rotated (Zeiler & Fergus 2014, figure 5)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
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
from analysis.inspection import Inspection, one_per_class, spread
from analysis.settings import Settings
from figures import style
from figures.image_grid import image_grid, to_array
from figures.registry import register
from network import ResNet18

LABELS = {"translation": "vertical shift (px)", "scale": "scale", "rotation": "rotation (degrees)"}
MEASURES = ("conv1", "conv5_x", "pooled", "probability")
EXAMPLES, MANY_IMAGES = 5, 200
COLORS = [colormaps["tab10"](n) for n in range(EXAMPLES)]


def transform(images: Tensor, translation: int = 0, scale: float = 1, rotation: float = 0) -> Tensor:
    """Images (N, 3, S, S), changed about their centre, bilinearly; zero where they do not reach.

    translation: pixels down. rotation: degrees, counter-clockwise.
    """
    if (translation, scale, rotation) == (0, 1, 0):
        return images
    return transforms.affine(images, -rotation, [0, translation], scale, [0, 0], InterpolationMode.BILINEAR)


def transformations(image_size: int) -> dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]:
    """parameter of `transform` -> its values for the examples' curves, for those of many images, and for the tiles."""
    shifts = [round(pixels * image_size / 224) for pixels in range(-60, 61, 10)]  # in proportion to the image
    scales, angles = [1 + n / 10 for n in range(9)], list(range(0, 351, 10))
    return {
        "translation": (shifts, shifts[::2], (shifts[0], 0, shifts[-1])),
        "scale": (scales, scales[::2], (1, 1.4, 1.8)),
        "rotation": (angles, angles[::3], (0, 50, 100)),
    }


@torch.inference_mode()
def sensitivity(
    network: ResNet18, inputs: Tensor, classes: Tensor, name: str, values: Sequence[float], batch_size: int
) -> dict[str, Tensor]:
    """Transform normalised images (N, 3, S, S), whose mean color is zero, and compare their features.

    classes: (N,) int64, whose probability is measured. name, values: of a parameter of `transform`

    Returns name of MEASURES -> (N, values) float64: for a layer the Euclidean distance to the features of the
    unchanged image, divided by their norm (NaN where that is zero); the probability of the class.
    Raises CheckpointError when features are not finite.
    """
    measured = {measure: torch.empty(len(inputs), len(values), dtype=torch.float64) for measure in MEASURES}
    parts = torch.arange(len(inputs)).split(batch_size)
    for part in tqdm(parts, LABELS[name], unit="batches", leave=False, disable=None, delay=2):
        images, numbers = inputs[part], classes[part, None].to(inputs.device)
        whole = compared_features(network, images)
        for n, value in enumerate(values):
            changed = compared_features(network, transform(images, **{name: value}))
            probabilities = network.fc(changed["pooled"]).softmax(1)
            measured["probability"][part, n] = probabilities.gather(1, numbers)[:, 0].cpu().double()
            for layer, features in whole.items():
                norms = features.flatten(1).norm(dim=1)
                distances = (changed[layer] - features).flatten(1).norm(dim=1)
                measured[layer][part, n] = (distances / norms.where(norms > 0, torch.nan)).cpu().double()
    check_finite(measured["probability"], "probabilities")
    return measured


def compared_features(network: ResNet18, images: Tensor) -> dict[str, Tensor]:
    """The features of each layer of MEASURES: (N, C, h, w) or, pooled, (N, 512)."""
    features = network.trace(images.contiguous(memory_format=torch.channels_last)).features
    pooled = network.avgpool(features["conv5_x"]).flatten(1)
    return {"conv1": features["conv1"], "conv5_x": features["conv5_x"], "pooled": pooled}


def without_nan(values: Tensor) -> list:
    """(..., m) as lists, with None in the place of NaN, which JSON lacks."""
    return np.where(values.isnan(), None, values.numpy()).tolist()


def statistics(values: Tensor) -> dict[str, list[float | None]]:
    """Mean and quartiles over the images of (N, m), without NaN: three lists of m; None where nothing is left."""
    rows = {"mean": values.nanmean(0), "low": values.nanquantile(0.25, dim=0), "high": values.nanquantile(0.75, dim=0)}
    return {name: without_nan(row) for name, row in rows.items()}


def inputs_and_classes(inspection: Inspection, images: list[int]) -> tuple[Tensor, Tensor]:
    """Searched images as inputs of the network, (n, 3, S, S), and their classes, (n,), or those predicted."""
    rows = torch.searchsorted(inspection.searched, torch.tensor(images))
    classes = inspection.labels[images] if inspection.knows_labels else inspection.search.logits[rows].argmax(1)
    return inspection.inputs(inspection.images[images]), classes


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
    network, searched = inspection.network, inspection.searched
    images = [picture.origin for picture in one_per_class(inspection, EXAMPLES)]
    many = searched[spread(min(MANY_IMAGES, len(searched)), len(searched))].tolist()
    (inputs, classes), others = (inputs_and_classes(inspection, indices) for indices in (images, many))
    names = [inspection.metadata.classes[number] for number in classes.tolist()]
    content, tiles = {"images": images, "classes": names, "many": many}, {}
    for name, (values, many_values, tile_values) in transformations(inspection.metadata.image_size).items():
        examples = sensitivity(network, inputs, classes, name, values, settings.batch_size)
        summary = sensitivity(network, *others, name, many_values, settings.batch_size)
        examples = {measure: without_nan(rows) for measure, rows in examples.items()}
        content[name] = {"values": values, "examples": examples, "many_values": many_values}
        content[name]["many"] = {measure: statistics(rows) for measure, rows in summary.items()}
        changed = torch.stack([transform(inputs, **{name: value}) for value in tile_values], 1)
        colors = (changed * inspection.preprocess.std_255 + inspection.preprocess.mean_255) / 255
        tiles[name] = tile_values, to_array(colors.clamp(0, 1).cpu())
    yield Path("invariance"), invariance_figure(content, tiles)
    yield Path("invariance"), content


@style.styled
def invariance_figure(content: dict, tiles: dict[str, tuple[Sequence[float], np.ndarray]]) -> Figure:
    """A row per transformation: examples, distances in each layer, and the probability of the class.

    content  of invariance.json
    tiles    name of the transformation -> its values n, and the images changed by them, (examples, n, S, S, 3) in 0..1
    """
    figure = style.new_figure(
        6.4,
        "How much features change when images are shifted, scaled and rotated",
        "Colored: the one image beside the line of this color. Black: mean of many. Band: their quartiles. Change: "
        "Euclidean distance to the features of the unchanged image, divided by their norm. Outside the image: the mean "
        "color. Pooled: the means of the maps of conv5_x, which tolerate shifts by construction.",
    )
    above, below = figure.subfigures(2, height_ratios=(6.2, 0.2))
    axes = above.subplots(len(LABELS), 1 + len(MEASURES), width_ratios=(0.8, 1, 1, 1, 1))
    for row, letter, name in zip(axes, "abc", LABELS, strict=True):
        row[0].set_title(f"({letter}) {name}", loc="left")
        draw_tiles(row[0], *tiles[name])
        for curves, measure in zip(row[1:], MEASURES, strict=True):
            draw_curves(curves, name, measure, content[name])
    highest = max(curves.get_ylim()[1] for curves in axes[:, 1:-1].flat)  # the layers have one scale
    for curves in axes[:, 1:-1].flat:
        curves.set_ylim(0, highest)
    for curves, measure in zip(axes[0, 1:], MEASURES, strict=True):
        curves.set_title("probability of the class" if measure == "probability" else f"change in {measure}", loc="left")
    pairs = zip(COLORS, content["classes"], strict=False)
    lines = [Line2D([], [], color=color, label=style.truncate(name, 14)) for color, name in pairs]
    lines.append(Line2D([], [], color="black", linewidth=1.6, label=f"mean of {len(content['many'])} images"))
    below.legend(handles=lines, loc="center", ncols=len(lines), frameon=False, columnspacing=1, handlelength=1.2)
    return figure


def draw_tiles(axes: Axes, values: Sequence[float], tiles: np.ndarray) -> None:
    """The examples (n, values, S, S, 3), a row per example beside its color."""
    count, columns, size = tiles.shape[:3]
    gap = max(1, size // 16)
    axes.imshow(image_grid(tiles.reshape(-1, *tiles.shape[2:]), columns, gap), interpolation="antialiased")
    tops = np.arange(count) * (size + gap)
    axes.vlines([-2 * gap] * count, tops, tops + size, COLORS[:count], linewidth=2, clip_on=False)
    names = [style.format_number(value, "g") for value in values]
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
    axes.plot(measured["many_values"], mean, "o-", color="black", linewidth=1.6, markersize=2.5)
    axes.xaxis.set_major_locator(MultipleLocator(90) if name == "rotation" else MaxNLocator(5))
    if measure == "probability":
        axes.yaxis.tick_right()
        axes.yaxis.set_major_formatter(lambda share, _: style.format_percent(share))
        axes.set_ylim(0, 1.03)
    axes.tick_params(pad=2, labelleft=measure == "conv1")
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel(LABELS[name], labelpad=1)
