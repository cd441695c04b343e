"""The first layer's filters, in color and by input channel."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.inspection import LoadedNetwork
from analysis.settings import Settings
from figures.image_grid import color_limit, diverging_rgb, draw_numbered_grid
from figures.registry import register
from figures.style import WIDTH_INCHES, styled

FAINT = 0.01  # share of the network's largest weight below which a filter is not drawn: only its noise would show


@register(
    "filters",
    "Filters of the first layer",
    "Each tile is one filter: smooth tiles are tuned to edges and colors, noisy ones have learned little, "
    "grey ones have hardly any weight.",
    needs="checkpoint",
    section="filters",
)
def draw_filters(inspection: LoadedNetwork, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """conv1_filters, and conv1_filters_red, _green and _blue on one scale."""
    weights = inspection.network.conv1.weight.detach().cpu().contiguous().numpy()
    yield Path("conv1_filters"), filters_figure(weights)
    limit = color_limit(weights)
    for channel, name in enumerate(("red", "green", "blue")):
        yield Path(f"conv1_filters_{name}"), filter_channel_figure(weights[:, channel], name, limit)


@styled
def filters_figure(weights: np.ndarray) -> Figure:
    """Filters of RGB input, (n, 3, h, w), in color around grey; each has its own scale. Faint ones stay grey."""
    largest = np.abs(weights).max((1, 2, 3))
    faint = largest < FAINT * largest.max()
    limits = np.where(faint, 0, largest)  # all grey for a limit of zero
    tiles = [diverging_rgb(tile, limit) for tile, limit in zip(weights.transpose(0, 2, 3, 1), limits, strict=True)]
    note = f"\n{faint.sum()} have less than {100 * FAINT:g} % of the largest weight: grey" if faint.any() else ""
    figure = Figure((WIDTH_INCHES * 0.55, WIDTH_INCHES * 0.55 + (0.5 if note else 0.35)), layout="compressed")
    axes = figure.subplots()
    draw_numbered_grid(axes, np.stack(tiles), columns=math.ceil(math.sqrt(len(tiles))))
    shown = largest[~faint]
    axes.set_title(
        f"conv1: {len(weights)} filters of {weights.shape[2]}x{weights.shape[3]} in RGB; grey is 0\n"
        f"each scaled by its largest weight, {shown.min():.2g} to {shown.max():.2g}{note}"
    )
    return figure


@styled
def filter_channel_figure(weights: np.ndarray, name: str, limit: float) -> Figure:
    """The filters' weights on one input channel, (n, h, w), on the scale -limit to limit."""
    figure = Figure((WIDTH_INCHES * 0.55 + 0.5, WIDTH_INCHES * 0.55 + 0.25), layout="compressed")
    axes = figure.subplots()
    columns = math.ceil(math.sqrt(len(weights)))
    picture = draw_numbered_grid(axes, weights, columns, cmap="RdBu_r", vmin=-limit, vmax=limit, fill=np.nan)
    axes.set_title(f"conv1: weights on the {name} input channel")
    figure.colorbar(picture, ax=axes, shrink=0.9, label="weight")
    return figure
