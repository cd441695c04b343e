"""Activation and probability while a square hides each part of an image (Zeiler & Fergus 2014, figure 7)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.inspection import Inspection, Picture, class_to_explain, one_per_class
from analysis.occlusion import STAGE, Occlusion, occlude, square_side
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from figures.style import (
    ERROR_COLOR,
    WIDTH_INCHES,
    bare_axes_at,
    format_percent,
    styled,
    text_at,
    truncate,
    unpooling_note,
)
from network import STAGES

EXAMPLES = 3  # images by default, and other images that excite the map
COLORS = [colormaps["tab10"](n) for n in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
OTHER_COLOR = colormaps["tab10"](7)  # grey, of the classes that these colours do not suffice for
LABELS_SHOWN = 7
# inches: left of and above the tiles, from column to column, a tile, from row to row, and of the notes
LEFT, TOP, COLUMN, TILE, ROW, NOTES = 0.06, 0.86, 1.19, 1.16, 1.7, 0.28


@dataclass(frozen=True)
class ShownOcclusion:
    """An image, what was measured, and what is drawn of it.

    title, label  what the image is, and its class, if it is the network's
    image         (S, S, 3) in 0..1
    found         the measurements
    projections   (m, S, S, 3) in 0..1 around grey: the map of this image, then of others
    others        indices of the others in the test split
    """

    title: str
    label: str | None
    image: np.ndarray
    found: Occlusion
    projections: np.ndarray
    others: tuple[int, ...]


@register(
    "occlusion",
    "Which part of an image matters",
    "Where hiding a square lowers the map's sum, the map sees something there; where it lowers the probability or "
    "changes the class, the decision depends on it.",
    needs="both",
    stages=STAGES[-1:],
    is_slow=True,
)
def draw_occlusion(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """One figure for the test images, or one per picture of the user's; at last the content of occlusion.json."""
    if STAGE not in inspection.search.peaks:
        raise NotDrawn(f"it needs {STAGE} among the --stages")
    if (side := square_side(size := inspection.metadata.image_size, settings.occluder)) > size:
        raise NotDrawn(f"a square of {side} pixels does not fit the images of {size}: pass a smaller --occluder")
    own = [picture for picture in inspection.pictures if isinstance(picture.origin, str)]
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    entries = []
    for folder, pictures in groupby(own or one_per_class(inspection, EXAMPLES), lambda picture: picture.folder):
        shown = []
        for picture in pictures:
            shown.append(measure(inspection, settings, picture))
            entries.append(json_entry(shown[-1].found, picture, inspection.metadata.classes))
        yield Path(folder, "occlusion"), occlusion_figure(shown, inspection.metadata.classes, note)
    yield Path("occlusion"), entries


def measure(inspection: Inspection, settings: Settings, picture: Picture) -> ShownOcclusion:
    """All that a row of the figure shows."""
    network, inputs = inspection.network, inspection.inputs(picture.image[None])
    with torch.inference_mode():
        predicted = network(inputs)[0].argmax().item()
    number = class_to_explain(inspection, picture, predicted)
    found = occlude(network, inputs, number, settings.occluder, settings.batch_size)
    others = most_exciting_others(inspection, found.channel, picture.origin)
    inputs = torch.cat([inputs, inspection.inputs(inspection.images[others])])
    mirrors = mirrors_by_rule(network, [settings.main_rule], settings.unpool)
    (projections,) = reconstruct(network, mirrors, inputs, STAGE, found.channel).values()
    return ShownOcclusion(
        picture.title,
        picture.label if picture.label in inspection.metadata.classes else None,
        to_array(inspection.resized(picture.image[None])[0]),
        found,
        diverging_tiles(projections),
        tuple(others.tolist()),
    )


def most_exciting_others(inspection: Inspection, channel: int, origin: int | str) -> Tensor:
    """Indices of the EXAMPLES searched images with the channel's highest peaks above zero, without the image itself."""
    peaks = inspection.search.peaks[STAGE][:, channel]
    order = peaks.sort(descending=True, stable=True).indices
    indices = inspection.searched[order[peaks[order] > 0]]
    return (indices[indices != origin] if isinstance(origin, int) else indices)[:EXAMPLES]


def json_entry(found: Occlusion, picture: Picture, classes: Sequence[str]) -> dict:
    """The image's part of occlusion.json."""
    activation, probability, predicted = found.whole
    return {
        "image": picture.origin,
        "label": picture.label,
        "class": classes[found.number],
        "channel": found.channel,
        "side": found.side,
        "rows": list(found.centers),
        "columns": list(found.centers),
        "whole": {"activation": activation, "probability": probability, "predicted": classes[predicted]},
        "activation": found.activation.tolist(),
        "probability": found.probability.tolist(),
        "predicted": [[classes[number] for number in row] for row in found.predicted.tolist()],
    }


@styled
def occlusion_figure(shown: Sequence[ShownOcclusion], classes: Sequence[str], note: str) -> Figure:
    """A row per image: the image, the map's sum, its projections, the class's probability, the most probable class."""
    height = TOP + len(shown) * ROW + NOTES
    figure = Figure((WIDTH_INCHES, height))
    headings = (
        "(a) image",
        f"(b) sum of the strongest\nmap of {STAGE}",
        "(c) projections of\nthis map",
        "(d) probability of\nthe class",
        "(e) most probable\nclass",
    )
    for column, text in enumerate(headings):
        text_at(figure, LEFT + column * COLUMN + TILE / 2, TOP - 0.42, text, fontsize=7)
    text_at(figure, WIDTH_INCHES / 2, 0.14, "The network's view of an image in which a square is hidden", fontsize=9)
    colors = label_colors([row.found.predicted for row in shown])
    for n, row in enumerate(shown):
        draw_row(figure, TOP + n * ROW, row, classes, colors)
    found = shown[0].found
    step = found.centers[1] - found.centers[0] if len(found.centers) > 1 else found.side
    lines = (
        f"Each pixel of (b), (d), (e) is the centre of a square of {found.side} px of the mean color, every {step} px, "
        "clipped at the border (the paper gives neither number).",
        "In (a) the square is where the probability is lowest. The red line on a bar is the value of the whole image.",
        f"(c) {note}, whole map: this image (framed) and the test images with the map's highest peaks; own scale each, "
        "grey: zero.",
    )
    text_at(figure, WIDTH_INCHES / 2, height - 0.22, "\n".join(lines))
    return figure


def draw_row(
    figure: Figure, top: float, shown: ShownOcclusion, classes: Sequence[str], colors: dict[int, tuple]
) -> None:
    """One image, with its tiles at `top` inches and its title above them."""
    found, size = shown.found, len(shown.image)
    activation, probability, predicted = found.whole
    text = (
        f"{truncate(shown.title, 60)}: {format_percent(probability)} {truncate(classes[found.number], 24)}"
        f"{'' if shown.label else ', the predicted class'}; channel {found.channel}"
    )
    text_at(figure, LEFT, top - 0.12, text, ha="left", fontsize=7)
    tiles = [bare_axes_at(figure, LEFT + column * COLUMN, top, TILE, TILE) for column in (0, 1, 3, 4)]
    tiles[0].imshow(shown.image, interpolation="antialiased", extent=(0, size, size, 0))
    tiles[0].add_patch(hidden_square(found))
    draw_projections(figure, LEFT + 2 * COLUMN, top, shown.projections)
    most = max(activation, found.activation.max().item()) or 1.0
    draw_map(figure, tiles[1], found.activation, most, activation, size)
    draw_map(figure, tiles[2], found.probability, 1.0, probability, size)
    colored = np.array([[colors[number][:3] for number in row] for row in found.predicted.tolist()])
    tiles[3].imshow(colored, interpolation="nearest", extent=(0, size, size, 0))
    draw_labels(figure, top, found.predicted, classes, colors)


def hidden_square(found: Occlusion) -> Rectangle:
    """The square under which the class is least probable."""
    row, column = divmod(found.probability.argmin().item(), len(found.centers))
    corner = [found.centers[place] - found.side // 2 for place in (column, row)]
    return Rectangle(corner, found.side, found.side, facecolor="0.5", edgecolor=ERROR_COLOR, linewidth=1)


def draw_projections(figure: Figure, left: float, top: float, projections: np.ndarray) -> None:
    """Two by two tiles; the first, of the image itself, is framed."""
    half = TILE / 2
    for n, tile in enumerate(projections):
        row, column = divmod(n, 2)
        axes = bare_axes_at(figure, left + column * half, top + row * half, half - 0.02, half - 0.02)
        axes.imshow(tile, interpolation="antialiased")
        axes.spines[:].set(visible=n == 0, linewidth=1.2)


def draw_map(figure: Figure, axes: Axes, values: Tensor, most: float, whole: float, size: int) -> None:
    """Values by centre of the square, and a color bar from 0 to `most` that marks the whole image's."""
    picture = axes.imshow(values.numpy(), "viridis", vmin=0, vmax=most, interpolation="nearest")
    picture.set_extent((0, size, size, 0))
    box, down = axes.get_position(), figure.get_figheight()
    bar = figure.add_axes((box.x0 + 0.06 * box.width, box.y0 - 0.13 / down, 0.88 * box.width, 0.07 / down))
    scale = figure.colorbar(picture, cax=bar, orientation="horizontal", ticks=[0, most / 2, most])
    scale.ax.set_xticklabels([f"{value:.3g}" for value in (0, most / 2, most)])
    scale.ax.tick_params(pad=1)
    scale.outline.set_linewidth(0.4)
    bar.axvline(whole, color=ERROR_COLOR, linewidth=1.5, ymin=-0.4, ymax=1.4, clip_on=False)


def label_colors(predicted: Sequence[Tensor]) -> dict[int, tuple]:
    """class -> its color, for each class in these maps; the most frequent ones are told apart."""
    numbers, counts = torch.cat([each.flatten() for each in predicted]).unique(return_counts=True)
    order = numbers[counts.sort(descending=True, stable=True).indices].tolist()
    return {number: COLORS[rank] if rank < len(COLORS) else OTHER_COLOR for rank, number in enumerate(order)}


def draw_labels(
    figure: Figure, top: float, predicted: Tensor, classes: Sequence[str], colors: dict[int, tuple]
) -> None:
    """The colors of the most frequent classes, with their shares of the positions."""
    numbers, counts = predicted.flatten().unique(return_counts=True)
    order = counts.sort(descending=True, stable=True).indices[:LABELS_SHOWN].tolist()
    left = LEFT + 4 * COLUMN + TILE + 0.06
    for line, n in enumerate(order):
        number, share = numbers[n].item(), counts[n].item() / predicted.numel()
        y = top + 0.08 + 0.165 * line
        box = bare_axes_at(figure, left, y - 0.05, 0.08, 0.1)
        box.set_facecolor(colors[number])
        text_at(figure, left + 0.11, y, f"{truncate(classes[number], 10)} {format_percent(share)}", ha="left")
