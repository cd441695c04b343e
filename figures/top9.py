"""The images that excite each channel most, beside their reconstructions: channels large, then all by one rule."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.channels import ChannelResult, TopImage, channels_to_draw, inspect_channels
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.settings import Settings
from figures import style
from figures.image_grid import GAP_SHARE, diverging_tiles, draw_pictures, hstack_images, tile_grid, to_array
from figures.registry import NotDrawn, register
from figures.style import format_two_digits, truncate
from figures.unit_faithfulness import kept_by_tenth
from network import STAGES

CHANNELS_PER_PAGE = 9  # of the overview


@register(
    "top9",
    "Images that excite a channel most",
    "What a channel's patches have in common is what it responds to; the reconstructions show which part of them.",
)
def draw_top9(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Every channel large, and pages of all by each rule, stage by stage; at last the content of top9.json.

    Raises NotDrawn when no image excites any of the channels.
    """
    entries = []
    for stage in settings.stages:
        alive, dead = channels_to_draw(settings, inspection.search, stage)
        if dead:
            print(f"{stage}: these channels are zero at all units searched: {' '.join(map(str, dead))}")
        remaining = inspect_channels(inspection, settings, stage, alive)
        pages = math.ceil(len(alive) / CHANNELS_PER_PAGE)
        for page in range(1, pages + 1):
            results = []
            for result in islice(remaining, CHANNELS_PER_PAGE):
                results.append(result)
                kept = kept_by_tenth(inspection, settings, result) if settings.units == "peak" else {}
                entries += [entry | {"kept": kept} for entry in result.entries()]
                text = channel_text(inspection, settings, result, kept)
                yield Path(f"{stage}_top9_channel_{result.channel}"), channel_figure(result, *text)
            for rule in sorted(settings.rules, key=lambda rule: rule != settings.main_rule):
                name = f"{stage}_top9" + f"_{rule}" * (rule != settings.main_rule) + f"_page_{page}" * (pages > 1)
                yield Path(name), overview_figure(results, rule, *overview_text(inspection, settings, stage, rule))
    if not entries:
        raise NotDrawn("the channels asked for are zero at all units searched")
    yield Path("top9"), entries


def overview_text(inspection: Inspection, settings: Settings, stage: str, rule: str) -> list[str]:
    """Title and caption of an overview by one rule."""
    count, note = style.describe_count(inspection, settings), style.unpooling_note(settings.unpool)
    at_conv1 = "At conv1, all rules give the same picture: the filter where it responds. Shifts lower the correlation."
    return [
        f"What excites channels of {stage}: {count}, {rule}{note}",
        "Left: patches, the strongest first. Right: their reconstructions, each on its own scale; grey is zero. "
        "Correlation: mean over all pairs of the channel's reconstructions; 1: copies of one picture.",
        at_conv1 if stage == STAGES[0] else style.DECONVNET_NOTE * (rule == "deconvnet" and stage in STAGES[2:]),
    ]


def channel_text(
    inspection: Inspection, settings: Settings, result: ChannelResult, kept: dict[str, float]
) -> list[str]:
    """Title and caption of a large figure: how its tiles are scaled, which units were searched, `kept_by_tenth`."""
    units = "strongest unit" if settings.units == "peak" else "whole map"
    inside = searched_units(inspection.network, [result.stage], inspection.metadata.image_size, settings.border)
    where = "inside the image" if inside[result.stage] else "including the border"
    scale = "99 % quantile" if settings.scale == "tile" else "largest value of all tiles"
    rules = " | ".join(f"{rule} ({style.describe_rule(result, rule)})" for rule in result.reconstructions)
    note, shares = style.unpooling_note(settings.unpool), [f"{k} {style.format_percent(v)}" for k, v in kept.items()]
    return [
        f"What excites channel {result.channel} of {result.stage}: {style.describe_count(inspection, settings)}",
        f"Patch | {rules}. Reconstructions of the {units}{note}; units searched: {where}. "
        f"Grey: zero; scale of a tile: its {scale}. Above: rank, activation, image, class; red: misclassified.",
        f"Activation kept by a tenth of the receptive field: {', '.join(shares)}." if kept else "",
    ]


def tile_caption(image: TopImage) -> str:
    """Rank, activation, index, class and prediction, in two lines."""
    if image.activation <= 0:
        return f"{image.rank}: not excited"
    verdict = "" if image.correct else f", predicted {truncate(image.predicted, 16)}"
    return f"{image.rank}: {image.activation:.2f}, image {image.index}\n{truncate(image.label, 16)}{verdict}"


@style.styled
def channel_figure(result: ChannelResult, *text: str) -> Figure:
    """A channel's top images: each patch beside its reconstruction by each rule. text: title and caption."""
    columns = min(3, len(result.images))
    tile = style.WIDTH_INCHES / columns / (1 + len(result.reconstructions))
    height = 0.15 + math.ceil(len(result.images) / columns) * (tile + 0.3)
    figure = style.new_figure(height, *text, w_pad=0.04, h_pad=0.02)
    captions = [tile_caption(image) for image in result.images]
    is_wrong = [image.activation > 0 and image.correct is False for image in result.images]  # None: unknown class
    draw_pictures(figure, columns, hstack_images(drawn_blocks(result)), captions, is_wrong)
    return figure


@style.styled
def overview_figure(results: list[ChannelResult], rule: str, *text: str) -> Figure:
    """Channels, two per row: a block of patches beside a block of reconstructions by the rule. text: see above."""
    columns = min(2, len(results))
    block = (style.WIDTH_INCHES / columns - 0.1) / (2 + GAP_SHARE)
    height = 0.1 + math.ceil(len(results) / columns) * (block + 0.17)
    figure = style.new_figure(height, *text, w_pad=0.05, h_pad=0.03, wspace=0.02)
    pictures = [hstack_images([tile_grid(tiles) for tiles in drawn_blocks(result, [rule])]) for result in results]
    titles = [
        f"channel {result.channel}: activation {result.images[-1].activation:.2f} to "
        f"{result.images[0].activation:.2f}, correlation {format_two_digits(result.correlation[rule])}"
        for result in results
    ]
    draw_pictures(figure, columns, pictures, titles, pad=2, interpolation="antialiased")
    return figure


def drawn_blocks(result: ChannelResult, rules: Iterable[str] | None = None) -> list[np.ndarray]:
    """The patches, then the reconstructions by these rules, or all, around grey: (n, s, s, 3) in 0..1 each."""
    return [to_array(result.patches)] + [
        diverging_tiles(result.reconstructions[rule], [image.scale[rule] for image in result.images])
        for rule in rules or result.reconstructions
    ]
