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
from figures.image_grid import diverging_tiles, hstack_images, tile_grid, to_array
from figures.registry import NotDrawn, register
from figures.style import (
    DECONVNET_NOTE,
    ERROR_COLOR,
    WIDTH_INCHES,
    describe_count,
    describe_rule,
    format_percent,
    format_two_digits,
    heading,
    heading_inches,
    styled,
    truncate,
    unpooling_note,
)
from figures.unit_faithfulness import kept_by_tenth
from network import STAGES

CHANNELS_PER_PAGE = 9  # of the overview
CHANNELS_ACROSS = 2
BLOCK_GAP = 1 / 24  # between patches and reconstructions, relative to a block's width


def correlations_in_words(entries: list[dict]) -> str:
    """The mean correlation of top9.json by stage and rule, over its channels; a sentence for the report."""
    values: dict[str, dict[str, list[float]]] = {}
    for entry in entries:
        for rule, value in entry["correlation"].items() if entry["rank"] == 1 else ():
            known = values.setdefault(entry["stage"], {}).setdefault(rule, [])
            known.extend([] if value is None else [value])
    stages = (
        f"{stage} "
        + ", ".join(f"{format_two_digits(np.mean(known) if known else None)} ({rule})" for rule, known in rules.items())
        for stage, rules in values.items()
    )
    what = "Mean correlation between the reconstructions of a channel (1: copies of one picture)"
    return f"{what}: {'; '.join(stages)}." if values else ""


@register(
    "top9",
    "Images that excite a channel most",
    "What a channel's patches have in common is what it responds to; the reconstructions show which part of them.",
    words=correlations_in_words,
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
                text = [*channel_text(inspection, settings, result), *describe_kept(kept)]
                yield Path(f"{stage}_top9_channel_{result.channel}"), channel_figure(result, *text)
            for rule in sorted(settings.rules, key=lambda rule: rule != settings.main_rule):
                name = f"{stage}_top9" + f"_{rule}" * (rule != settings.main_rule) + f"_page_{page}" * (pages > 1)
                yield Path(name), overview_figure(results, rule, *overview_text(inspection, settings, stage, rule))
    if not entries:
        raise NotDrawn("the channels asked for are zero at all units searched")
    yield Path("top9"), entries


def overview_text(inspection: Inspection, settings: Settings, stage: str, rule: str) -> list[str]:
    """Title and caption of an overview by one rule."""
    count, note = describe_count(inspection, settings), unpooling_note(settings.unpool)
    return [
        f"What excites channels of {stage}: {count}, {rule}{note}",
        "Left: patches, the strongest first. Right: what the channel saw in them, each on its own scale; grey is zero. "
        "Correlation: mean over all pairs of the channel's reconstructions; 1: copies of one picture.",
        *describe_rule_at(rule, stage),
    ]


def describe_rule_at(rule: str, stage: str) -> list[str]:
    """A sentence on what a rule's pictures of a stage are, or none."""
    if stage == STAGES[0]:
        return ["At conv1, all rules give the same picture: the filter, pasted where the unit looks."]
    return [DECONVNET_NOTE] if rule == "deconvnet" and stage in STAGES[2:] else []


def channel_text(inspection: Inspection, settings: Settings, result: ChannelResult) -> list[str]:
    """Title and caption of a large figure: how its tiles are scaled, and which units were searched."""
    units = "strongest unit" if settings.units == "peak" else "whole map"
    inside = searched_units(inspection.network, [result.stage], inspection.metadata.image_size, settings.border)
    where = "inside the image" if inside[result.stage] else "including the border"
    scale = "99 % quantile" if settings.scale == "tile" else "largest value of all tiles"
    rules = " | ".join(f"{rule} ({describe_rule(result, rule)})" for rule in result.reconstructions)
    return [
        f"What excites channel {result.channel} of {result.stage}: {describe_count(inspection, settings)}",
        f"Patch | {rules}. Reconstructions of the {units}{unpooling_note(settings.unpool)}; units searched: {where}. "
        f"Grey: zero; scale of a tile: its {scale}. Above: rank, activation, image, class; red: misclassified.",
    ]


def describe_kept(kept: dict[str, float]) -> list[str]:
    """What the most important tenth of the receptive field keeps of the activation: a line, or none."""
    shares = ", ".join(f"{name} {format_percent(share)}" for name, share in kept.items())
    return [f"Activation kept by a tenth of the receptive field: {shares}."] if kept else []


def tile_caption(image: TopImage) -> str:
    """Rank, activation, index, class and prediction, in two lines."""
    if image.activation <= 0:
        return f"{image.rank}: dead"
    verdict = "" if image.correct else f", predicted {truncate(image.predicted, 16)}"
    return f"{image.rank}: {image.activation:.2f}, image {image.index}\n{truncate(image.label, 16)}{verdict}"


@styled
def channel_figure(result: ChannelResult, *text: str) -> Figure:
    """A channel's top images: each patch beside its reconstruction by each rule. text: title and caption."""
    columns = min(3, len(result.images))
    rows = math.ceil(len(result.images) / columns)
    tile = WIDTH_INCHES / columns / (1 + len(result.reconstructions))
    figure = Figure((WIDTH_INCHES, 0.15 + sum(heading_inches(*text)) + rows * (tile + 0.3)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.02)
    heading(figure, *text)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    blocks = drawn_blocks(result)
    for n, (axes, image) in enumerate(zip(grid, result.images, strict=False)):
        axes.imshow(hstack_images([tiles[n] for tiles in blocks]), interpolation="nearest")
        is_wrong = image.activation > 0 and image.correct is False  # None: a class the network does not know
        axes.set_title(tile_caption(image), loc="left", color=ERROR_COLOR if is_wrong else "black")
    return figure


@styled
def overview_figure(results: list[ChannelResult], rule: str, *text: str) -> Figure:
    """Several channels, two per row: for each a block of patches beside a block of reconstructions by the rule.

    text: title and caption
    """
    columns = min(CHANNELS_ACROSS, len(results))
    rows = math.ceil(len(results) / columns)
    block = (WIDTH_INCHES / columns - 0.1) / (2 + BLOCK_GAP)
    figure = Figure((WIDTH_INCHES, 0.1 + sum(heading_inches(*text)) + rows * (block + 0.17)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.03, wspace=0.02)
    heading(figure, *text)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, result in zip(grid, results, strict=False):
        side = math.ceil(math.sqrt(len(result.images)))
        blocks = [tile_grid(tiles, side) for tiles in drawn_blocks(result, [rule])]
        axes.imshow(hstack_images(blocks, BLOCK_GAP), interpolation="antialiased")
        first, last = result.images[0].activation, result.images[-1].activation
        correlation = format_two_digits(result.correlation[rule])
        title = f"channel {result.channel}: activation {last:.2f} to {first:.2f}, correlation {correlation}"
        axes.set_title(title, loc="left", pad=2)
    return figure


def drawn_blocks(result: ChannelResult, rules: Iterable[str] | None = None) -> list[np.ndarray]:
    """The patches, then the reconstructions by these rules, or all, around grey: (n, s, s, 3) in 0..1 each."""
    return [to_array(result.patches)] + [
        diverging_tiles(result.reconstructions[rule], [image.scale[rule] for image in result.images])
        for rule in rules or result.reconstructions
    ]
