"""Channels of every stage over the epochs, and how fast the stages settle (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.activations import split_dead_channels
from analysis.channels import chosen_channels
from analysis.crops import corner_inside, crop, crop_boxes, energy_centers
from analysis.evolution import IMAGES, Snapshot, evolution, snapshots_beside
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, bare_axes_at, styled, text_at, unpooling_note
from network import STAGES
from runtime.checkpoint import CheckpointError

CHANNELS_COMPARED = 9  # at each stage
MOST_COLUMNS = 9
COLORS = dict(zip(STAGES, colormaps["viridis"](np.linspace(0.9, 0, len(STAGES))), strict=True))
# inches: left of and above the tiles, text below each, height of the curves and of the notes
LEFT, TOP, TEXT, CURVES, NOTES = 0.72, 0.68, 0.19, 1.5, 0.97


@dataclass(frozen=True)
class ShownEvolution:
    """What the figure shows.

    snapshots  in order of their epochs; the last is the final network
    channels   stage -> the channels compared; the first one is drawn
    tiles      stage -> one (s, s, 3) in 0..1 around grey per snapshot
    patches    stage -> (s, s, 3) in 0..1: the last tile's part of the image
    images     how many are searched
    note       the rule, for the caption
    """

    snapshots: tuple[Snapshot, ...]
    channels: dict[str, list[int]]
    tiles: dict[str, list[np.ndarray]]
    patches: dict[str, np.ndarray]
    images: int
    note: str


@register(
    "evolution",
    "Channels during training",
    "A channel has settled once its strongest image and its picture stop changing; the curves say how early each "
    "stage does.",
    stages=STAGES,
    is_slow=True,
)
def draw_evolution(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of evolution.json."""
    if not (files := snapshots_beside(inspection.checkpoint)):
        raise NotDrawn("it needs a run of train.py --snapshots 1 2 5 10 20 40")
    if (count := len(inspection.searched)) < IMAGES:
        raise NotDrawn(f"it needs {IMAGES} test images or more: {count} are searched")
    channels = {stage: found for stage in STAGES if (found := channels_to_compare(inspection, settings, stage))}
    if not channels:
        raise NotDrawn("no image excites any channel")
    try:
        snapshots = tuple(evolution(inspection, settings, files, channels))
    except CheckpointError as error:
        raise NotDrawn(str(error)) from error
    content = crop_tiles(inspection, snapshots, channels, f"{settings.main_rule}{unpooling_note(settings.unpool)}")
    yield Path("evolution"), evolution_figure(content)
    yield Path("evolution"), json_content(content)


def channels_to_compare(inspection: Inspection, settings: Settings, stage: str) -> list[int]:
    """Living channels of a stage: those asked for, if it has them, or else the strongest different ones."""
    found = chosen_channels(settings, inspection.search, stage, CHANNELS_COMPARED)
    return split_dead_channels(inspection.search.top[stage], found)[0][:CHANNELS_COMPARED]


def crop_tiles(
    inspection: Inspection, snapshots: tuple[Snapshot, ...], channels: dict[str, list[int]], note: str
) -> ShownEvolution:
    """The pictures of each stage, cropped to squares of one side, in pixels of each network's input."""
    tiles, patches = {}, {}
    for stage in channels:
        least = max(crop_boxes([each.pictures[stage]])[0] for each in snapshots)
        tiles[stage] = []
        for each in snapshots:
            size, side = (each.image_size,) * 2, min(least, each.image_size)
            corners = [corner_inside(center, side, size) for center in energy_centers(each.pictures[stage])]
            tiles[stage].append(diverging_tiles(crop(each.pictures[stage], side, corners))[0])
        image = inspection.resized(inspection.images[snapshots[-1].units[stage].images])
        patches[stage] = to_array(crop(image, side, corners))[0]
    return ShownEvolution(snapshots, channels, tiles, patches, len(inspection.searched), note)


def json_content(content: ShownEvolution) -> dict:
    """What evolution.json holds."""
    stages = {
        stage: {
            "channel": channels[0],
            "images": [each.units[stage].images[0].item() for each in content.snapshots],
            "activations": [each.units[stage].scores[0].item() for each in content.snapshots],
            "shares": [each.shares[stage] for each in content.snapshots],
            "correlations": [each.correlation[stage] for each in content.snapshots],
            "channels": channels,
        }
        for stage, channels in content.channels.items()
    }
    return {
        "epochs": [each.epoch for each in content.snapshots],
        "image_sizes": [each.image_size for each in content.snapshots],
        "images_searched": content.images,
        "chance": IMAGES / content.images,
        "stages": stages,
    }


@styled
def evolution_figure(content: ShownEvolution) -> Figure:
    """A row per stage, a column per epoch, and the last image; below, by stage and epoch, how much is settled."""
    places = columns_shown(len(content.snapshots))
    tile = min((WIDTH_INCHES - LEFT - 0.05) / (len(places) + 1), 0.8)
    row_height = tile + TEXT
    height = TOP + len(content.tiles) * row_height + CURVES + NOTES
    figure = Figure((WIDTH_INCHES, height))
    text_at(figure, WIDTH_INCHES / 2, 0.14, "What one channel of each stage responds to, by epoch", fontsize=9)
    middles = [LEFT + (column + 0.5) * tile for column in range(len(places) + 1)]
    for x, place in zip(middles, places, strict=False):
        text_at(figure, x, TOP - 0.17, heading_of(content.snapshots[place]))
    text_at(figure, middles[-1], TOP - 0.17, "last image")
    for row, (stage, tiles) in enumerate(content.tiles.items()):
        top = TOP + row * row_height
        text_at(figure, LEFT - 0.08, top + tile / 2, f"{stage}\nchannel {content.channels[stage][0]}", ha="right")
        for column, shown in enumerate([*(tiles[place] for place in places), content.patches[stage]]):
            axes = bare_axes_at(figure, LEFT + column * tile, top, tile - 0.04, tile - 0.04)
            axes.imshow(shown, interpolation="antialiased")
        images = [each.units[stage].images[0].item() for each in content.snapshots]
        for x, place in zip(middles, places, strict=False):
            is_new = place > 0 and images[place] != images[place - 1]
            text_at(figure, x, top + tile + 0.04, f"{images[place]}", color=ERROR_COLOR if is_new else "black")
    draw_numbers(figure, TOP + len(content.tiles) * row_height + 0.28, content)
    resized = " Dotted: the image size changes." if len({each.image_size for each in content.snapshots}) > 1 else ""
    lines = (
        f"Pictures: {content.note}, the strongest unit in {content.images:,} test images; own scale each, grey: zero.",
        "Numbers: its image, red where it has changed since the snapshot before.",
        f"Left: mean over all living channels. Right: the same units of the same images at each epoch, mean over "
        f"up to {CHANNELS_COMPARED} channels.{resized}",
    )
    text_at(figure, WIDTH_INCHES / 2, height - 0.23, "\n".join(lines))
    return figure


def columns_shown(count: int) -> list[int]:
    """Which of `count` snapshots have a column: all, or MOST_COLUMNS of them, evenly spread, with first and last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_COLUMNS))})


def heading_of(snapshot: Snapshot) -> str:
    """Epoch and image size."""
    return f"{'now' if snapshot.epoch is None else f'epoch {snapshot.epoch}'}\n{snapshot.image_size} px"


def epochs_of(snapshots: Sequence[Snapshot]) -> list[int]:
    """The epochs as numbers; an unknown last one follows the one before."""
    known = [each.epoch for each in snapshots if each.epoch is not None]
    return known + [max(known, default=0) + 1] * (len(snapshots) - len(known))


def draw_numbers(figure: Figure, top: float, content: ShownEvolution) -> None:
    """The shares of the final images, and the correlations with the final pictures, by stage and epoch."""
    width, epochs = 2.75, epochs_of(content.snapshots)
    shares = bare_axes_at(figure, 0.42, top, width, CURVES)
    alike = bare_axes_at(figure, 0.42 + width + 0.35, top, width, CURVES)
    for stage in content.tiles:
        style = {"color": COLORS[stage], "marker": "o", "markersize": 2.5, "linewidth": 1.2, "label": stage}
        shares.plot(epochs, [each.shares[stage] for each in content.snapshots], **style)
        alike.plot(epochs, [each.correlation[stage] for each in content.snapshots], **style)
    shares.axhline(IMAGES / content.images, color="0.5", linestyle="--", linewidth=0.8, label="chance")
    for axes, title in (
        (shares, f"share of a channel's final {IMAGES} images"),
        (alike, "correlation with the final picture"),
    ):
        axes.set_title(title, pad=4)
        format_axes(axes, epochs, [each.image_size for each in content.snapshots])
    handles, labels = shares.get_legend_handles_labels()
    place = ((0.42 + 2 * width + 0.42) / WIDTH_INCHES, 1 - (top + CURVES / 2) / figure.get_figheight())
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=place, frameon=False, fontsize=6, handlelength=1.2)


def format_axes(axes: Axes, epochs: Sequence[int], sizes: Sequence[int]) -> None:
    """Ticks, a grid, and a line between epochs of different image size."""
    axes.spines[:].set_visible(True)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(pad=2)
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel("epoch", labelpad=1)
    for n in range(1, len(sizes)):
        if sizes[n] != sizes[n - 1]:
            axes.axvline((epochs[n - 1] + epochs[n]) / 2, color="0.4", linestyle=":", linewidth=1)
