"""All five stages: randomly drawn channels, image patches beside reconstructions (Zeiler & Fergus 2014, figure 2)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import random_channels, reconstruct_top_images
from analysis.crops import crop, crop_boxes
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, hstack_images, tile_grid, to_array
from figures.registry import register
from figures.style import (
    DECONVNET_NOTE,
    WIDTH_INCHES,
    describe_count,
    heading,
    heading_inches,
    styled,
    unpooling_note,
)
from network import STAGES

CHANNELS_PER_STAGE = 4
ACROSS = dict.fromkeys(STAGES, 4) | {"conv5_x": 2}  # channels per row: the pictures with the most detail are largest
RULES_SHOWN = ("guided", "deconvnet")  # the first page is the figure, the second one has the rule of the paper


@register(
    "hierarchy",
    "From edges to objects: all five stages",
    "From row to row, units see more of the image and respond to more complex patterns: edges, textures, parts.",
    stages=STAGES,
)
def draw_hierarchy(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """A page per rule, with the same channels and images."""
    settings = replace(settings, rules=RULES_SHOWN, units="peak")
    pages = {rule: {} for rule in RULES_SHOWN}
    for stage in STAGES:
        channels = random_channels(inspection.search.peaks[stage], settings.seed, CHANNELS_PER_STAGE)
        whole = reconstruct_top_images(inspection, settings, stage, channels) if channels else {}
        for rule, page in pages.items():
            page[stage] = {
                channel: crop_channel(inspection, stage, channel, whole[rule][n]) for n, channel in enumerate(channels)
            }
    size, note = inspection.metadata.image_size, unpooling_note(settings.unpool)
    for rule, page in pages.items():
        text = [
            f"From edges to objects: {CHANNELS_PER_STAGE} channels of each stage, {rule}{note}",
            f"Channels drawn at random (seed {settings.seed}), {describe_count(inspection, settings)}: patches | what "
            "the channel saw in them, each on its own scale; grey is zero. Tiles are cropped to 95 % of the energy of "
            f"a channel's reconstructions; px: their side, in pixels of an image of {size}.",
            *([DECONVNET_NOTE] if rule == "deconvnet" else []),
        ]
        yield Path("hierarchy" if rule == RULES_SHOWN[0] else f"hierarchy_{rule}"), hierarchy_figure(page, *text)


def crop_channel(inspection: Inspection, stage: str, channel: int, pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Patches and reconstructions of a channel, (k, s, s, 3) in 0..1 each, from pictures (k, 3, S, S).

    Both are cropped to the energy of the reconstructions, none of which lies outside the receptive fields.
    """
    side, corners = crop_boxes([pictures], least=1)
    images = inspection.images[inspection.top_images(inspection.search.top[stage], channel)]
    patches = crop(inspection.resized(images), side, corners)
    return to_array(patches), diverging_tiles(crop(pictures, side, corners))


@styled
def hierarchy_figure(stages: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]], *text: str) -> Figure:
    """Rows of channels for each stage, patches beside reconstructions. text: title and caption."""
    rows = {stage: math.ceil(max(len(channels), 1) / ACROSS[stage]) for stage, channels in stages.items()}
    heights = [count * ((WIDTH_INCHES - 0.3) / ACROSS[stage] / 2 + 0.14) for stage, count in rows.items()]
    figure = Figure((WIDTH_INCHES, 0.1 + sum(heights) + sum(heading_inches(*text))), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    heading(figure, *text)
    blocks = figure.subfigures(len(stages), height_ratios=heights, squeeze=False).flatten()
    for block, (stage, channels) in zip(blocks, stages.items(), strict=True):
        grid = block.subplots(rows[stage], ACROSS[stage], squeeze=False).flatten()
        for axes in grid:
            axes.set_axis_off()
        if not channels:
            grid[0].text(0, 0.5, "all channels are zero\nat all units searched", va="center")
        sides = sorted(patches.shape[1] for patches, _ in channels.values())
        span = f"\n{' to '.join(dict.fromkeys([str(sides[0]), str(sides[-1])]))} px" if sides else ""
        block.supylabel(stage + span, ha="left", fontsize=8)
        for axes, (channel, pair) in zip(grid, channels.items(), strict=False):
            columns = math.ceil(math.sqrt(len(pair[0])))
            shown = hstack_images([tile_grid(tiles, columns) for tiles in pair], gap_share=1 / 24)
            axes.imshow(shown, interpolation="antialiased")
            axes.set_title(f"channel {channel}: {pair[0].shape[1]} px", loc="left", pad=2)
    return figure
