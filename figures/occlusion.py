"""What the network loses when a square of the image is hidden (Zeiler & Fergus 2014, section 4.2 and figure 7)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.inspection import Inspection, Picture, one_per_class
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, format_percent, styled, text_at, truncate, unpooling_note
from network import STAGES, ResNet18

LAST_STAGE = STAGES[-1]
SQUARE_PIXELS, STEP_PIXELS = 48, 8  # for inputs of 224 pixels
MIN_STEP_PIXELS = 2
EXAMPLES = 3  # images by default, and other images that excite the map
COLORS = [colormaps["tab10"](n) for n in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
OTHER_COLOR = colormaps["tab10"](7)  # grey, of the classes that these colors do not suffice for
LEGEND_CLASSES = 7
HEADINGS = (
    "(a) image",
    f"(b) sum of the strongest\nmap of {LAST_STAGE}",
    "(c) projections of\nthis map",
    "(d) probability of\nthe class",
    "(e) most probable\nclass",
)


@dataclass(frozen=True)
class Occlusion:
    """An image under a square of the mean color, at every position of a regular grid.

    channel      of conv5_x: the map with the largest sum in the whole image
    number       of the class whose probability is recorded
    side         of the square, pixels
    centers      rows, and likewise columns, of the squares' centres, pixels
    whole        sum over the channel's map, probability and predicted class of the whole image
    activation   (n, n) float32: sum over the channel's map, by row and column of the centre
    probability  (n, n) float32 in 0..1: of the class
    predicted    (n, n) int64: the most probable class
    """

    channel: int
    number: int
    side: int
    centers: tuple[int, ...]
    whole: tuple[float, float, int]
    activation: Tensor
    probability: Tensor
    predicted: Tensor


def square_side(image_size: int, side: int | None = None) -> int:
    """The side of the square in pixels; by default SQUARE_PIXELS, in proportion to the image."""
    return max(1, round(SQUARE_PIXELS * image_size / 224)) if side is None else side


def grid_centers(image_size: int) -> list[int]:
    """The centres along one axis: STEP_PIXELS apart, in proportion to the image, with equal margins."""
    step = max(MIN_STEP_PIXELS, round(STEP_PIXELS * image_size / 224))
    count = image_size // step
    first = (image_size - (count - 1) * step) // 2
    return [first + n * step for n in range(count)]


def hide_squares(inputs: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Normalised images under squares of the mean color, which is zero: (n, 3, H, W).

    A square covers center - side // 2 to center - side // 2 + side - 1, clipped at the border.

    inputs         (n, 3, H, W), or (1, 3, H, W) for the same image under every square
    rows, columns  (n,) int64: the centre of each square, pixels
    """
    covered = []
    for centers, length in zip((rows, columns), inputs.shape[2:], strict=True):
        offsets = torch.arange(length) - (centers[:, None] - side // 2)
        covered.append((0 <= offsets) & (offsets < side))  # (n, length)
    hidden = (covered[0][:, None, :, None] & covered[1][:, None, None, :]).to(inputs.device)
    return inputs.masked_fill(hidden, 0).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def occlude(
    network: ResNet18,
    inputs: Tensor,
    number: int | None = None,
    side: int | None = None,
    batch_size: int = 24,
    centers: Sequence[int] | None = None,
) -> Occlusion:
    """Hide each square of a normalised image (1, 3, S, S) in turn.

    number      of the class whose probability is recorded; by default the most probable one of the whole image
    side        of the square, pixels; by default `square_side`
    batch_size  squares per forward pass
    centers     rows, and likewise columns, of the squares' centres, pixels; by default `grid_centers`

    Raises ValueError for a square larger than the image, CheckpointError when activations are not finite.
    """
    size = inputs.shape[-1]
    side = square_side(size, side)
    if side > size:
        raise ValueError(f"a square of {side} pixels does not fit an image of {size}")
    features = network.trace(inputs, LAST_STAGE).features[LAST_STAGE]
    channel = features[0].sum((1, 2)).argmax().item()
    probabilities = network.classify(features)[0].softmax(0)
    predicted = probabilities.argmax().item()
    number = predicted if number is None else number
    whole = (features[0, channel].sum().item(), probabilities[number].item(), predicted)
    centers = tuple(grid_centers(size) if centers is None else centers)
    squares = torch.cartesian_prod(torch.tensor(centers), torch.tensor(centers))  # (n * n, 2)
    sums, of_class, most_probable = [], [], []
    for part in tqdm(squares.split(batch_size), "squares", unit="batches", leave=False, disable=None, delay=2):
        features = network.trace(hide_squares(inputs, *part.T, side), LAST_STAGE).features[LAST_STAGE]
        probabilities = network.classify(features).softmax(1)
        sums.append(features[:, channel].sum((1, 2)))
        of_class.append(probabilities[:, number])
        most_probable.append(probabilities.argmax(1))
    maps = [torch.cat(values).cpu().unflatten(0, (len(centers), -1)) for values in (sums, of_class, most_probable)]
    check_finite(maps[0], f"activations of {LAST_STAGE}")
    return Occlusion(channel, number, side, centers, whole, *maps)


def most_exciting_others(inspection: Inspection, channel: int, origin: int | str) -> Tensor:
    """Indices of the EXAMPLES searched images with the channel's highest peaks above zero, without the image itself."""
    peaks = inspection.search.peaks[LAST_STAGE][:, channel]
    order = peaks.sort(descending=True, stable=True).indices
    indices = inspection.searched[order[peaks[order] > 0]]
    return (indices[indices != origin] if isinstance(origin, int) else indices)[:EXAMPLES]


def json_entry(occlusion: Occlusion, picture: Picture, classes: Sequence[str]) -> dict:
    """The image's part of occlusion.json."""
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
    }


@register(
    "occlusion",
    "Which part of an image matters",
    "Where hiding a square lowers the map's sum, the map sees something there; where it lowers the probability or "
    "changes the class, the decision depends on it.",
    needs="both",
    stages=STAGES[-1:],
    passes=8000,
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
    own = [picture for picture in inspection.pictures if isinstance(picture.origin, str)]
    entries = []
    for folder, pictures in groupby(own or one_per_class(inspection, EXAMPLES), lambda picture: picture.folder):
        rows = []
        for picture in pictures:
            inputs = inspection.inputs(picture.image[None])
            number = classes.index(picture.label) if picture.label in classes else None
            occlusion = occlude(network, inputs, number, settings.occluder, settings.batch_size)
            others = most_exciting_others(inspection, occlusion.channel, picture.origin)
            inputs = torch.cat([inputs, inspection.inputs(inspection.images[others])])
            (projections,) = reconstruct(network, mirrors, inputs, LAST_STAGE, occlusion.channel).values()
            image = to_array(inspection.resized(picture.image[None])[0])
            rows.append((row_title(picture, occlusion, classes), image, occlusion, diverging_tiles(projections)))
            entries.append(json_entry(occlusion, picture, classes))
        yield Path(folder, "occlusion"), occlusion_figure(rows, classes, note)
    yield Path("occlusion"), entries


def row_title(picture: Picture, occlusion: Occlusion, classes: Sequence[str]) -> str:
    """What the image is, its class with the probability, and the channel."""
    name = truncate(classes[occlusion.number], 24) + ("" if picture.label in classes else ", the predicted class")
    return f"{truncate(picture.title, 60)}: {format_percent(occlusion.whole[1])} {name}; channel {occlusion.channel}"


@styled
def occlusion_figure(
    rows: Sequence[tuple[str, np.ndarray, Occlusion, np.ndarray]], classes: Sequence[str], note: str
) -> Figure:
    """A row per image: the image, the map's sum, its projections, the class's probability, the most probable class.

    rows: of each image its title, itself (S, S, 3) in 0..1, what was measured, and the map's projections
    (m, S, S, 3) in 0..1 around grey from this image and others
    """
    height = 1.16 + 1.68 * len(rows)
    figure = Figure((WIDTH_INCHES, height))
    text_at(figure, WIDTH_INCHES / 2, 0.14, "The network's view of an image in which a square is hidden", fontsize=9)
    edges = {"left": 0.01, "right": 0.855, "top": 1 - 0.86 / height, "bottom": 0.82 / height}
    axes = figure.subplots(len(rows), 5, squeeze=False, gridspec_kw=edges | {"wspace": 0.03, "hspace": 0.45})
    for tile, heading in zip(axes[0], HEADINGS, strict=True):
        tile.annotate(heading, (0.5, 1), (0, 26), "axes fraction", "offset points", ha="center", va="center")
    colors = label_colors([occlusion.predicted for _, _, occlusion, _ in rows])
    for tiles, (title, image, occlusion, projections) in zip(axes, rows, strict=True):
        tiles[0].set_title(title, loc="left")
        draw_image(tiles[0], image, occlusion)
        activation, probability, _ = occlusion.whole
        draw_map(tiles[1], occlusion.activation, max(activation, occlusion.activation.max().item()) or 1.0, activation)
        draw_projections(tiles[2], projections)
        draw_map(tiles[3], occlusion.probability, 1.0, probability)
        draw_classes(tiles[4], occlusion.predicted, classes, colors)
        for tile in tiles:
            tile.set_axis_off()
    occlusion = rows[0][2]
    step = occlusion.centers[1] - occlusion.centers[0] if len(occlusion.centers) > 1 else occlusion.side
    lines = (
        f"Each pixel of (b), (d), (e) is the centre of a square of {occlusion.side} px of the mean color, every "
        f"{step} px, clipped at the border (the paper gives neither number).",
        "In (a) the square is where the probability is lowest. The red line on a bar is the value of the whole image.",
        f"(c) {note}, whole map: this image (framed) and the test images with the map's highest peaks; own scale each, "
        "grey: zero.",
    )
    text_at(figure, WIDTH_INCHES / 2, height - 0.22, "\n".join(lines))
    return figure


def draw_image(axes: Axes, image: np.ndarray, occlusion: Occlusion) -> None:
    """The image (S, S, 3) with the square under which the class is least probable."""
    size, side = len(image), occlusion.side
    axes.imshow(image, interpolation="antialiased", extent=(0, size, size, 0))
    row, column = divmod(occlusion.probability.argmin().item(), len(occlusion.centers))
    corner = [occlusion.centers[n] - side // 2 for n in (column, row)]
    axes.add_patch(Rectangle(corner, side, side, facecolor="0.5", edgecolor=ERROR_COLOR, linewidth=1))


def draw_projections(axes: Axes, projections: np.ndarray) -> None:
    """Two by two tiles; the first, of the image itself, is framed."""
    size = projections.shape[1]
    gap = max(1, size // 28)
    axes.imshow(image_grid(projections, 2, gap), interpolation="antialiased")
    axes.add_patch(Rectangle((-0.5, -0.5), size, size, fill=False, linewidth=1.2, clip_on=False))
    axes.set(xlim=(-0.5, 2 * size + gap - 0.5), ylim=(2 * size + gap - 0.5, -0.5))  # also of fewer than four


def draw_map(axes: Axes, values: Tensor, most: float, whole: float) -> None:
    """Values by centre of the square, and a color bar from 0 to `most` that marks the whole image's."""
    picture = axes.imshow(values.numpy(), "viridis", vmin=0, vmax=most, interpolation="nearest")
    bar = axes.inset_axes((0.06, -0.13, 0.88, 0.06))
    ticks = [0, most / 2, most]
    axes.figure.colorbar(picture, cax=bar, orientation="horizontal", ticks=ticks, format="{x:.3g}")
    bar.tick_params(pad=1)
    bar.axvline(whole, color=ERROR_COLOR, linewidth=1.5, ymin=-0.4, ymax=1.4, clip_on=False)


def label_colors(predicted: Sequence[Tensor]) -> dict[int, tuple]:
    """class -> its color, for each class in these maps; the most frequent ones are told apart."""
    numbers, counts = torch.cat([classes.flatten() for classes in predicted]).unique(return_counts=True)
    order = numbers[counts.sort(descending=True, stable=True).indices].tolist()
    return {number: COLORS[rank] if rank < len(COLORS) else OTHER_COLOR for rank, number in enumerate(order)}


def draw_classes(axes: Axes, predicted: Tensor, classes: Sequence[str], colors: dict[int, tuple]) -> None:
    """The most probable class by centre of the square, and the most frequent ones' shares of the positions."""
    axes.imshow([[colors[number] for number in row] for row in predicted.tolist()], interpolation="nearest")
    numbers, counts = predicted.flatten().unique(return_counts=True)
    order = counts.sort(descending=True, stable=True).indices[:LEGEND_CLASSES]
    shares = zip(numbers[order].tolist(), (counts[order] / predicted.numel()).tolist(), strict=True)
    patches = [
        Patch(color=colors[number], label=f"{truncate(classes[number], 10)} {format_percent(share)}")
        for number, share in shares
    ]
    axes.legend(
        handles=patches, loc="upper left", bbox_to_anchor=(1, 1), frameon=False,
        handlelength=0.9, handleheight=0.9, handletextpad=0.4, borderpad=0, labelspacing=0.7,
    )  # fmt: skip
