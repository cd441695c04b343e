"""Does hiding a part in several images change their features alike? (Zeiler & Fergus 2014, section 4.3, table 1)."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.activations import check_finite, dissimilar_channels
from analysis.crops import bounding_boxes, corner_inside
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import image_grid, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, format_number, heading, styled, unpooling_note
from network import ResNet18
from reverse_network import class_signal

PARTS_STAGE = "conv4_x"  # its units see parts; those of conv5_x see most of the image
CHANGED_LAYERS = ("conv4_x", "conv5_x", "pooled")
MAX_CHANNELS, DRAWN_CHANNELS = 12, 4
IMAGES_PER_CHANNEL = 9
DRAWS = 3  # of random squares in each image

Square = tuple[int, int, int]  # top, left, side, in pixels of the network's input


@torch.inference_mode()
def correspond(
    network: ResNet18, inputs: Tensor, pictures: Tensor, channel: int, seed: int, draws: int = DRAWS
) -> dict[str, list | dict]:
    """Hide in each image the square that holds the channel's reconstruction, then random squares of the same size.

    inputs    (n, 3, S, S) normalised images
    pictures  (n, 3, S, S) on the CPU: what the channel of PARTS_STAGE saw in each
    seed      of the random squares, with the channel's number

    Returns the squares of each image, "parts" (n) and "random" (draws, n), and how differently the features change,
    "parts_change" and "random_change" (draws): name of CHANGED_LAYERS -> `disagreement`. The channel itself is left
    out: it chose the parts. Raises CheckpointError when features are not finite.
    """
    features = network.trace(inputs).features["conv5_x"]
    classes = network.classify(features).argmax(1)
    activation = class_signal(network, features, classes, weighted=True).sum(1)  # (n, h, w)
    whole = features_without(network, inputs, channel)
    parts = part_squares(pictures)
    generator = np.random.default_rng((seed, channel))
    random = [random_squares(activation, parts, inputs.shape[-1], generator) for _ in range(draws)]
    changes = []
    for squares in (parts, *random):
        hidden = features_without(network, hide(inputs, squares), channel)
        changes.append({layer: disagreement(hidden[layer] - whole[layer]) for layer in CHANGED_LAYERS})
    return {"parts": parts, "random": random, "parts_change": changes[0], "random_change": changes[1:]}


def part_squares(pictures: Tensor) -> list[Square]:
    """The square around the energy of each reconstruction (n, 3, S, S), shifted into the image."""
    size = tuple(pictures.shape[-2:])
    squares = []
    for box in bounding_boxes(pictures):
        top, left, bottom, right = box or (0, 0, *size)
        side = min(max(bottom - top, right - left), *size)
        squares.append((*corner_inside(((top + bottom) // 2, (left + right) // 2), side, size), side))
    return squares


def random_squares(
    activation: Tensor, squares: Sequence[Square], image_size: int, random: np.random.Generator
) -> list[Square]:
    """Squares of the same sides, centred where the class activation map is positive; if that is nowhere, anywhere.

    activation  (n, h, w), enlarged bilinearly to the image
    squares     n of them

    The squares are shifted into the image.
    """
    size = (image_size, image_size)
    is_positive = F.interpolate(activation[:, None].float(), size, mode="bilinear")[:, 0].cpu() > 0
    drawn = []
    for allowed, (*_, side) in zip(is_positive.flatten(1), squares, strict=True):
        pixels = allowed.nonzero().flatten() if allowed.any() else torch.arange(allowed.numel())
        center = pixels[random.integers(len(pixels))].item()
        drawn.append((*corner_inside(divmod(center, image_size), side, size), side))
    return drawn


def hide(inputs: Tensor, squares: Sequence[Square]) -> Tensor:
    """Normalised images (n, 3, S, S), a copy, each with the mean color (zero) in its square."""
    hidden = inputs.clone()
    for image, (top, left, side) in zip(hidden, squares, strict=True):
        image[:, top : top + side, left : left + side] = 0
    return hidden


def features_without(network: ResNet18, inputs: Tensor, channel: int) -> dict[str, Tensor]:
    """name of CHANGED_LAYERS -> all features (n, m) on the CPU, without those of the channel of PARTS_STAGE."""
    features = network.trace(inputs).features
    others = torch.arange(features[PARTS_STAGE].shape[1]) != channel
    pooled = network.avgpool(features["conv5_x"])
    features = features | {PARTS_STAGE: features[PARTS_STAGE][:, others], "pooled": pooled}
    return {layer: check_finite(features[layer].flatten(1).cpu(), f"features of {layer}") for layer in CHANGED_LAYERS}


def disagreement(changes: Tensor) -> dict[str, float | None]:
    """How differently features change in n images, mean over all pairs of them. changes: (n, m), with n at least 2.

    different  share of the features that change in at least one image of the pair whose changes have different signs
               (0..1; a feature that does not change has sign 0); None if nothing changes
    unchanged  share of all features that change in neither image of the pair
    """
    different, unchanged = [], []
    for first, second in combinations(changes.sign().to(torch.int8), 2):
        changed = int(((first != 0) | (second != 0)).sum())
        unchanged.append(1 - changed / len(first))
        different.append(int((first != second).sum()) / changed if changed else None)
    return {"different": mean(different), "unchanged": mean(unchanged)}


def mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are not None; None if there are none."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def sign_changes(entry: dict, layer: str) -> tuple[float | None, float | None]:
    """A channel's share of features that change differently: of its parts, and the mean over the random squares."""
    random = mean([change[layer]["different"] for change in entry["random_change"]])
    return entry["parts_change"][layer]["different"], random


def table(channels: Sequence[dict], layer: str) -> dict[str, dict[str, float | None]]:
    """Mean and standard error over the channels of `sign_changes`, and of their paired difference; what is unchanged.

    channels: entries of correspondence.json
    """
    pairs = [sign_changes(entry, layer) for entry in channels]
    pairs = torch.tensor([pair for pair in pairs if None not in pair], dtype=torch.float64).reshape(-1, 2)
    rows, count = {}, len(pairs)
    for row, values in zip(("parts", "random", "difference"), (*pairs.T, pairs[:, 0] - pairs[:, 1]), strict=True):
        error = values.std().item() / count**0.5 if count > 1 else None
        rows[row] = {"mean": values.mean().item() if count else None, "error": error}
    random = [change[layer]["unchanged"] for entry in channels for change in entry["random_change"]]
    parts = [entry["parts_change"][layer]["unchanged"] for entry in channels]
    return rows | {"unchanged": {"parts": mean(parts), "random": mean(random)}}


def format_estimate(row: dict[str, float | None]) -> str:
    """A row's mean and standard error."""
    return f"{format_number(row['mean'], '.3f')} ± {format_number(row['error'], '.3f')}"


def table_in_words(content: dict) -> str:
    """The main numbers of correspondence.json in a sentence, for the report."""
    parts = [
        f"{layer} {format_number(rows['parts']['mean'], '.3f')} against {format_number(rows['random']['mean'], '.3f')} "
        f"(difference {format_estimate(rows['difference'])})"
        for layer, rows in content["layers"].items()
    ]
    what = "Share of features that change with different signs, hidden parts against random squares"
    return f"{what}, mean over {len(content['channels'])} channels: {', '.join(parts)}."


@register(
    "correspondence",
    "Corresponding parts in several images",
    "If the changes disagree less where the channel's parts are hidden than under random squares, the parts "
    "correspond.",
    stages=(PARTS_STAGE,),
    words=table_in_words,
    passes=1500,
)
def draw_correspondence(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of correspondence.json."""
    peaks = inspection.search.peaks[PARTS_STAGE]
    if len(peaks) < IMAGES_PER_CHANNEL:
        raise NotDrawn(f"it needs {IMAGES_PER_CHANNEL} test images or more: {len(peaks)} are searched")
    ranked = peaks.sort(dim=0, descending=True, stable=True)
    excited = ranked.values[IMAGES_PER_CHANNEL - 1] > 0
    chosen = [channel for channel in dissimilar_channels(peaks, peaks.shape[1]) if excited[channel]][:MAX_CHANNELS]
    if not chosen:
        raise NotDrawn(f"no channel of {PARTS_STAGE} is excited by {IMAGES_PER_CHANNEL} images")
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    channels = []
    for channel in chosen:
        images = inspection.searched[ranked.indices[:IMAGES_PER_CHANNEL, channel]]
        inputs = inspection.inputs(inspection.images[images])
        (pictures,) = reconstruct(inspection.network, mirrors, inputs, PARTS_STAGE, channel, "peak").values()
        entry = correspond(inspection.network, inputs, pictures, channel, settings.seed)
        channels.append({"channel": channel, "images": images.tolist(), **entry})
    layers = {layer: table(channels, layer) for layer in CHANGED_LAYERS}
    content = {"stage": PARTS_STAGE, "draws": DRAWS, "layers": layers, "channels": channels}
    drawn = [inspection.resized(inspection.images[entry["images"]]) for entry in channels[:DRAWN_CHANNELS]]
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    yield Path("correspondence"), correspondence_figure(content, to_array(torch.stack(drawn)), note)
    yield Path("correspondence"), content


@styled
def correspondence_figure(content: dict, images: np.ndarray, note: str) -> Figure:
    """A row of images per channel with both kinds of squares; below, the table, and the same by channel.

    content  of correspondence.json
    images   (DRAWN_CHANNELS or fewer, IMAGES_PER_CHANNEL, S, S, 3) in 0..1: those of the first channels
    """
    count = len(images)
    figure = Figure((WIDTH_INCHES, 2.6 + 0.95 * count), layout="constrained")
    axes = figure.subplot_mosaic(
        [[row, row] for row in range(count)] + [["table", "pairs"]],
        height_ratios=[0.8] * count + [1.2],
        width_ratios=(2, 1),
    )
    for row, (channel_images, entry) in enumerate(zip(images, content["channels"], strict=False)):
        axes[row].set_title(f"channel {entry['channel']} of {PARTS_STAGE}", loc="left", pad=3)
        draw_squares(axes[row], channel_images, entry)
    draw_table(axes["table"], content["layers"])
    draw_pairs(axes["pairs"], content["channels"])
    heading(
        figure,
        f"Parts that channels of {PARTS_STAGE} find, hidden in {IMAGES_PER_CHANNEL} images each",
        f"Red: the square that holds the channel's reconstruction ({note}). White: a random square of the same size, "
        "centred where the class activation map is positive.",
        "Numbers: share of the features whose changes differ in sign when the squares of two images are hidden, over "
        f"all pairs of the {IMAGES_PER_CHANNEL} images, without the channel itself; mean ± standard error over "
        f"{len(content['channels'])} channels, {DRAWS} random squares per image. Right: a line per channel.",
        "The paper hides eyes and noses of five dogs, chosen by hand.",
    )
    return figure


def draw_squares(axes: Axes, images: np.ndarray, entry: dict) -> None:
    """A channel's images (n, S, S, 3) side by side with their squares, over thin dark lines to show on any color."""
    size = images.shape[1]
    gap = max(1, size // 24)
    axes.imshow(image_grid(images, len(images), gap), interpolation="antialiased")
    for n, (random, part) in enumerate(zip(entry["random"][0], entry["parts"], strict=True)):
        for (top, left, side), color, style in ((random, "white", "--"), (part, ERROR_COLOR, "-")):
            square = ((n * (size + gap) + left - 0.5, top - 0.5), side, side)
            axes.add_patch(Rectangle(*square, fill=False, edgecolor="black", linewidth=1.6))
            axes.add_patch(Rectangle(*square, fill=False, edgecolor=color, linestyle=style, linewidth=1))
    axes.set_axis_off()


def draw_table(axes: Axes, layers: dict[str, dict]) -> None:
    """Table 1: a row per kind of square, a column per layer."""
    names = {"parts": "part found by the channel", "random": "random square", "difference": "difference (paired)"}
    cells = []
    for row, name in names.items():
        cells.append([name, *(format_estimate(rows[row]).replace("-", "\N{MINUS SIGN}") for rows in layers.values())])
    for row in ("parts", "random"):
        shares = [format_number(rows["unchanged"][row], ".1%").replace("%", " %") for rows in layers.values()]
        cells.append([f"unchanged in both, {row}", *shares])
    columns = ["mean feature sign change", *layers]
    grid = axes.table(
        cells, colLabels=columns, colWidths=(0.4, 0.2, 0.2, 0.2), cellLoc="left", colLoc="left", edges="open",
        bbox=(0, 0, 1, 1),
    )  # fmt: skip
    grid.auto_set_font_size(False)
    grid.set_fontsize(7)
    for column in range(len(columns)):
        grid[0, column].set_text_props(weight="bold")
    axes.set_axis_off()


def draw_pairs(axes: Axes, channels: Sequence[dict]) -> None:
    """A line per channel and layer, from random squares to the channel's parts."""
    lefts = [2.3 * n for n in range(len(CHANGED_LAYERS))]
    for left, layer in zip(lefts, CHANGED_LAYERS, strict=True):
        axes.text(left + 0.5, 1.03, layer, ha="center", transform=axes.get_xaxis_transform())
        for entry in channels:
            part, random = sign_changes(entry, layer)
            if part is not None and random is not None:
                axes.plot([left, left + 1], [random, part], color="0.6", linewidth=0.6)
                axes.plot(left, random, "o", color="0.4", markersize=2.5)
                axes.plot(left + 1, part, "o", color=ERROR_COLOR, markersize=2.5)
    ticks = [left + side for left in lefts for side in (0, 1)]
    axes.set_xticks(ticks, ["random", "part"] * len(lefts))
    axes.set(xlim=(-0.2, ticks[-1] + 0.2), ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="share that differs")
