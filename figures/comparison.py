"""What figures that compare share: one row per unit, one column per way to draw it; evidence over an image."""

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import split_dead_channels
from analysis.channels import StrongestUnits, chosen_channels, robust_limit, strongest_units
from analysis.crops import crop, crop_boxes
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn
from figures.style import RULE_STYLE, TIGHT, WIDTH_INCHES, format_short, new_figure, styled
from network import STAGES

ROWS = 6
FOR, AGAINST = "#b2182b", "#2166ac"  # evidence for a class, and against it


def select_units(inspection: Inspection, settings: Settings, count: int = ROWS) -> StrongestUnits:
    """The strongest units of the first `count` living channels that were chosen, at the deepest stage.

    Raises NotDrawn when there are none.
    """
    stage = settings.deepest_stage
    top = inspection.search.top[stage]
    alive, _ = split_dead_channels(top, chosen_channels(settings, inspection.search, stage))
    if not alive:
        raise NotDrawn("the channels asked for are zero at all units searched")
    return strongest_units(inspection, stage, alive[:count], top)


def select_units_above_pooling(inspection: Inspection, settings: Settings, count: int = ROWS) -> StrongestUnits:
    """`select_units`; raises NotDrawn at conv1, too, where there is nothing to compare."""
    if settings.deepest_stage == STAGES[0]:
        raise NotDrawn(f"it needs one of the --stages {' '.join(STAGES[1:])}")
    return select_units(inspection, settings, count)


def crop_rows(
    inspection: Inspection, units: StrongestUnits, pictures: dict[str, Tensor]
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Each unit's image (n, s, s, 3) and, for every column, its picture (n, 3, s, s), cropped alike."""
    box = crop_boxes(list(pictures.values()))
    patches = crop(inspection.resized(inspection.images[units.images]), *box)
    return to_array(patches), {name: crop(whole, *box) for name, whole in pictures.items()}


def row_captions(units: StrongestUnits) -> list[str]:
    """Channel, image and activation of each unit."""
    rows = zip(units.channels, units.images.tolist(), units.scores.tolist(), strict=True)
    return [f"channel {channel}\nimage {image}\nactivation {score:.2f}" for channel, image, score in rows]


def scale_captions(columns: dict[str, Tensor]) -> dict[str, list[str]]:
    """The half-width of each tile's own scale: column (n, 3, s, s) -> n texts."""
    return {name: [f"±{format_short(limit)}" for limit in robust_limit(tiles)] for name, tiles in columns.items()}


@styled
def comparison_figure(
    patches: np.ndarray,
    columns: dict[str, Tensor],
    row_captions: list[str],
    tile_captions: dict[str, list[str]],
    title: Iterable[str],
) -> Figure:
    """`draw_rows` as a figure of its own; title: lines of text above all."""
    count, across = len(patches), 1 + len(columns)
    tile = min((WIDTH_INCHES - 0.8) / across, 1.2)
    lines = 1 + max(text.count("\n") for texts in tile_captions.values() for text in texts)
    height = 0.2 + count * (tile + 0.08 + 0.11 * lines)
    figure = new_figure(height, *title, width=0.8 + across * tile, **TIGHT | {"h_pad": 0.04})
    tiles = {"image": patches} | {name: diverging_tiles(pictures) for name, pictures in columns.items()}
    draw_rows(figure.subplots(count, across, squeeze=False), tiles, row_captions, tile_captions)
    return figure


def draw_rows(
    grid: np.ndarray, columns: dict[str, np.ndarray], row_captions: Sequence[str], tile_captions: dict[str, list[str]]
) -> None:
    """Rows of pictures: name of a column -> (n, s, s, 3) in 0..1.

    grid           (n, columns) Axes
    tile_captions  column -> n texts below its tiles; none for a column that is left out
    """
    for column, (name, tiles) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(textwrap.fill(name, 12), color=RULE_STYLE.get(name, ("black",))[0])
        captions = tile_captions.get(name, [""] * len(tiles))
        for axes, tile, caption in zip(column, tiles, captions, strict=True):
            show_tile(axes, tile)
            axes.set_xlabel(caption, labelpad=2)
    for axes, caption in zip(grid[:, 0], row_captions, strict=True):
        axes.set_ylabel(caption, rotation=0, ha="right", va="center")


def show_tile(axes: Axes, tile: np.ndarray | None = None) -> None:
    """Draw a picture (s, s, 3) without ticks and frame; None: neither, nor a picture."""
    if tile is not None:
        axes.imshow(tile, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def evidence_over_image(images: np.ndarray, maps: Tensor, limit: float) -> np.ndarray:
    """The grey image, FOR where a map is positive and AGAINST where it is negative, each unit as a square.

    images  (H, W, 3) in 0..1, or one for each map
    maps    (n, h, w), on the CPU; their values are drawn without interpolation
    limit   the absolute value of full color; zero has none

    Returns (n, H, W, 3) in 0..1.
    """
    values = F.interpolate(maps.double()[:, None], images.shape[-3:-1])[:, 0, :, :, None].numpy() / (limit or 1)
    colors = np.where(values > 0, to_rgb(FOR), to_rgb(AGAINST))
    amounts = np.abs(values).clip(0, 1)
    light = 0.6 + 0.4 * images.mean(-1, keepdims=True)  # the colors stay visible over dark parts
    return light * (1 - amounts * (1 - colors))
