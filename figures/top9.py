"""The images that excite each channel most, beside their reconstructions: single channels large, then all together."""

import math
from collections.abc import Iterator
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

CHANNELS_PER_PAGE = 9  # of the overview
BLOCK_GAP = 1 / 12  # between patches and reconstructions, relative to a block's width


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
    """Every channel large and pages of all, stage by stage; at last the content of top9.json.

    Raises NotDrawn when no image excites any of the channels.
    """
    entries = []
    for stage in settings.stages:
        alive, dead = channels_to_draw(settings, inspection.search, stage)
        if dead:
            print(f"{stage}: no image excites these channels: {' '.join(map(str, dead))}")
        remaining = inspect_channels(inspection, settings, stage, alive)
        pages = math.ceil(len(alive) / CHANNELS_PER_PAGE)
        for page in range(1, pages + 1):
            results = []
            for result in islice(remaining, CHANNELS_PER_PAGE):
                results.append(result)
                kept = kept_by_tenth(inspection, settings, result) if settings.units == "peak" else {}
                entries += [entry | {"kept": kept} for entry in result.entries()]
                title = [*large_title(inspection, settings, result), *describe_kept(kept)]
                yield Path(f"{stage}_top9_channel_{result.channel}"), channel_figure(result, title)
            name = f"{stage}_top9" + (f"_page_{page}" if pages > 1 else "")
            yield Path(name), overview_figure(results, f"{stage}, {describe_count(inspection, settings)}")
    if not entries:
        raise NotDrawn("no image excites the channels asked for")
    yield Path("top9"), entries


def large_title(inspection: Inspection, settings: Settings, result: ChannelResult) -> list[str]:
    """What a large figure shows, how its tiles are scaled, and which units were searched."""
    units = "strongest unit" if settings.units == "peak" else "whole map"
    count = describe_count(inspection, settings)
    inside = searched_units(inspection.network, [result.stage], inspection.metadata.image_size, settings.border)
    where = "inside the image" if inside[result.stage] else "including the border"
    scale = "99 % quantile" if settings.scale == "tile" else "largest value of all tiles"
    rules = [f"{rule} ({describe_rule(result, rule)})" for rule in result.reconstructions]
    return [
        f"{result.stage}, channel {result.channel}: {count}, {units}{unpooling_note(settings.unpool)}, units {where}",
        "patch | " + " | ".join(rules),
        f"grey: zero; scale of a tile: its {scale}; caption: activation, image, class; red: misclassified",
    ]


def describe_kept(kept: dict[str, float]) -> list[str]:
    """What the most important tenth of the receptive field keeps of the activation: a line, or none."""
    shares = ", ".join(f"{name} {format_percent(share)}" for name, share in kept.items())
    return [f"activation kept by a tenth of the receptive field: {shares}"] if kept else []


def tile_caption(image: TopImage) -> str:
    """Rank, activation, index, class and prediction, in two lines."""
    if image.activation <= 0:
        return f"{image.rank}: dead"
    verdict = "" if image.correct else f", predicted {truncate(image.predicted, 16)}"
    return f"{image.rank}: {image.activation:.2f}, image {image.index}\n{truncate(image.label, 16)}{verdict}"


@styled
def channel_figure(result: ChannelResult, title: list[str]) -> Figure:
    """A channel's top images: each patch beside its reconstruction by each rule."""
    count = len(result.images)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    parts = 1 + len(result.reconstructions)
    heading_height = 0.15 + sum(heading_inches(*title))
    height = heading_height + rows * (WIDTH_INCHES / columns / parts + 0.3)
    figure = Figure((WIDTH_INCHES, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.02)
    heading(figure, *title)
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
def overview_figure(results: list[ChannelResult], title: str) -> Figure:
    """Several channels, three per row: for each a block of patches beside a block of reconstructions by each rule."""
    rules = list(results[0].reconstructions)
    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    block = WIDTH_INCHES / columns / (1 + len(rules))
    figure = Figure((WIDTH_INCHES, 0.3 + rows * (block + 0.15)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.03, wspace=0.02)
    heading(figure, f"{title}: patches | " + " | ".join(rules) + "; grey: zero")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, result in zip(grid, results, strict=False):
        side = math.ceil(math.sqrt(len(result.images)))
        blocks = [tile_grid(tiles, side) for tiles in drawn_blocks(result)]
        axes.imshow(hstack_images(blocks, BLOCK_GAP), interpolation="antialiased")
        first, last = result.images[0].activation, result.images[-1].activation
        axes.set_title(f"channel {result.channel}: {last:.2f} to {first:.2f}", loc="left", pad=2)
    return figure


def drawn_blocks(result: ChannelResult) -> list[np.ndarray]:
    """The patches, then the reconstructions by each rule around grey: (n, s, s, 3) in 0..1 each."""
    return [to_array(result.patches)] + [
        diverging_tiles(tiles, [image.scale[rule] for image in result.images])
        for rule, tiles in result.reconstructions.items()
    ]
