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
from figures import style
from figures.image_grid import diverging_tiles, draw_pictures, hstack_images, tile_grid, to_array
from figures.registry import register
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
    for number, stage in enumerate(STAGES):
        channels = random_channels(inspection.search.peaks[stage], settings.seed + number, CHANNELS_PER_STAGE)
        whole = reconstruct_top_images(inspection, settings, stage, channels) if channels else {}
        for rule, page in pages.items():
            cropped = (crop_channel(inspection, stage, channel, whole[rule][n]) for n, channel in enumerate(channels))
            page[stage] = dict(zip(channels, cropped, strict=True))
    for rule, page in pages.items():
        title = f"All five stages: {CHANNELS_PER_STAGE} channels of each, {rule}"
        title += style.unpooling_note(settings.unpool)
        caption = (
            f"Random channels (seed {settings.seed} + row), {style.describe_count(inspection, settings)}: patches | "
            "reconstructions, each on its own scale; grey is zero. Tiles hold 95 % of the energy of a channel's "
            f"reconstructions. px: their side; the whole image has {inspection.metadata.image_size}."
        )
        figure = hierarchy_figure(page, title, caption, style.DECONVNET_NOTE * (rule == "deconvnet"))
        yield Path("hierarchy" if rule == RULES_SHOWN[0] else f"hierarchy_{rule}"), figure


def crop_channel(inspection: Inspection, stage: str, channel: int, pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Patches and reconstructions (k, 3, S, S) of a channel, cropped to the latter's energy: (k, s, s, 3) in 0..1."""
    side, corners = crop_boxes([pictures], least=1)
    images = inspection.images[inspection.top_images(inspection.search.top[stage], channel)]
    return to_array(crop(inspection.resized(images), side, corners)), diverging_tiles(crop(pictures, side, corners))


@style.styled
def hierarchy_figure(stages: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]], *text: str) -> Figure:
    """Rows of channels for each stage, patches beside reconstructions. text: title and caption."""
    rows = {stage: math.ceil(max(len(channels), 1) / ACROSS[stage]) for stage, channels in stages.items()}
    heights = [count * ((style.WIDTH_INCHES - 0.3) / ACROSS[stage] / 2 + 0.14) for stage, count in rows.items()]
    figure = style.new_figure(0.1 + sum(heights), *text, w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    blocks = figure.subfigures(len(stages), height_ratios=heights, squeeze=False).flatten()
    for block, (stage, channels) in zip(blocks, stages.items(), strict=True):
        sides = [len(patches[0]) for patches, _ in channels.values()]
        pictures = [hstack_images([tile_grid(tiles) for tiles in pair]) for pair in channels.values()]
        titles = [f"channel {channel}: {side} px" for channel, side in zip(channels, sides, strict=True)]
        grid = draw_pictures(block, ACROSS[stage], pictures, titles, pad=2, interpolation="antialiased")
        if not channels:
            grid[0].text(0, 0.5, "all channels are zero\nat all units searched", va="center")
        span = " to ".join(str(side) for side in sorted({min(sides), max(sides)})) if sides else ""
        block.supylabel(f"{stage}\n{span} px" if sides else stage, ha="left", fontsize=8)
    return figure
