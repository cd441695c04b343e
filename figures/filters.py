"""The first layer's filters, in color and by input channel."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.inspection import LoadedNetwork
from analysis.settings import Settings
from figures.image_grid import tile_page
from figures.registry import register
from figures.style import styled

DEAD = 0.01  # a filter whose largest weight is below this share of the network's largest is left out: only noise shows
COLORS = ("red", "green", "blue")  # in the order of the input channels


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


@styled
def filters_figure(weights: np.ndarray, color: str | None = None) -> Figure:
    """The living filters of (n, 3, h, w), each on its own scale: in color, or their weights on one input color."""
    count, _, height, width = weights.shape
    limits, norms = np.abs(weights).max((1, 2, 3)), np.linalg.norm(weights.reshape(count, -1), axis=1)
    order = np.argsort(-norms, kind="stable")
    living = order[limits[order] >= DEAD * limits.max()]
    scaled = weights[living] / np.where(limits > 0, limits, 1)[living, None, None, None]
    what, dead = f"{len(living)} of {count} filters of {height}x{width} by norm", count - len(living)
    what += f", {dead} dead ones left out" if dead else ""
    if color is None:
        tiles, norms = 0.5 + 0.5 * scaled.transpose(0, 2, 3, 1), norms[living]
        title, norm, scale = f"conv1: {what}", "its norm", "; grey is zero."
    else:
        channel = COLORS.index(color)
        tiles, norms = scaled[:, channel], np.linalg.norm(weights[living, channel], axis=(1, 2))
        title, norm = f"conv1: weights on {color} input, {what}", f"the norm of the weights on {color}"
        scale = " over the three colors. The order is that of conv1_filters."
    caption = f"Above a tile: the channel, and {norm}, which is also the bar below. Every filter is scaled by its "
    caption += f"largest weight{scale}"
    caption += f" Dead: the largest weight is below {100 * DEAD:g} % of the network's largest." if dead else ""
    how = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if color else {}
    figure, below = tile_page(tiles, living, norms, 0.45 if color else 0.05, title, caption, **how)
    if color:
        axes, colors = below.add_axes((0.28, 0.75, 0.44, 0.18)), ScalarMappable(Normalize(-1, 1), how["cmap"])
        below.colorbar(colors, cax=axes, orientation="horizontal", label="weight, relative to the filter's largest")
    return figure
