"""Does hiding a part in several images change their features alike? (Zeiler & Fergus 2014, section 4.3, table 1)."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.activations import check_finite, dissimilar_channels
from analysis.crops import corner_inside, crop_boxes
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures import style
from figures.image_grid import image_grid, to_array
from figures.registry import NotDrawn, register
from network import ResNet18
from reverse_network import class_signal

PARTS_STAGE = "conv4_x"  # its units see parts; those of conv5_x see most of the image
CHANGED_LAYERS = ("conv4_x", "conv5_x", "pooled")
MAX_CHANNELS, DRAWN_CHANNELS = 12, 4
IMAGES_PER_CHANNEL = 9
DRAWS = 3  # of random squares in each image
SQUARES = {"parts": "part found by the channel", "random": "random square"}


@torch.inference_mode()
def correspond(network: ResNet18, inputs: Tensor, pictures: Tensor, channel: int, seed: int) -> dict[str, list | dict]:
    """Hide in each image the square that holds the channel's reconstruction, then random squares of the same size.

    inputs    (n, 3, S, S) normalised images
    pictures  (n, 3, S, S) on the CPU: what the channel of PARTS_STAGE saw in each
    seed      of the random squares, with the channel's number

    Returns the squares (top, left, side in pixels) of each image, "parts" and, DRAWS times, "random"; and how
    differently the other channels change, "parts_change" and "random_change": name of CHANGED_LAYERS ->
    `disagreement`. Raises CheckpointError when features are not finite.
    """
    features = network.trace(inputs).features["conv5_x"]
    classes = network.classify(features).argmax(1)
    activation = class_signal(network, features, classes, weighted=True).sum(1, keepdim=True).float()  # (n, 1, h, w)
    is_seen = F.interpolate(activation, inputs.shape[2:], mode="bilinear")[:, 0].cpu() > 0
    boxes = [crop_boxes([picture[None]], least=1) for picture in pictures]
    parts, sides = [(*corner, side) for side, (corner,) in boxes], [side for side, _ in boxes]
    generator = np.random.default_rng((seed, channel))
    random = [random_squares(is_seen, sides, generator) for _ in range(DRAWS)]
    whole = features_without(network, inputs, channel)
    changes = []
    for squares in (parts, *random):
        hidden = inputs.clone()
        for image, (top, left, side) in zip(hidden, squares, strict=True):
            image[:, top : top + side, left : left + side] = 0  # the mean color
        without = features_without(network, hidden, channel)
        changes.append({layer: disagreement(without[layer] - whole[layer]) for layer in CHANGED_LAYERS})
    return {"parts": parts, "random": random, "parts_change": changes[0], "random_change": changes[1:]}


def random_squares(allowed: Tensor, sides: Sequence[int], random: np.random.Generator) -> list[tuple[int, int, int]]:
    """(top, left, side) of squares, shifted into the image.

    allowed: (n, S, S) bool, the pixels of each image that its square may be centred on; any, if there are none
    """
    squares = []
    for pixels, side in zip(allowed, sides, strict=True):
        centers = (pixels if pixels.any() else ~pixels).nonzero()
        center = centers[random.integers(len(centers))].tolist()
        squares.append((*corner_inside(center, side, pixels.shape), side))
    return squares


def features_without(network: ResNet18, inputs: Tensor, channel: int) -> dict[str, Tensor]:
    """name of CHANGED_LAYERS -> all features (n, m) on the CPU, without those of the channel of PARTS_STAGE."""
    features = network.trace(inputs).features
    others = torch.arange(features[PARTS_STAGE].shape[1]) != channel
    pooled = network.avgpool(features["conv5_x"])
    features = features | {PARTS_STAGE: features[PARTS_STAGE][:, others], "pooled": pooled}
    return {layer: check_finite(features[layer].flatten(1).cpu(), f"features of {layer}") for layer in CHANGED_LAYERS}


def disagreement(changes: Tensor) -> dict[str, float]:
    """How differently features change in n images, mean over all pairs of them. changes: (n, m), with n at least 2.

    different  share of the features that change in at least one image of the pair whose changes have different signs
               (0..1; a feature that does not change has sign 0); 0 if nothing changes
    unchanged  share of all features that change in neither image of the pair
    """
    different, unchanged = [], []
    for first, second in combinations(changes.sign().to(torch.int8), 2):
        changed = int(((first != 0) | (second != 0)).sum())
        unchanged.append(1 - changed / len(first))
        different.append(int((first != second).sum()) / max(changed, 1))
    return {"different": fmean(different), "unchanged": fmean(unchanged)}


def parts_and_random(entry: dict, layer: str, measure: str) -> tuple[float, float]:
    """A channel's "different" or "unchanged" share: of its parts, and the mean over the random squares."""
    return entry["parts_change"][layer][measure], fmean(draw[layer][measure] for draw in entry["random_change"])


def table(channels: Sequence[dict], layer: str) -> dict[str, dict[str, float]]:
    """Mean and standard error over channels of "different" and of its paired difference; the mean of "unchanged".

    channels: two or more entries of correspondence.json
    """
    different, unchanged = (
        torch.tensor([parts_and_random(entry, layer, measure) for entry in channels], dtype=torch.float64).T
        for measure in ("different", "unchanged")
    )
    rows = {}
    for row, values in zip([*SQUARES, "difference"], [*different, different[0] - different[1]], strict=True):
        rows[row] = {"mean": values.mean().item(), "error": values.std().item() / len(values) ** 0.5}
    return rows | {"unchanged": dict(zip(SQUARES, unchanged.mean(1).tolist(), strict=True))}


@register(
    "correspondence",
    "Corresponding parts in several images",
    "If the changes disagree less where the channel's parts are hidden than under random squares, the parts "
    "correspond.",
    stages=(PARTS_STAGE,),
    passes=1500,
)
def draw_correspondence(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of correspondence.json."""
    peaks = inspection.search.peaks[PARTS_STAGE]
    ranked = peaks.sort(dim=0, descending=True, stable=True)
    excited = (ranked.values[:IMAGES_PER_CHANNEL] > 0).sum(0) == IMAGES_PER_CHANNEL
    chosen = [channel for channel in dissimilar_channels(peaks, peaks.shape[1]) if excited[channel]][:MAX_CHANNELS]
    if len(chosen) < 2:
        raise NotDrawn(f"it needs two channels of {PARTS_STAGE} that {IMAGES_PER_CHANNEL} searched images excite")
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    channels = []
    for channel in chosen:
        rows = ranked.indices[:IMAGES_PER_CHANNEL, channel]
        images, units = inspection.searched[rows], inspection.search.positions[PARTS_STAGE][rows, channel].long()
        inputs = inspection.inputs(inspection.images[images])
        (pictures,) = reconstruct(inspection.network, mirrors, inputs, PARTS_STAGE, channel, units).values()
        entry = correspond(inspection.network, inputs, pictures, channel, settings.seed)
        channels.append({"channel": channel, "images": images.tolist(), **entry})
    layers = {layer: table(channels, layer) for layer in CHANGED_LAYERS}
    content = {"stage": PARTS_STAGE, "draws": DRAWS, "layers": layers, "channels": channels}
    drawn = [to_array(inspection.resized(inspection.images[entry["images"]])) for entry in channels[:DRAWN_CHANNELS]]
    note = f"{settings.main_rule}{style.unpooling_note(settings.unpool)}"
    yield Path("correspondence"), correspondence_figure(content, drawn, note)
    yield Path("correspondence"), content


@style.styled
def correspondence_figure(content: dict, images: Sequence[np.ndarray], note: str) -> Figure:
    """A row of images per channel with both kinds of squares; below, the table, and the same by channel.

    content  of correspondence.json
    images   of the first channels, (IMAGES_PER_CHANNEL, S, S, 3) in 0..1 each
    """
    count = len(images)
    figure = style.new_figure(
        1.6 + 0.95 * count,
        f"Parts that channels of {PARTS_STAGE} find, hidden in {IMAGES_PER_CHANNEL} images each",
        f"Red: the square around the channel's reconstruction ({note}). White: one of {DRAWS} random squares as large, "
        "centred where the class activation map is positive.",
        "Numbers: of the features (without the channel's) that change in at least one image of a pair, the share whose "
        "changes differ in sign, over all pairs; unchanged in both: share of all features; mean ± standard error over "
        f"{len(content['channels'])} channels. Right: a line per channel.",
    )
    rows = [[row, row] for row in range(count)]
    axes = figure.subplot_mosaic([*rows, ["table", "pairs"]], height_ratios=[0.8] * count + [1.2], width_ratios=(2, 1))
    for row, (channel_images, entry) in enumerate(zip(images, content["channels"], strict=False)):
        axes[row].set_title(f"channel {entry['channel']} of {PARTS_STAGE}", loc="left", pad=3)
        draw_squares(axes[row], channel_images, entry)
    draw_table(axes["table"], content["layers"])
    draw_pairs(axes["pairs"], content["channels"])
    return figure


def draw_squares(axes: Axes, images: np.ndarray, entry: dict) -> None:
    """A channel's images (n, S, S, 3) side by side with their squares, over thin dark lines to show on any color."""
    size = images.shape[1]
    gap = max(1, size // 24)
    axes.imshow(image_grid(images, len(images), gap), interpolation="antialiased")
    for n, (random, part) in enumerate(zip(entry["random"][0], entry["parts"], strict=True)):
        for (top, left, side), color, line in ((random, "white", "--"), (part, style.ERROR_COLOR, "-")):
            square = ((n * (size + gap) + left - 0.5, top - 0.5), side, side)
            axes.add_patch(Rectangle(*square, fill=False, edgecolor="black", linewidth=1.6))
            axes.add_patch(Rectangle(*square, fill=False, edgecolor=color, linestyle=line, linewidth=1))
    axes.set_axis_off()


def draw_table(axes: Axes, layers: dict[str, dict]) -> None:
    """Table 1: a row per kind of square, a column per layer."""
    cells = [["mean feature sign change", *layers]]
    for row, name in (SQUARES | {"difference": "difference (paired)"}).items():
        estimates = (rows[row] for rows in layers.values())
        cells.append([name, *(f"{style.format_number(e['mean'], '.3f')} ± {e['error']:.3f}" for e in estimates)])
    for row in SQUARES:
        shares = [f"{100 * rows['unchanged'][row]:.1f} %" for rows in layers.values()]
        cells.append([f"unchanged in both, {row}", *shares])
    for row, texts in enumerate(cells):
        for left, text in zip((0.05, 0.43, 0.63, 0.83), texts, strict=True):
            axes.text(left, 0.92 - row / len(cells), text, va="center", weight="normal" if row else "bold")
    axes.set_axis_off()


def draw_pairs(axes: Axes, channels: Sequence[dict]) -> None:
    """A line per channel and layer, from random squares to the channel's parts."""
    lefts = [2.3 * n for n in range(len(CHANGED_LAYERS))]
    for left, layer in zip(lefts, CHANGED_LAYERS, strict=True):
        axes.text(left + 0.5, 1.03, layer, ha="center", transform=axes.get_xaxis_transform())
        parts, random = zip(*(parts_and_random(entry, layer, "different") for entry in channels), strict=True)
        axes.plot([left, left + 1], [random, parts], color="0.6", linewidth=0.6)
        axes.plot([left] * len(random), random, "o", color="0.4", markersize=2.5)
        axes.plot([left + 1] * len(parts), parts, "o", color=style.ERROR_COLOR, markersize=2.5)
    axes.set_xticks([left + side for left in lefts for side in (0, 1)], ["random", "part"] * len(lefts))
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="share that differs")
