"""Where hiding a square of the image costs activation or probability (Zeiler & Fergus 2014, figure 7)."""

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

from analysis.inspection import Inspection, Picture, picture_of
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.occluder import (
    COARSE_SQUARES,
    LAST_STAGE,
    Occlusion,
    costly_images,
    most_exciting_others,
    occlude,
    square_side,
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
    is_slow=True,
)
def draw_occlusion(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """One figure for the test images, or one per picture of the user's; at last the content of occlusion.json."""
    if LAST_STAGE not in inspection.search.peaks:
        raise NotDrawn(f"it needs {LAST_STAGE} among the --stages")
    if (side := square_side(size := inspection.metadata.image_size, settings.occluder)) > size:
        raise NotDrawn(f"a square of {side} pixels does not fit the images of {size}: pass a smaller --occluder")
    network, classes = inspection.network, inspection.metadata.classes
    mirrors = mirrors_by_rule(network, [settings.main_rule], settings.unpool)
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    pictures = [picture for picture in inspection.pictures if isinstance(picture.origin, str)]
    coarse_losses, tried = ({}, 0) if pictures else costly_images(inspection, settings)
    if not pictures and not coarse_losses:
        raise NotDrawn("no searched image is classified correctly")
    entries = []
    pictures = pictures or [picture_of(inspection, index) for index in coarse_losses]
    for folder, group in groupby(pictures, lambda picture: picture.folder):
        rows = []
        for picture in group:
            inputs = inspection.inputs(picture.image[None])
            number = classes.index(picture.label) if picture.label in classes else None
            occlusion = occlude(network, inputs, number, settings.occluder, settings.batch_size)
            others = most_exciting_others(inspection, occlusion.channel, picture.origin)
            inputs = torch.cat([inputs, inspection.inputs(inspection.images[others])])
            (projections,) = reconstruct(network, mirrors, inputs, LAST_STAGE, occlusion.channel).values()
            image = to_array(inspection.resized(picture.image[None])[0])
            rows.append((row_title(picture, occlusion, classes), image, occlusion, diverging_tiles(projections)))
            entries.append(json_entry(occlusion, picture, classes, coarse_losses.get(picture.origin)))
        yield Path(folder, "occlusion"), occlusion_figure(rows, classes, note, tried)
    yield Path("occlusion"), entries


def json_entry(
    occlusion: Occlusion, picture: Picture, classes: Sequence[str], coarse_loss: float | None = None
) -> dict:
    """The image's part of occlusion.json. coarse_loss: what it was chosen for by `costly_images`, if it was."""
    activation, probability, predicted = occlusion.whole
    return {
        "image": picture.origin,
        "label": picture.label,
        "class": classes[occlusion.number],
        "channel": occlusion.channel,
        "side": occlusion.side,
        "rows": list(occlusion.centers),
        "columns": list(occlusion.centers),
        "whole": {"activation": activation, "probability": probability, "predicted": classes[predicted]},
        "activation": occlusion.activation.tolist(),
        "probability": occlusion.probability.tolist(),
        "predicted": [[classes[number] for number in row] for row in occlusion.predicted.tolist()],
        "coarse_loss": coarse_loss,
    }


def row_title(picture: Picture, occlusion: Occlusion, classes: Sequence[str]) -> str:
    """What the image is, its class's probability, and what the worst square leaves of it."""
    worst = occlusion.probability.argmin()
    left, then = format_percent(occlusion.probability.flatten()[worst].item()), occlusion.predicted.flatten()[worst]
    name = truncate(classes[occlusion.number], 16) + ("" if picture.label in classes else " (predicted)")
    then = "" if then == occlusion.whole[2] else f", now {truncate(classes[then], 16)}"
    return f"{truncate(picture.title, 36)}: {format_percent(occlusion.whole[1])} {name}; box hidden: {left}{then}"


def relative_losses(occlusion: Occlusion) -> tuple[np.ndarray, np.ndarray]:
    """What each square takes from the whole image's values, (n, n): percent of the map's sum, percentage points."""
    activation, probability, _ = occlusion.whole
    percent = 100 * (activation - occlusion.activation) / (activation or 1.0)
    return percent.numpy(), 100 * (probability - occlusion.probability).numpy()


@styled
def occlusion_figure(
    rows: Sequence[tuple[str, np.ndarray, Occlusion, np.ndarray]], classes: Sequence[str], note: str, tried: int = 0
) -> Figure:
    """A row per image: the image, the map's loss, its projections, the probability's loss, where the class changes.

    The last column is left out if no class changes.

    rows   of each image its title, itself (S, S, 3) in 0..1, what was measured, and the map's projections
           (m, S, S, 3) in 0..1 around grey from this image and others
    note   the rule of the projections
    tried  the number of images among which `costly_images` chose these; 0 if it did not
    """
    found = [occlusion for _, _, occlusion, _ in rows]
    changes = torch.cat([occlusion.predicted[occlusion.predicted != occlusion.whole[2]] for occlusion in found])
    columns = 5 if len(changes) else 4
    lines = caption(found[0], note, tried, columns)
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
    numbers, counts = changes.unique(return_counts=True)
    order = numbers[counts.argsort(descending=True, stable=True)].tolist()
    colors = {number: COLORS[rank] if rank < len(COLORS) else OTHER_COLOR for rank, number in enumerate(order)}
    losses = np.stack([relative_losses(occlusion) for occlusion in found])  # (rows, 2, n, n)
    for tiles, (title, image, occlusion, projections), both in zip(axes, rows, losses, strict=True):
        tiles[0].set_title(title, loc="left", pad=3)
        draw_image(tiles[0], image, occlusion, both[1])
        draw_contour(tiles[1], both[1], range(len(both[1])))
        tiles[1].text(0.04, 0.04, f"channel {occlusion.channel}", transform=tiles[1].transAxes, path_effects=HALO)
        draw_projections(tiles[2], projections)
        if columns == 5:
            draw_changes(tiles[4], image, occlusion, classes, colors)
    draw_losses(axes[:, 1], losses[:, 0], "% of its sum")
    draw_losses(axes[:, 3], losses[:, 1], "percentage points")
    for tiles in axes.flat:
        tiles.set_axis_off()
    return figure


def caption(occlusion: Occlusion, note: str, tried: int, columns: int) -> list[str]:
    """How to read the columns, and how the images were chosen."""
    step = occlusion.centers[1] - occlusion.centers[0]
    lines = [
        "(a) Box: the square that lowers the probability of the class most. (a), (b) Line: half of this loss.",
        f"(b) Of {LAST_STAGE}, the map with the largest sum in the whole image. (b), (d) Each pixel is the centre of a "
        f"square of {occlusion.side} px of the mean color, every {step} px, clipped at the border (the paper gives "
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


def draw_image(axes: Axes, image: np.ndarray, occlusion: Occlusion, losses: np.ndarray) -> None:
    """The image (S, S, 3), the square under which the class is least probable, and a contour of its losses."""
    size, side = len(image), occlusion.side
    axes.imshow(image, interpolation="antialiased", extent=(0, size, size, 0))
    row, column = divmod(occlusion.probability.argmin().item(), len(occlusion.centers))
    corner = [occlusion.centers[n] - side // 2 for n in (column, row)]
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ERROR_COLOR, linewidth=1.2, path_effects=HALO))
    draw_contour(axes, losses, occlusion.centers)


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


def draw_changes(
    axes: Axes, image: np.ndarray, occlusion: Occlusion, classes: Sequence[str], colors: dict[int, tuple]
) -> None:
    """The most probable class by centre of the square, over the pale image, where it is not the whole image's.

    Beside it, the most frequent of these classes with their shares of all positions.
    """
    margin = (occlusion.centers[1] - occlusion.centers[0]) / 2
    low, high, size = occlusion.centers[0] - margin, occlusion.centers[-1] + margin, len(image)
    axes.imshow(0.7 + 0.3 * image.mean(2), "gray", vmin=0, vmax=1, extent=(0, size, size, 0))
    shown = np.zeros((*occlusion.predicted.shape, 4))  # transparent
    numbers, counts = occlusion.predicted[occlusion.predicted != occlusion.whole[2]].unique(return_counts=True)
    patches = []
    for n in counts.argsort(descending=True, stable=True).tolist():
        number, share = numbers[n].item(), counts[n].item() / occlusion.predicted.numel()
        shown[occlusion.predicted == number] = colors[number]
        patches.append(Patch(color=colors[number], label=f"{truncate(classes[number], 9)} {format_percent(share)}"))
    axes.imshow(shown, interpolation="nearest", extent=(low, high, high, low))
    axes.set(xlim=(0, size), ylim=(size, 0))
    axes.legend(
        handles=patches[:LEGEND_CLASSES] or [Patch(alpha=0, label="nowhere")], loc="upper left", bbox_to_anchor=(1, 1),
        frameon=False, handlelength=0.9, handleheight=0.9, handletextpad=0.4, borderpad=0, labelspacing=0.7,
    )  # fmt: skip
