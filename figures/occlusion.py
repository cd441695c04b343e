"""Where hiding a square of the image costs activation or probability (Zeiler & Fergus 2014, figure 7)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.inspection import Inspection, Picture, picture_of, pictures_asked_for
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.occluder import (
    COARSE_SQUARES,
    LAST_STAGE,
    costly_images,
    most_exciting_others,
    occlude,
)
from figures.registry import NotDrawn, register
from figures.style import (
    ERROR_COLOR,
    WIDTH_INCHES,
    format_percent,
    heading,
    heading_inches,
    styled,
    truncate,
    unpooling_note,
)

WHITE_ZERO = LinearSegmentedColormap.from_list("white zero", ["#053061", "#4393c3", "white", "#d6604d", "#67001f"])
COLORS = [colormaps["tab10"](n) for n in (0, 1, 2, 4, 5, 6, 8, 9)]
OTHER_COLOR = colormaps["tab10"](7)  # grey, of the classes that these colors do not suffice for
LEGEND_CLASSES = 6
HALO = [withStroke(linewidth=2, foreground="white")]  # of lines over an image
TITLE = "What hiding a part of the image costs"
HEADINGS = (
    "(a) image",
    "(b) loss of the\nstrongest map",
    "(c) projections\nof this map",
    "(d) loss of the\nprobability",
    "(e) where the\nclass changes",
)


@register(
    "occlusion",
    "Which part of an image matters",
    "Red: hiding a square there lowers the map's sum, so the map sees something there, or the probability of the "
    "class, so the decision depends on it.",
    needs="both",
    stages=(LAST_STAGE,),
    passes=8000,
    is_slow=True,
)
def draw_occlusion(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """One figure for the test images, or one per picture of the user's; at last the content of occlusion.json."""
    if LAST_STAGE not in inspection.search.peaks:
        raise NotDrawn(f"it needs {LAST_STAGE} among the --stages")
    if (side := settings.occluder or 0) > (size := inspection.metadata.image_size):
        raise NotDrawn(f"a square of {side} pixels does not fit the images of {size}: pass a smaller --occluder")
    network, classes = inspection.network, inspection.metadata.classes
    mirrors = mirrors_by_rule(network, [settings.main_rule], settings.unpool)
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    pictures = pictures_asked_for(inspection, settings)
    coarse_losses, tried = ({}, 0) if pictures else costly_images(inspection, settings)
    if not pictures and not coarse_losses:
        raise NotDrawn("no searched image is classified correctly")
    entries = []
    pictures = pictures or [picture_of(inspection, index) for index in coarse_losses]
    for folder, group in groupby(pictures, lambda picture: picture.folder):
        rows = []
        for picture in group:
            inputs = inspection.inputs(picture.image[None])
            entry = {"image": picture.origin, "label": picture.label}
            entry |= occlude(network, inputs, classes, picture.label, settings.occluder, settings.batch_size)
            entry["coarse_loss"] = coarse_losses.get(picture.origin)
            others = most_exciting_others(inspection, entry["channel"], picture.origin)
            inputs = torch.cat([inputs, inspection.inputs(inspection.images[others])])
            (projections,) = reconstruct(network, mirrors, inputs, LAST_STAGE, entry["channel"]).values()
            image = to_array(inspection.resized(picture.image[None])[0])
            rows.append((row_title(picture, entry), image, entry, diverging_tiles(projections)))
            entries.append(entry)
        yield Path(folder, "occlusion"), occlusion_figure(rows, note, tried)
    yield Path("occlusion"), entries


def row_title(picture: Picture, entry: dict) -> str:
    """What the image is, its class's probability, and what the worst square leaves of it."""
    row, column = worst_square(entry)
    left, then = format_percent(entry["probability"][row][column]), entry["predicted"][row][column]
    name = truncate(entry["class"], 16) + ("" if picture.label == entry["class"] else " (predicted)")
    then = "" if then == entry["whole"]["predicted"] else f", now {truncate(then, 16)}"
    whole = format_percent(entry["whole"]["probability"])
    return f"{truncate(picture.title, 36)}: {whole} {name}; box hidden: {left}{then}"


def worst_square(entry: dict) -> tuple[int, int]:
    """Row and column in the grid of the square under which the class is least probable."""
    return divmod(int(np.argmin(entry["probability"])), len(entry["columns"]))


def changes_of(entry: dict) -> Counter:
    """Class -> the number of squares under which it is the most probable one, though not of the whole image."""
    names = Counter(name for row in entry["predicted"] for name in row)
    del names[entry["whole"]["predicted"]]
    return names


@styled
def occlusion_figure(rows: Sequence[tuple[str, np.ndarray, dict, np.ndarray]], note: str, tried: int = 0) -> Figure:
    """A row per image: the image, the map's loss, its projections, the probability's loss, where the class changes.

    The last column is left out if no class changes.

    rows   of each image its title, itself (S, S, 3) in 0..1, its part of occlusion.json, and the map's projections
           (m, S, S, 3) in 0..1 around grey from this image and others
    note   the rule of the projections
    tried  the number of images among which `costly_images` chose these; 0 if it did not
    """
    entries = [entry for _, _, entry, _ in rows]
    changes = sum(map(changes_of, entries), Counter()).most_common()
    columns = 5 if changes else 4
    lines = caption(entries[0], note, tried, columns)
    title_inches, caption_inches = heading_inches(TITLE, *lines)
    right = WIDTH_INCHES - (1.08 if columns == 5 else 0.05)  # of the tiles; the legend is beside them
    tile, above, below = (right - 0.05) / columns - 0.07, title_inches + 0.5, caption_inches + 0.5
    height = above + len(rows) * (tile + 0.26) - 0.26 + below
    figure = Figure((WIDTH_INCHES, height))
    heading(figure, TITLE, *lines)
    edges = {"left": 0.05 / WIDTH_INCHES, "right": right / WIDTH_INCHES, "top": 1 - above / height}
    edges |= {"bottom": below / height, "wspace": 0.07 / tile, "hspace": 0.26 / tile}
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=edges)
    for tiles, text in zip(axes[0], HEADINGS, strict=False):
        tiles.annotate(text, (0, 1), (0, 16), "axes fraction", "offset points", va="bottom", weight="bold")
    colors = {name: COLORS[n] if n < len(COLORS) else OTHER_COLOR for n, (name, _) in enumerate(changes)}
    totals, losses = (np.array(values) for values in zip(*map(losses_in_percent, entries), strict=True))  # (rows, n, n)
    for tiles, (title, image, entry, projections), loss in zip(axes, rows, losses, strict=True):
        tiles[0].set_title(title, loc="left", pad=3)
        draw_image(tiles[0], image, entry, loss)
        draw_contour(tiles[1], loss, range(len(loss)))
        tiles[1].text(0.04, 0.04, f"channel {entry['channel']}", transform=tiles[1].transAxes, path_effects=HALO)
        draw_projections(tiles[2], projections)
        if changes:
            draw_changes(tiles[4], image, entry, colors)
    draw_losses(axes[:, 1], totals, "% of its sum")
    draw_losses(axes[:, 3], losses, "percentage points")
    for tiles in axes.flat:
        tiles.set_axis_off()
    return figure


def losses_in_percent(entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """What each square takes from the whole image's values, (n, n): percent of the map's sum, percentage points."""
    total, probability = entry["whole"]["activation"], entry["whole"]["probability"]
    return (
        100 * (total - np.array(entry["activation"])) / (total or 1.0),
        100 * (probability - np.array(entry["probability"])),
    )


def caption(entry: dict, note: str, tried: int, columns: int) -> list[str]:
    """How to read the columns, and how the images were chosen."""
    step = entry["rows"][1] - entry["rows"][0]
    lines = [
        "(a) Box: the square that lowers the probability of the class most. (a), (b) Line: half of this loss.",
        f"(b) Of {LAST_STAGE}, the map with the largest sum in the whole image. (b), (d) Each pixel is the centre of a "
        f"square of {entry['side']} px of the mean color, every {step} px, clipped at the border (the paper gives "
        "neither number): red where hiding it lowers the value, blue where it raises it.",
        f"(c) {note}, whole map: this image (framed) and the test images with the map's highest peaks; own scale each, "
        "grey: zero.",
    ]
    if columns == 5:
        lines.append("(e) Where hiding the square changes the most probable class, with shares of all positions.")
    else:
        lines.append("No square changes the most probable class.")
    if tried:
        lines.append(
            f"Chosen, not typical: of {tried} correctly classified images, evenly spread over the searched ones, those "
            f"of different classes that lose most when one of {COARSE_SQUARES}x{COARSE_SQUARES} squares is hidden."
        )
    return lines


def draw_image(axes: Axes, image: np.ndarray, entry: dict, losses: np.ndarray) -> None:
    """The image (S, S, 3), the square under which the class is least probable, and a contour of its losses."""
    size, side = len(image), entry["side"]
    axes.imshow(image, interpolation="antialiased", extent=(0, size, size, 0))
    row, column = worst_square(entry)
    corner = (entry["columns"][column] - side // 2, entry["rows"][row] - side // 2)
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ERROR_COLOR, linewidth=1.2, path_effects=HALO))
    draw_contour(axes, losses, entry["rows"])


def draw_contour(axes: Axes, losses: np.ndarray, centers: Sequence[int]) -> None:
    """The line at half of the largest loss (n, n), at these rows and columns, if there is one."""
    level = losses.max() / 2
    if losses.min() < level:
        lines = axes.contour(centers, centers, losses, [level], colors="black", linewidths=0.9)
        lines.set_path_effects(HALO)


def draw_projections(axes: Axes, projections: np.ndarray) -> None:
    """Two by two tiles; the first, of the image itself, is framed."""
    size = projections.shape[1]
    gap = max(1, size // 28)
    axes.imshow(image_grid(projections, 2, gap), interpolation="antialiased")
    axes.add_patch(Rectangle((-0.5, -0.5), size, size, fill=False, linewidth=1.2, clip_on=False))
    axes.set(xlim=(-0.5, 2 * size + gap - 0.5), ylim=(2 * size + gap - 0.5, -0.5))  # also of fewer than four


def draw_losses(column: Sequence[Axes], losses: np.ndarray, unit: str) -> None:
    """One map (n, n) below the other by centre of the square, on one scale; its bar shows the values that occur."""
    limit = np.abs(losses).max() or 1.0
    for axes, values in zip(column, losses, strict=True):
        picture = axes.imshow(values, WHITE_ZERO, vmin=-limit, vmax=limit, interpolation="nearest")
        frame = {"fill": False, "edgecolor": "0.6", "linewidth": 0.5, "clip_on": False}
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, **frame))
    bar = column[-1].inset_axes((0.04, -0.11, 0.92, 0.05))
    axes.figure.colorbar(picture, cax=bar, orientation="horizontal", ticks=MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    bar.set_xlim(min(losses.min(), 0), max(losses.max(), 0) or limit)
    bar.tick_params(pad=1)
    bar.set_xlabel(unit, labelpad=1)


def draw_changes(axes: Axes, image: np.ndarray, entry: dict, colors: dict[str, tuple]) -> None:
    """The most probable class by centre of the square, over the pale image, where it is not the whole image's.

    Beside it, the most frequent of these classes with their shares of all positions.
    """
    predicted, (first, second, *_) = np.array(entry["predicted"]), entry["rows"]
    low, high, size = first - (second - first) / 2, entry["rows"][-1] + (second - first) / 2, len(image)
    axes.imshow(0.7 + 0.3 * image.mean(2), "gray", vmin=0, vmax=1, extent=(0, size, size, 0))
    shown = np.zeros((*predicted.shape, 4))  # transparent
    patches = []
    for name, count in changes_of(entry).most_common():
        shown[predicted == name] = colors[name]
        label = f"{truncate(name, 9)} {format_percent(count / predicted.size)}"
        patches.append(Patch(color=colors[name], label=label))
    axes.imshow(shown, interpolation="nearest", extent=(low, high, high, low))
    axes.set(xlim=(0, size), ylim=(size, 0))
    axes.legend(
        handles=patches[:LEGEND_CLASSES] or [Patch(alpha=0, label="nowhere")], loc="upper left", bbox_to_anchor=(1, 1),
        frameon=False, handlelength=0.9, handleheight=0.9, handletextpad=0.4, borderpad=0, labelspacing=0.7,
    )  # fmt: skip
