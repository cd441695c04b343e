"""The images that excite each channel most, beside their reconstructions: single channels large, then all together."""

import math
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from analysis.channels import ChannelResult, TopImage, channels_to_draw, inspect_channel
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.image_grid import diverging_rgb, hstack_images, image_grid, to_array
from figures.style import ERROR_COLOR, WIDTH_INCHES, format_two_digits, heading, styled, truncate, unpooling_note

CHANNELS_PER_PAGE = 18  # of the overview


def draw_top9(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Every channel large and pages of all, stage by stage; at last the content of top9.json."""
    entries = []
    units = ("strongest unit" if settings.units == "peak" else "whole map") + unpooling_note(settings.unpool)
    count = describe_count(inspection, settings)
    for stage in settings.stages:
        alive, dead = channels_to_draw(settings, stage, inspection.search.top[stage])
        if dead:
            print(f"{stage}: no image excites these channels: {' '.join(map(str, dead))}")
        pages = [alive[n : n + CHANNELS_PER_PAGE] for n in range(0, len(alive), CHANNELS_PER_PAGE)]
        for page, channels in enumerate(pages, 1):
            results = []
            for channel in channels:
                result = inspect_channel(inspection, settings, stage, channel)
                results.append(result)
                entries += result.entries()
                title = f"{stage}, channel {channel}: {count}, reconstructed from the {units}"
                yield Path(f"{stage}_top9_channel_{channel}"), channel_figure(result, title)
            title = f"{stage}: {count} for each channel, reconstructed from the {units}"
            name = f"{stage}_top9" + (f"_page_{page}" if len(pages) > 1 else "")
            yield Path(name), overview_figure(results, title)
    yield Path("top9"), entries


def describe_count(inspection: Inspection, settings: Settings) -> str:
    """How many images are shown of how many, for titles."""
    searched = len(inspection.searched)
    return f"top {min(settings.top, searched)} of {searched:,} test images"


def tile_caption(image: TopImage) -> str:
    """Rank, activation, index, class and prediction, in two lines."""
    if image.activation <= 0:
        return f"{image.rank}: dead"
    verdict = "" if image.correct else f", predicted {truncate(image.predicted, 16)}"
    return f"{image.rank}: {image.activation:.2f}, image {image.index}\n{truncate(image.label, 16)}{verdict}"


@styled
def channel_figure(result: ChannelResult, title: str) -> Figure:
    """A channel's top images: each patch beside its reconstruction by each rule."""
    count = len(result.images)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    parts = 1 + len(result.reconstructions)
    figure = Figure((WIDTH_INCHES, 0.6 + rows * (WIDTH_INCHES / columns / parts + 0.3)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.02)
    rules = [
        f"{rule} (±{scale:.2g}, correlation {format_two_digits(result.correlation[rule])})"
        for rule, scale in result.scale.items()
    ]
    heading(
        figure,
        title,
        "patch | " + " | ".join(rules),
        "captions: rank, activation, image, class; red: misclassified; grey: zero, or outside the image",
    )
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
    """Several channels: for each a block of patches beside a block of reconstructions by each rule."""
    rules = list(results[0].reconstructions)
    columns = 2
    rows = math.ceil(len(results) / columns)
    block = WIDTH_INCHES / columns / (1 + len(rules))
    figure = Figure((WIDTH_INCHES, 0.55 + rows * (block + 0.3)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.03)
    heading(figure, title, "patches | " + " | ".join(rules) + "; grey: zero, or outside the image")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, result in zip(grid, results, strict=False):
        side = math.ceil(math.sqrt(len(result.images)))
        blocks = [image_grid(tiles, side) for tiles in drawn_blocks(result)]
        axes.imshow(hstack_images(blocks), interpolation="nearest")
        first, last = result.images[0].activation, result.images[-1].activation
        state = f"activation {first:.2f} to {last:.2f}" if first > 0 else "dead"
        correlations = ", ".join(f"{rule} {format_two_digits(value)}" for rule, value in result.correlation.items())
        axes.set_title(f"channel {result.channel}: {state}\ncorrelation {correlations}", loc="left")
    return figure


def drawn_blocks(result: ChannelResult) -> list:
    """The patches, then the reconstructions by each rule around grey: (n, s, s, 3) in 0..1 each."""
    reconstructions = (
        diverging_rgb(to_array(each), result.scale[rule]) for rule, each in result.reconstructions.items()
    )
    return [to_array(result.patches), *reconstructions]
