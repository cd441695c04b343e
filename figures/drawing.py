"""Numpy arrays -> matplotlib figures of what a network sees. Knows no torch.

Pictures are (H, W, 3) float in 0..1; reconstructions are (H, W, 3) of any sign and drawn around grey, which is zero.
"""

import math
import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.image_grid import around_grey, beside, enlarge, limit_of, mosaic
from figures.style import WIDTH, WRONG, heading, short, styled, two_digits


@styled
def filters(weights: np.ndarray) -> Figure:
    """The filters of a layer that sees RGB, (n, 3, h, w), in colour around grey, each on a scale of its own."""
    tiles = np.stack([around_grey(tile, limit_of(tile)) for tile in weights.transpose(0, 2, 3, 1)])
    figure = Figure((WIDTH * 0.55, WIDTH * 0.55 + 0.35), layout="compressed")
    axes = figure.subplots()
    _numbered_mosaic(axes, tiles, columns=math.ceil(math.sqrt(len(tiles))))
    largest = np.abs(weights).max((1, 2, 3))
    axes.set_title(
        f"conv1: {len(weights)} filters of {weights.shape[2]}x{weights.shape[3]} in RGB; grey is 0\n"
        f"each scaled by its largest weight, {largest.min():.2g} to {largest.max():.2g}"
    )
    return figure


@styled
def filter_channel(weights: np.ndarray, name: str, limit: float) -> Figure:
    """The part of the filters that sees one input channel, (n, h, w), on the scale -limit to limit."""
    figure = Figure((WIDTH * 0.55 + 0.5, WIDTH * 0.55 + 0.25), layout="compressed")
    axes = figure.subplots()
    picture = _numbered_mosaic(
        axes, weights, math.ceil(math.sqrt(len(weights))), cmap="RdBu_r", vmin=-limit, vmax=limit, fill=np.nan
    )
    axes.set_title(f"conv1: weights on the {name} input channel")
    figure.colorbar(picture, ax=axes, shrink=0.9, label="weight")
    return figure


@styled
def input_image(
    image: np.ndarray, title: str, names: list[str], probabilities: np.ndarray, label: str | None
) -> Figure:
    """A picture as the network sees it, beside its (at most ten) most probable classes; the true one is marked."""
    figure = Figure((WIDTH * 0.8, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    left.imshow(image, interpolation="nearest")
    left.set_title(textwrap.fill(title, 40))
    left.set_axis_off()
    best = np.argsort(-probabilities, kind="stable")[:10]
    colours = ["#2166ac" if label is None or names[n] == label else "0.7" for n in best]
    bars = right.barh(range(len(best)), probabilities[best] * 100, color=colours)
    right.bar_label(bars, [f"{100 * probabilities[n]:.1f}" for n in best], padding=2, fontsize=6)
    right.set_yticks(range(len(best)), [short(names[n], 30) for n in best])
    right.invert_yaxis()
    right.set_xlim(0, 112)
    right.set_xlabel("predicted probability (%)")
    if label in (names[n] for n in best):
        right.set_title("prediction (blue: the true class)")
    else:
        right.set_title("prediction" if label is None else f"prediction (true class: {short(label, 25)})")
    right.spines[["top", "right"]].set_visible(False)
    return figure


@styled
def feature_maps(maps: np.ndarray, title: str) -> Figure:
    """All maps of a stage, (C, h, w), as one picture on one scale; channel = row number + column number."""
    columns = 8 if len(maps) <= 64 else 2 ** math.ceil(math.log2(len(maps)) / 2)
    limit = float(np.quantile(maps, 0.998)) or limit_of(maps)
    figure = Figure((WIDTH, 0.65 + (WIDTH - 1) * math.ceil(len(maps) / columns) / columns), layout="compressed")
    axes = figure.subplots()
    picture = _numbered_mosaic(axes, maps, columns, cmap="magma", vmin=0, vmax=limit, fill=np.nan)
    dead = int((maps.max((1, 2)) == 0).sum())
    heading(
        figure,
        f"{title}: {len(maps)} maps of {maps.shape[1]}x{maps.shape[2]}, {dead} without any activation",
        "a channel's number is the number of its row + that of its column",
    )
    figure.colorbar(picture, ax=axes, shrink=0.8, extend="max", label="activation after the ReLU", aspect=40)
    return figure


@styled
def reconstructions(image: np.ndarray, maps: np.ndarray, pictures: dict, channels: list[int], title: str) -> Figure:
    """One image's strongest channels: each map (n, h, w) beside its reconstruction (n, H, W, 3) by each rule."""
    rows = math.ceil(len(channels) / 3)
    parts = 1 + len(pictures)
    tile = WIDTH * 0.84 / 3 / parts
    figure = Figure((WIDTH, 0.5 + rows * (tile + 0.22)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(
        figure,
        title,
        "map (0 to its peak) | " + " | ".join(pictures) + ", each on a scale of its own around grey",
    )
    left, right = figure.subfigures(1, 2, width_ratios=(0.16, 0.84))
    axes = left.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_title("image", loc="left")
    axes.set_axis_off()
    for n, axes in enumerate(right.subplots(rows, 3, squeeze=False).flatten()):
        axes.set_axis_off()
        if n < len(channels):
            peak = float(maps[n].max())
            shade = enlarge(maps[n] / peak if peak > 0 else maps[n], image.shape[:2])
            drawn = [around_grey(each[n], limit_of(each[n])) for each in pictures.values()]
            axes.imshow(beside([colormaps["magma"](shade)[:, :, :3], *drawn]), interpolation="nearest")
            axes.set_title(f"channel {channels[n]}, peak {peak:.2f}" + ("" if peak > 0 else " (dead)"), loc="left")
    return figure


def tile_caption(entry: dict) -> str:
    """Rank, activation, class, prediction and image index of one of the strongest images, in two lines."""
    if entry["activation"] <= 0:
        return f"{entry['rank']}: dead"
    verdict = "" if entry["correct"] else f", seen as {short(entry['predicted'], 17)}"
    return f"{entry['rank']}: {entry['activation']:.2f}, image {entry['index']}\n{short(entry['label'], 17)}{verdict}"


@styled
def top9_channel(channel: dict, title: str) -> Figure:
    """A channel's strongest images: each patch beside its reconstruction by each rule.

    channel: patches (n, s, s, 3); pictures rule -> (n, s, s, 3), scale and correlation rule -> number; entries, n dicts
    as in top9.json (a correlation may be None).
    """
    count = len(channel["entries"])
    columns = min(3, count)
    rows = math.ceil(count / columns)
    parts = 1 + len(channel["pictures"])
    figure = Figure((WIDTH, 0.6 + rows * (WIDTH / columns / parts + 0.3)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.02)
    rules = [
        f"{rule} (±{channel['scale'][rule]:.2g}, correlation {two_digits(channel['correlation'][rule])})"
        for rule in channel["pictures"]
    ]
    heading(
        figure,
        title,
        "patch | " + " | ".join(rules),
        "caption: rank, activation, image, class; red: misclassified. Grey: zero, or beyond the image",
    )
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for n, (axes, entry) in enumerate(zip(grid, channel["entries"], strict=False)):
        drawn = [around_grey(each[n], channel["scale"][rule]) for rule, each in channel["pictures"].items()]
        axes.imshow(beside([channel["patches"][n], *drawn]), interpolation="nearest")
        wrong = entry["activation"] > 0 and entry["correct"] is False  # None: a class the network does not know
        axes.set_title(tile_caption(entry), loc="left", color=WRONG if wrong else "black")
    return figure


@styled
def top9_overview(channels: list[dict], title: str) -> Figure:
    """Several channels as `top9_channel` takes them: a block of patches beside a block of reconstructions a rule."""
    rules = list(channels[0]["pictures"])
    columns = 2
    rows = math.ceil(len(channels) / columns)
    block = WIDTH / columns / (1 + len(rules))
    figure = Figure((WIDTH, 0.55 + rows * (block + 0.3)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.03)
    heading(figure, title, "patches | " + " | ".join(rules) + "; grey: zero, or beyond the image")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, channel in zip(grid, channels, strict=False):
        side = math.ceil(math.sqrt(len(channel["entries"])))
        drawn = [around_grey(each, channel["scale"][rule]) for rule, each in channel["pictures"].items()]
        axes.imshow(beside([mosaic(tiles, side) for tiles in (channel["patches"], *drawn)]), interpolation="nearest")
        activations = [entry["activation"] for entry in channel["entries"]]
        state = f"activation {activations[0]:.2f} to {activations[-1]:.2f}" if activations[0] > 0 else "dead"
        correlations = ", ".join(f"{rule} {two_digits(value)}" for rule, value in channel["correlation"].items())
        axes.set_title(f"channel {channel['channel']}: {state}\ncorrelation {correlations}", loc="left")
    return figure


def _numbered_mosaic(axes: Axes, tiles: np.ndarray, columns: int, fill: float = 1.0, **style):
    """Draws tiles as one picture, with the number of each row's first tile and of each column."""
    times = math.ceil(7 / min(tiles.shape[1:3]))  # so that the gaps are thin beside the smallest maps
    tiles = tiles.repeat(times, 1).repeat(times, 2)
    height, width = tiles.shape[1:3]
    picture = axes.imshow(mosaic(tiles, columns, fill=fill), interpolation="nearest", **style)
    rows = math.ceil(len(tiles) / columns)
    every = 1 if columns <= 16 else 4
    axes.set_xticks([(width - 1) / 2 + n * (width + 1) for n in range(0, columns, every)], range(0, columns, every))
    axes.set_yticks([(height - 1) / 2 + n * (height + 1) for n in range(rows)], [n * columns for n in range(rows)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return picture


@styled
def comparison(patches: np.ndarray, columns: dict[str, np.ndarray], captions: list[str], below: dict[str, list[str]],
               *title: str, limits: np.ndarray | None = None) -> Figure:  # fmt: skip
    """Rows of pictures: a patch (n, s, s, 3), then the same in every column, around grey.

    captions  of the n rows; below: column -> n captions of its tiles
    limits    half-widths of the rows' scales; without them each tile has a scale of its own
    """
    count, across = len(patches), 1 + len(columns)
    tile = min((WIDTH - 0.8) / across, 1.2)
    lines = 1 + max(text.count("\n") for texts in below.values() for text in texts)
    figure = Figure((0.8 + across * tile, 0.6 + count * (tile + 0.06 + 0.1 * lines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(figure, *title, width=int(15 * (0.8 + across * tile)))
    grid = figure.subplots(count, across, squeeze=False)
    for row, axes in enumerate(grid):
        tiles = [patches[row]]
        for each in columns.values():
            tiles.append(around_grey(each[row], limit_of(each[row]) if limits is None else limits[row]))
        for column, picture in zip(axes, tiles, strict=True):
            column.imshow(picture, interpolation="nearest")
            column.set_xticks([])
            column.set_yticks([])
            column.spines[:].set_visible(False)
        axes[0].set_ylabel(captions[row], rotation=0, ha="right", va="center")
        for column, name in zip(axes[1:], columns, strict=True):
            column.set_xlabel(below[name][row], labelpad=2, fontsize=6)
    for column, name in zip(grid[0], ["image", *columns], strict=True):
        column.set_title(name)
    return figure
