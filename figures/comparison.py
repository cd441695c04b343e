"""Figures that compare: one row per unit, one column per way to draw it."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import split_dead_channels
from analysis.channels import StrongestUnits, chosen_channels, robust_limit, strongest_units
from analysis.correlation import ratios
from analysis.crops import crop_together
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn
from figures.style import WIDTH_INCHES, heading, styled
from network import STAGES

ROWS = 6
GREY = "grey: zero"


def select_units(inspection: Inspection, settings: Settings) -> StrongestUnits:
    """The strongest units of the first ROWS living channels that were chosen, at the deepest stage.

    Raises NotDrawn when there are none.
    """
    stage = settings.deepest_stage
    top = inspection.search.top[stage]
    alive, _ = split_dead_channels(top, chosen_channels(settings, inspection.search, stage))
    if not alive:
        raise NotDrawn("no image excites the channels asked for")
    return strongest_units(inspection, stage, alive[:ROWS], top)


def select_units_above_pooling(inspection: Inspection, settings: Settings) -> StrongestUnits:
    """`select_units`; raises NotDrawn at conv1, too, where there is nothing to compare."""
    if settings.deepest_stage == STAGES[0]:
        raise NotDrawn(f"it needs one of the --stages {' '.join(STAGES[1:])}")
    return select_units(inspection, settings)


def crop_rows(
    inspection: Inspection, units: StrongestUnits, pictures: dict[str, Tensor]
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Each unit's image (n, s, s, 3) and, for every column, its picture (n, 3, s, s), cropped alike."""
    patches, columns = crop_together(inspection.resized(inspection.images[units.images]), pictures)
    return to_array(patches), columns


def row_captions(units: StrongestUnits) -> list[str]:
    """Channel, image and activation of each unit."""
    rows = zip(units.channels, units.images.tolist(), units.scores.tolist(), strict=True)
    return [f"channel {channel}\nimage {image}\nactivation {score:.2f}" for channel, image, score in rows]


def tile_limits(columns: dict[str, Tensor]) -> dict[str, list[float]]:
    """`robust_limit` of every tile: column (n, 3, s, s) -> n half-widths of color scales."""
    return {name: robust_limit(each) for name, each in columns.items()}


def scale_captions(limits: dict[str, list[float]]) -> dict[str, list[str]]:
    """The half-width of each tile's own scale."""
    return {name: [f"±{limit:.2g}" for limit in each] for name, each in limits.items()}


def relative_norms(pictures: Tensor, references: Tensor) -> list[float | None]:
    """Each picture's Euclidean norm divided by its reference's; None where that is zero. (n, ...) each."""
    return ratios(*(each.flatten(1).norm(dim=1) for each in (pictures, references)))


@styled
def comparison_figure(
    patches: np.ndarray,
    columns: dict[str, Tensor],
    row_captions: list[str],
    tile_captions: dict[str, list[str]],
    title: Iterable[str],
    limits: dict[str, list[float]],
) -> Figure:
    """Rows of pictures: a patch (n, s, s, 3) in 0..1, then one tile per column, (n, 3, s, s) around grey.

    tile_captions  column -> n texts below its tiles
    title          lines of text above all
    limits         column -> n half-widths of its tiles' color scales
    """
    count, across = len(patches), 1 + len(columns)
    tile = min((WIDTH_INCHES - 0.8) / across, 1.2)
    lines = 1 + max(text.count("\n") for texts in tile_captions.values() for text in texts)
    figure = Figure((0.8 + across * tile, 0.6 + count * (tile + 0.06 + 0.1 * lines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(figure, *title, width=int(15 * (0.8 + across * tile)))
    grid = figure.subplots(count, across, squeeze=False)
    shown = [patches, *(diverging_tiles(each, limits[name]) for name, each in columns.items())]
    for row, axes in enumerate(grid):
        for column, tiles in zip(axes, shown, strict=True):
            column.imshow(tiles[row], interpolation="antialiased")
            column.set_xticks([])
            column.set_yticks([])
            column.spines[:].set_visible(False)
        axes[0].set_ylabel(row_captions[row], rotation=0, ha="right", va="center")
        for column, name in zip(axes[1:], columns, strict=True):
            column.set_xlabel(tile_captions[name][row], labelpad=2, fontsize=6)
    for column, name in zip(grid[0], ["image", *columns], strict=True):
        column.set_title(name)
    return figure
