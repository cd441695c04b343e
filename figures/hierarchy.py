"""All five stages: randomly drawn channels, image patches beside reconstructions (Zeiler & Fergus 2014, figure 2)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.channels import random_channels, reconstruct_top_images
from analysis.crops import corner_inside, crop, energy_centers
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, hstack_images, tile_grid, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, describe_count, heading, styled, unpooling_note
from network import STAGES

CHANNELS_PER_STAGE = 4
CROP_PIXELS = dict(zip(STAGES, (16, 28, 56, 112, 168), strict=True))  # for inputs of 224 pixels
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
    channels = {stage: compose_channels(inspection, settings, stage) for stage in STAGES}
    count, note = describe_count(inspection, settings), unpooling_note(settings.unpool)
    for rule, name in zip(RULES_SHOWN, ("hierarchy", f"hierarchy_{RULES_SHOWN[1]}"), strict=True):
        title = f"Channels drawn at random (seed {settings.seed}), {count}: patches | {rule}{note}; grey: zero"
        yield Path(name), hierarchy_figure(channels, rule, title)


def compose_channels(inspection: Inspection, settings: Settings, stage: str) -> dict[int, dict[str, np.ndarray]]:
    """channel -> blocks of tiles (k, s, s, 3) in 0..1, the "patches" and one per rule, for some living channels.

    Patches and reconstructions are cropped around the energy of the first rule.
    """
    channels = random_channels(inspection.search.peaks[stage], settings.seed, CHANNELS_PER_STAGE)
    if not channels:
        return {}
    size = inspection.metadata.image_size
    side = max(1, round(CROP_PIXELS[stage] * size / 224))
    whole = reconstruct_top_images(inspection, settings, stage, channels)
    blocks = {}
    for n, channel in enumerate(channels):
        corners = [corner_inside(center, side, (size, size)) for center in energy_centers(whole[RULES_SHOWN[0]][n])]
        images = inspection.images[inspection.top_images(inspection.search.top[stage], channel)]
        blocks[channel] = {
            "patches": to_array(crop(inspection.resized(images), side, corners)),
            **{rule: diverging_tiles(crop(pictures[n], side, corners)) for rule, pictures in whole.items()},
        }
    return blocks


@styled
def hierarchy_figure(stages: dict[str, dict[int, dict[str, np.ndarray]]], rule: str, title: str) -> Figure:
    """One row per stage, patches beside reconstructions for each of its channels."""
    block = (WIDTH_INCHES - 0.3) / CHANNELS_PER_STAGE / 2
    figure = Figure((WIDTH_INCHES, 0.35 + len(stages) * (block + 0.16)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    heading(figure, title)
    grid = figure.subplots(len(stages), CHANNELS_PER_STAGE, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    for row, (stage, channels) in zip(grid, stages.items(), strict=True):
        if not channels:
            row[0].text(0, 0.5, "no image excites any channel", va="center", transform=row[0].transAxes)
        row[0].text(-0.04, 0.5, stage, rotation=90, ha="right", va="center", transform=row[0].transAxes, fontsize=8)
        for axes, (channel, blocks) in zip(row, channels.items(), strict=False):
            side = int(np.ceil(len(blocks["patches"]) ** 0.5))
            shown = hstack_images([tile_grid(blocks[name], side) for name in ("patches", rule)], gap_share=1 / 12)
            axes.imshow(shown, interpolation="antialiased")
            axes.set_title(f"channel {channel}", loc="left", pad=2)
    return figure
