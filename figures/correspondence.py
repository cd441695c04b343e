"""Do channels find corresponding parts? Images, squares, and the table (Zeiler & Fergus 2014, figure 8 and table 1)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.channel_groups import dissimilar_channels
from analysis.correspondence import DRAWS, LAYERS, ChannelCorrespondence, Square, correspond
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, bare_axes_at, format_number, styled, text_at, unpooling_note

STAGE = "conv4_x"  # its units see parts; those of conv5_x see most of the image
CHANNELS, IMAGES, SHOWN = 12, 9, 4
ROWS = ("parts", "random", "difference")
# inches: left of and above the tiles, from tile to tile, from row to row, and of the table below
LEFT, TOP, TILE, ROW, TABLE = 0.08, 0.5, 0.762, 0.95, 2.1


@dataclass(frozen=True)
class Statistic:
    """Mean and standard error over the channels; None where too few channels have a value."""

    mean: float | None
    error: float | None


@dataclass(frozen=True)
class ShownCorrespondence:
    """What the figure shows.

    found   one per channel
    images  (channels, IMAGES): indices in the test split
    shown   (SHOWN or fewer, IMAGES, S, S, 3) in 0..1: the images of the first channels
    note    the rule, for the caption
    """

    found: tuple[ChannelCorrespondence, ...]
    images: tuple[tuple[int, ...], ...]
    shown: np.ndarray
    note: str


def table_in_words(content: dict) -> str:
    """The main numbers of correspondence.json in a sentence, for the report."""
    parts = [
        f"{layer} {format_number(rows['parts']['mean'], '.3f')} against {format_number(rows['random']['mean'], '.3f')} "
        f"(difference {format_number(rows['difference']['mean'], '.3f')} ± "
        f"{format_number(rows['difference']['error'], '.3f')})"
        for layer, rows in content["layers"].items()
    ]
    return (
        f"Share of features that change with different signs, hidden parts against random squares, mean over "
        f"{len(content['channels'])} channels: {', '.join(parts)}."
    )


@register(
    "correspondence",
    "Corresponding parts in several images",
    "If the changes disagree less where the channel's parts are hidden than under random squares, the parts "
    "correspond.",
    stages=("conv4_x",),
    words=table_in_words,
)
def draw_correspondence(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of correspondence.json."""
    content = measure(inspection, settings)
    yield Path("correspondence"), correspondence_figure(content)
    yield Path("correspondence"), json_content(content)


def measure(inspection: Inspection, settings: Settings) -> ShownCorrespondence:
    """All that the figure shows. Raises NotDrawn when no channel is excited by nine images."""
    peaks = inspection.search.peaks[STAGE]
    if len(peaks) < IMAGES:
        raise NotDrawn(f"it needs {IMAGES} test images or more: {len(peaks)} are searched")
    ranked = peaks.sort(dim=0, descending=True, stable=True)
    excited = ranked.values[IMAGES - 1] > 0
    channels = [channel for channel in dissimilar_channels(peaks, peaks.shape[1]) if excited[channel]][:CHANNELS]
    if not channels:
        raise NotDrawn(f"no channel of {STAGE} is excited by {IMAGES} images")
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    found, images = [], []
    for channel in channels:
        images.append(inspection.searched[ranked.indices[:IMAGES, channel]])
        inputs = inspection.inputs(inspection.images[images[-1]])
        (pictures,) = reconstruct(inspection.network, mirrors, inputs, STAGE, channel, "peak").values()
        found.append(correspond(inspection.network, inputs, pictures, STAGE, channel, settings.seed))
    shown = torch.stack([inspection.resized(inspection.images[each]) for each in images[:SHOWN]])
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    return ShownCorrespondence(tuple(found), tuple(tuple(each.tolist()) for each in images), to_array(shown), note)


def table(found: Sequence[ChannelCorrespondence], layer: str) -> dict[str, Statistic]:
    """ROWS -> mean and standard error of the share of features that change differently; the difference is paired."""
    pairs = [(each.different(layer, False), each.different(layer, True)) for each in found]
    pairs = torch.tensor([pair for pair in pairs if None not in pair], dtype=torch.float64).reshape(-1, 2)
    values = {"parts": pairs[:, 0], "random": pairs[:, 1], "difference": pairs[:, 0] - pairs[:, 1]}
    return {row: statistic(each) for row, each in values.items()}


def statistic(values: Tensor) -> Statistic:
    """Of one value per channel, (n,)."""
    count = len(values)
    error = values.std().item() / count**0.5 if count > 1 else None
    return Statistic(values.mean().item() if count else None, error)


def unchanged(found: Sequence[ChannelCorrespondence], layer: str) -> dict[str, float]:
    """Share of the features that change in neither image of a pair, parts and random squares: mean over channels."""
    parts = [each.parts_change[layer].unchanged for each in found]
    random = [change[layer].unchanged for each in found for change in each.random_change]
    return {"parts": sum(parts) / len(parts), "random": sum(random) / len(random)}


def json_content(content: ShownCorrespondence) -> dict:
    """What correspondence.json holds."""
    layers = {
        layer: {row: asdict(each) for row, each in table(content.found, layer).items()}
        | {"unchanged": unchanged(content.found, layer)}
        for layer in LAYERS
    }
    channels = [
        {"channel": each.channel, "images": list(images)}
        | {key: value for key, value in asdict(each).items() if key != "channel"}
        for each, images in zip(content.found, content.images, strict=True)
    ]
    return {"stage": STAGE, "draws": DRAWS, "layers": layers, "channels": channels}


@styled
def correspondence_figure(content: ShownCorrespondence) -> Figure:
    """A row of images per channel with both kinds of squares; below, the table, and the same by channel."""
    count = len(content.shown)
    height = TOP + count * ROW + TABLE
    figure = Figure((WIDTH_INCHES, height))
    text_at(figure, WIDTH_INCHES / 2, 0.14, "Do channels find corresponding parts?", fontsize=9)
    for row, images in enumerate(content.shown):
        top = TOP + row * ROW
        text_at(figure, LEFT, top - 0.08, f"channel {content.found[row].channel} of {STAGE}", ha="left", fontsize=7)
        for column, image in enumerate(images):
            axes = bare_axes_at(figure, LEFT + column * TILE, top, TILE - 0.03, TILE - 0.03)
            axes.imshow(image, interpolation="antialiased", extent=(0, len(image), len(image), 0))
            outline(axes, content.found[row].random[0][column], "white", "--")
            outline(axes, content.found[row].parts[column], ERROR_COLOR, "-")
    top = TOP + count * ROW
    draw_table(figure, top + 0.1, content.found)
    draw_pairs(bare_axes_at(figure, 4.85, top + 0.2, 2.08, 1.05), content.found)
    lines = (
        f"Red: the square that holds the channel's reconstruction ({content.note}).",
        "White: a random square of the same size, centred where the class activation map is positive.",
        "Numbers: share of the features whose changes differ in sign when the squares of two images are hidden, over "
        f"all pairs of {IMAGES} images,",
        f"without the channel itself: mean ± standard error over {len(content.found)} channels; {DRAWS} random squares "
        "per image.",
        "The paper hides eyes and noses of five dogs, chosen by hand.",
    )
    text_at(figure, WIDTH_INCHES / 2, height - 0.33, "\n".join(lines))
    return figure


def outline(axes: Axes, square: Square, color: str, style: str) -> None:
    """A square on an image, over a thin dark line so that it shows on any color."""
    top, left, side = square
    for each, width, dashes in (("black", 1.6, "-"), (color, 1.0, style)):
        axes.add_patch(
            Rectangle((left, top), side, side, fill=False, edgecolor=each, linewidth=width, linestyle=dashes)
        )


def draw_table(figure: Figure, top: float, found: Sequence[ChannelCorrespondence]) -> None:
    """Table 1: a row per kind of square, a column per layer."""
    columns = (2.05, 2.95, 3.85)
    names = {"parts": "part found by the channel", "random": "random square", "difference": "difference (paired)"}
    for x, layer in zip(columns, LAYERS, strict=True):
        text_at(figure, x, top, layer, fontsize=7, weight="bold")
        for line, (_, each) in enumerate(table(found, layer).items(), 1):
            text = f"{format_number(each.mean, '.3f')} ± {format_number(each.error, '.3f')}"
            text_at(figure, x, top + 0.2 * line, text.replace("-", "\N{MINUS SIGN}"), fontsize=7)
        for line, share in enumerate(unchanged(found, layer).values(), len(ROWS) + 1):
            text_at(figure, x, top + 0.2 * line, format_number(share, ".1%").replace("%", " %"), fontsize=7)
    text_at(figure, LEFT, top, "mean feature sign change", ha="left", fontsize=7, weight="bold")
    rows = [*names.values(), "unchanged in both, parts", "unchanged in both, random"]
    for line, name in enumerate(rows, 1):
        text_at(figure, LEFT, top + 0.2 * line, name, ha="left", fontsize=7)


def draw_pairs(axes: Axes, found: Sequence[ChannelCorrespondence]) -> None:
    """A line per channel and layer, from random squares to the channel's parts."""
    for place, layer in enumerate(LAYERS):
        axes.text(2.6 * place + 0.5, 1.03, layer, ha="center", transform=axes.get_xaxis_transform())
        for each in found:
            values = [each.different(layer, True), each.different(layer, False)]
            if None not in values:
                axes.plot([2.6 * place, 2.6 * place + 1], values, color="0.6", linewidth=0.6)
                axes.plot(2.6 * place, values[0], "o", color="0.4", markersize=2.5)
                axes.plot(2.6 * place + 1, values[1], "o", color=ERROR_COLOR, markersize=2.5)
    ticks = [2.6 * place + end for place in range(len(LAYERS)) for end in (0, 1)]
    axes.set_xticks(ticks, ["random", "part"] * len(LAYERS))
    axes.set_xlim(-0.2, ticks[-1] + 0.2)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    axes.spines[:].set_visible(True)
