"""The first layer's filters, in color and by input channel."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.inspection import LoadedNetwork
from analysis.settings import Settings
from figures.image_grid import diverging_rgb, draw_tile_page, tile_page_inches
from figures.registry import register
from figures.style import WIDTH_INCHES, axes_at, heading, heading_inches, styled

DEAD = 0.01  # a filter whose largest weight is below this share of the network's largest is left out: only noise shows
COLORBAR_INCHES = 0.45


@register(
    "filters",
    "Filters of the first layer",
    "Each tile is one filter, the largest norm first: smooth tiles are tuned to edges and colors, noisy ones have "
    "learned little; filters with hardly any weight are counted, not drawn.",
    needs="checkpoint",
    section="filters",
)
def draw_filters(inspection: LoadedNetwork, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """conv1_filters, and conv1_filters_red, _green and _blue: the same filters in the same order."""
    weights = inspection.network.conv1.weight.detach().cpu().contiguous().numpy()
    yield Path("conv1_filters"), filters_figure(weights)
    for color in COLORS:
        yield Path(f"conv1_filters_{color}"), filters_figure(weights, color)


COLORS = ("red", "green", "blue")  # in the order of the input channels


def living_filters(weights: np.ndarray) -> np.ndarray:
    """The numbers of the filters (n, 3, h, w) that are not dead, the largest norm first."""
    largest = np.abs(weights).max((1, 2, 3))
    order = np.argsort(-np.linalg.norm(weights.reshape(len(weights), -1), axis=1), kind="stable")
    return order[largest[order] >= DEAD * largest.max()]


@styled
def filters_figure(weights: np.ndarray, color: str | None = None) -> Figure:
    """The living filters of (n, 3, h, w), each on its own scale: in color, or their weights on one input color."""
    living = living_filters(weights)
    limits, shown = np.abs(weights[living]).max((1, 2, 3)), weights[living]
    dead, size = len(weights) - len(living), f"{weights.shape[2]}x{weights.shape[3]}"
    what = f"{len(living)} of {len(weights)} filters of {size} by norm"
    what += f", {dead} dead ones left out" if dead else ""
    scale = "Every filter is scaled by its largest weight"
    if color is None:
        tiles = [diverging_rgb(tile, limit) for tile, limit in zip(shown.transpose(0, 2, 3, 1), limits, strict=True)]
        title, norm = f"conv1: {what}", "its norm"
        scale, how = f"{scale}; grey is zero.", {}
    else:
        shown = shown[:, [COLORS.index(color)]]
        tiles = shown[:, 0] / np.where(limits > 0, limits, 1)[:, None, None]
        title, norm = f"conv1: weights on {color} input, {what}", f"the norm of the weights on {color}"
        scale += " over the three colors. The order is that of conv1_filters."
        how = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
    caption = f"Above a tile: the channel, and {norm}, which is also the bar below. {scale}"
    if dead:
        caption += f" Dead: the largest weight is below {100 * DEAD:g} % of the network's largest."
    upper, lower = heading_inches(title, caption)
    rows, bar = tile_page_inches(len(living)), COLORBAR_INCHES if how else 0
    figure = Figure((WIDTH_INCHES, upper + rows + bar + lower))
    heading(figure, title, caption)
    norms = np.linalg.norm(shown.reshape(len(living), -1), axis=1)
    draw_tile_page(figure, upper, tiles, living.tolist(), norms, **how)
    if how:
        axes = axes_at(figure, WIDTH_INCHES / 2 - 1.5, upper + rows + 0.03, 3, 0.08)
        colors = ScalarMappable(Normalize(-1, 1), how["cmap"])
        figure.colorbar(colors, cax=axes, orientation="horizontal", label="weight, relative to the filter's largest")
    return figure
