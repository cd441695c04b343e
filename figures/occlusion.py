"""Where hiding a square of the image costs activation or probability (Zeiler & Fergus 2014, section 4.2, figure 7)."""

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
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.inspection import Inspection, Picture, picture_of, pictures_asked_for, spread
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures import style
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.registry import NotDrawn, register

SQUARE_PIXELS, STEP_PIXELS, MIN_STEP_PIXELS = 48, 8, 2  # the first two for inputs of 224 pixels
EXAMPLES = 3  # images by default, and other images that excite the map
CANDIDATES, COARSE_SQUARES = 64, 4  # images tried to find these, and the number of squares along each axis
WHITE_ZERO = LinearSegmentedColormap.from_list("white zero", ["#053061", "#4393c3", "white", "#d6604d", "#67001f"])
COLORS = [colormaps["tab10"](n) for n in (0, 1, 2, 4, 5, 6, 8, 9, 7)]  # the last is grey, of all further classes
LEGEND_CLASSES = 6
HALO = [withStroke(linewidth=2, foreground="white")]  # of lines over an image
HEADINGS = (
    "(a) image", "(b) loss of the\nstrongest map", "(c) projections\nof this map", "(d) loss of the\nprobability",
    "(e) where the\nclass changes",
)  # fmt: skip


def grid_centers(image_size: int) -> list[int]:
    """The centres along one axis: STEP_PIXELS apart, in proportion to the image, with equal margins."""
    step = max(MIN_STEP_PIXELS, round(STEP_PIXELS * image_size / 224))
    first = (image_size - (image_size // step - 1) * step) // 2
    return [first + n * step for n in range(image_size // step)]


def hide_squares(inputs: Tensor, centers: Tensor, side: int) -> Tensor:
    """A normalised image (1, 3, H, W) under squares of the mean color, which is zero: (n, 3, H, W).

    A square covers center - side // 2 to center - side // 2 + side - 1, clipped at the border.

    centers: (n, 2) int64, row and column of each square's centre, pixels
    """
    hidden = inputs.repeat(len(centers), 1, 1, 1)
    for image, (top, left) in zip(hidden, (centers - side // 2).tolist(), strict=True):
        image[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return hidden.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def occlude(inspection: Inspection, settings: Settings, picture: Picture, centers: Sequence[int] | None = None) -> dict:
    """Hide each square of an image in turn; its part of occlusion.json, with lists by row and column of the centre.

    centers: rows, and likewise columns, of the squares' centres, pixels; by default `grid_centers`

    class          the one whose probability is recorded: the image's, or the most probable one if that is not known
    channel        of conv5_x: the map with the largest sum in the whole image
    side, rows, columns   of the squares: their side and their centres, pixels
    whole          of the whole image: sum over the channel's map, probability, and predicted class
    activation, probability, predicted   the same under each square

    Raises CheckpointError when activations are not finite.
    """
    network, classes, size = inspection.network, inspection.metadata.classes, inspection.metadata.image_size
    side, centers = settings.occluder or max(1, round(SQUARE_PIXELS * size / 224)), list(centers or grid_centers(size))
    inputs = inspection.inputs(picture.image[None])
    features = network.trace(inputs).features["conv5_x"]
    channel = features[0].sum((1, 2)).argmax().item()
    probabilities = network.classify(features)[0].softmax(0)
    predicted = probabilities.argmax().item()
    number = classes.index(picture.label) if picture.label in classes else predicted
    squares = torch.cartesian_prod(torch.tensor(centers), torch.tensor(centers))  # (n * n, 2)
    measured = []
    for part in tqdm(squares.split(settings.batch_size), "squares", unit="batches", leave=False, disable=None, delay=2):
        hidden = network.trace(hide_squares(inputs, part, side)).features["conv5_x"]
        under = network.classify(hidden).softmax(1)
        measured.append((hidden[:, channel].sum((1, 2)), under[:, number], under.argmax(1)))
    maps = [torch.cat(values).cpu().unflatten(0, (len(centers), -1)) for values in zip(*measured, strict=True)]
    whole = (features[0, channel].sum().item(), probabilities[number].item(), classes[predicted])
    return {
        "class": classes[number],
        "channel": channel,
        "side": side,
        "rows": centers,
        "columns": centers,
        "whole": dict(zip(("activation", "probability", "predicted"), whole, strict=True)),
        "activation": check_finite(maps[0], "activations of conv5_x").tolist(),
        "probability": maps[1].tolist(),
        "predicted": [[classes[number] for number in row] for row in maps[2].tolist()],
    }


def costly_images(inspection: Inspection, settings: Settings) -> tuple[dict[int, float], str]:
    """The EXAMPLES images of different classes that lose most of their class's probability under a coarse grid.

    Returns index in the test split -> the largest loss (0..1), in descending order, and in words the images tried: at
    most CANDIDATES, evenly spread over the searched ones that are classified correctly. If the test images' classes
    are not the network's, the predicted classes take their place. Raises NotDrawn if none is correct.
    """
    predicted, size = inspection.search.logits.argmax(1), inspection.metadata.image_size
    labels = inspection.labels[inspection.searched] if inspection.knows_labels else predicted
    right = inspection.searched[predicted == labels]
    if not len(right):
        raise NotDrawn("no searched image is classified correctly")
    right = right[spread(min(CANDIDATES, len(right)), len(right))]
    centers = [size * (2 * n + 1) // (2 * COARSE_SQUARES) for n in range(COARSE_SQUARES)]
    losses = []
    for index in tqdm(right.tolist(), "images to show", unit="images", leave=False, disable=None, delay=2):
        entry = occlude(inspection, settings, picture_of(inspection, index), centers)
        losses.append((entry["whole"]["probability"] - np.min(entry["probability"]), index, entry["class"]))
    costliest: dict[str, tuple[int, float]] = {}  # class -> index and loss
    for loss, index, name in sorted(losses, key=lambda image: -image[0]):
        costliest.setdefault(name, (index, loss))
    tried = f"{len(right)} {'correctly classified ' * inspection.knows_labels}images"
    return dict(list(costliest.values())[:EXAMPLES]), tried


@register(
    "occlusion",
    "Which part of an image matters",
    "Red: hiding a square there lowers the map's sum, so the map sees something there, or the probability of the "
    "class, so the decision depends on it.",
    needs="both",
    stages=("conv5_x",),
    passes=8000,
    is_slow=True,
)
def draw_occlusion(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """One figure for the test images, or one per picture of the user's; at last the content of occlusion.json."""
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    pictures, coarse_losses, tried, entries = pictures_asked_for(inspection, settings), {}, "", []
    if not pictures:
        coarse_losses, tried = costly_images(inspection, settings)
        pictures = [picture_of(inspection, index) for index in coarse_losses]
    for folder, group in groupby(pictures, lambda picture: picture.folder):
        rows = []
        for picture in group:
            entry = {"image": picture.origin, "label": picture.label, "coarse_loss": coarse_losses.get(picture.origin)}
            entry |= occlude(inspection, settings, picture)
            ranked = inspection.search.peaks["conv5_x"][:, entry["channel"]].sort(descending=True, stable=True)
            excited = inspection.searched[ranked.indices[ranked.values > 0]].tolist()
            others = [index for index in excited if index != picture.origin][:EXAMPLES]
            inputs = torch.cat([inspection.inputs(picture.image[None]), inspection.inputs(inspection.images[others])])
            (projections,) = reconstruct(inspection.network, mirrors, inputs, "conv5_x", entry["channel"]).values()
            image = to_array(inspection.resized(picture.image[None])[0])
            rows.append((row_title(picture.title, entry), image, entry, diverging_tiles(projections)))
            entries.append(entry)
        note = f"{settings.main_rule}{style.unpooling_note(settings.unpool)}"
        yield Path(folder, "occlusion"), occlusion_figure(rows, note, tried)
    yield Path("occlusion"), entries


def row_title(title: str, entry: dict) -> str:
    """What the image is, its class's probability, and what the worst square leaves of it."""
    whole, name = entry["whole"], style.truncate(entry["class"], 16)
    name += "" if entry["label"] == entry["class"] else " (predicted)"
    left, then = np.min(entry["probability"]), np.ravel(entry["predicted"])[np.argmin(entry["probability"])]
    then = "" if then == whole["predicted"] else f", now {style.truncate(then, 16)}"
    before, after = style.format_percent(whole["probability"]), style.format_percent(left)
    return f"{style.truncate(title, 36)}: {before} {name}; box hidden: {after}{then}"


def changes_of(entry: dict) -> Counter:
    """Class -> the number of squares under which it is the most probable one, though not of the whole image."""
    names = Counter(name for row in entry["predicted"] for name in row)
    del names[entry["whole"]["predicted"]]
    return names


@style.styled
def occlusion_figure(rows: Sequence[tuple[str, np.ndarray, dict, np.ndarray]], note: str, tried: str = "") -> Figure:
    """A row per image: the image, the map's loss, its projections, the probability's loss, where the class changes.

    rows   of each image its title, itself (S, S, 3) in 0..1, its part of occlusion.json, and the map's projections
           (m, S, S, 3) in 0..1 around grey from this image and others
    note   the rule of the projections
    tried  the images among which `costly_images` chose these; empty if it did not
    """
    entries = [entry for _, _, entry, _ in rows]
    lines = caption(entries[0], note, tried)
    height, pads = 0.6 + 1.42 * len(rows), {"w_pad": 0.05, "h_pad": 0.05, "wspace": 0, "hspace": 0.1}
    figure = style.new_figure(height, "What hiding a part of the image costs", *lines, compress=True, **pads)
    axes = figure.subplots(len(rows), len(HEADINGS), squeeze=False)
    for tiles, text in zip(axes[0], HEADINGS, strict=True):
        tiles.annotate(text, (0, 1), (0, 16), "axes fraction", "offset points", va="bottom", weight="bold")
    changes = sum(map(changes_of, entries), Counter()).most_common()
    colors = {name: COLORS[min(n, len(COLORS) - 1)] for n, (name, _) in enumerate(changes)}
    sums = [(entry["whole"]["activation"], np.array(entry["activation"])) for entry in entries]
    totals = [100 * (whole - hidden) / (whole or 1.0) for whole, hidden in sums]
    losses = [100 * (entry["whole"]["probability"] - np.array(entry["probability"])) for entry in entries]
    for tiles, (title, image, entry, projections), loss in zip(axes, rows, losses, strict=True):
        tiles[0].text(0, 1.03, title, transform=tiles[0].transAxes, in_layout=False)
        draw_image(tiles[0], image, entry, loss)
        draw_contour(tiles[1], loss, range(len(loss)))
        tiles[1].text(0.04, 0.04, f"channel {entry['channel']}", transform=tiles[1].transAxes, path_effects=HALO)
        draw_projections(tiles[2], projections)
        draw_changes(tiles[4], image, entry, colors)
    draw_losses(axes[:, 1], totals, "% of its sum")
    draw_losses(axes[:, 3], losses, "percentage points")
    for tiles in axes.flat:
        tiles.set_axis_off()
    return figure


def caption(entry: dict, note: str, tried: str) -> list[str]:
    """How to read the columns, and how the images were chosen."""
    step = entry["rows"][1] - entry["rows"][0]
    chosen = f"Chosen, not typical: of {tried}, those of different classes that lose most."
    return [
        "(a) Box: the square that lowers the probability most. (a), (b) Line: half of this loss.",
        "(b) Of conv5_x, the map with the largest sum. (b), (d) Each pixel is the centre of a square of the mean color "
        f"(red: hiding it lowers the value; blue: raises it) that is {entry['side']} px wide, {step} px from the next; "
        "Zeiler & Fergus give neither number.",
        f"(c) {note}, whole map: this image (framed), then those with the highest peaks; own scale each, grey: zero.",
        "(e) Where hiding the square changes the most probable class, with shares of all positions.",
        *[chosen] * bool(tried),
    ]


def draw_image(axes: Axes, image: np.ndarray, entry: dict, losses: np.ndarray) -> None:
    """The image (S, S, 3), the square under which the class is least probable, and a contour of its losses."""
    size, side = len(image), entry["side"]
    axes.imshow(image, interpolation="antialiased", extent=(0, size, size, 0))
    row, column = np.unravel_index(np.argmin(entry["probability"]), losses.shape)
    corner = (entry["columns"][column] - side // 2, entry["rows"][row] - side // 2)
    box = Rectangle(corner, side, side, fill=False, edgecolor=style.ERROR_COLOR, linewidth=1.2, path_effects=HALO)
    axes.add_patch(box)
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


def draw_losses(column: Sequence[Axes], losses: Sequence[np.ndarray], unit: str) -> None:
    """One map (n, n) below the other by centre of the square, on one scale; its bar shows the values that occur."""
    limit = np.abs(losses).max() or 1.0
    for axes, values in zip(column, losses, strict=True):
        picture = axes.imshow(values, WHITE_ZERO, vmin=-limit, vmax=limit, interpolation="nearest")
        frame = {"fill": False, "edgecolor": "0.6", "linewidth": 0.5, "clip_on": False}
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, **frame))
    bar = column[-1].inset_axes((0.04, -0.11, 0.92, 0.05))
    axes.figure.colorbar(picture, cax=bar, orientation="horizontal", ticks=MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    bar.set_xlim(min(np.min(losses), 0), max(np.max(losses), 0) or limit)
    bar.tick_params(pad=1)
    bar.set_xlabel(unit, labelpad=1)


def draw_changes(axes: Axes, image: np.ndarray, entry: dict, colors: dict[str, tuple]) -> None:
    """The most probable class by centre of the square, over the pale image, where it is not the whole image's.

    Beside it, the most frequent of these classes with their shares of all positions.
    """
    predicted, (first, second, *_, last), size = np.array(entry["predicted"]), entry["rows"], len(image)
    low, high = first - (second - first) / 2, last + (second - first) / 2
    axes.imshow(0.7 + 0.3 * image.mean(2), "gray", vmin=0, vmax=1, extent=(0, size, size, 0))
    shown, patches = np.zeros((*predicted.shape, 4)), []  # transparent
    for name, count in changes_of(entry).most_common():
        shown[predicted == name] = colors[name]
        share = style.format_percent(count / predicted.size)
        patches.append(Patch(color=colors[name], label=f"{style.truncate(name, 9)} {share}"))
    axes.imshow(shown, interpolation="nearest", extent=(low, high, high, low))
    axes.set(xlim=(0, size), ylim=(size, 0))
    axes.legend(
        handles=patches[:LEGEND_CLASSES] or [Patch(alpha=0, label="nowhere")], loc="upper left", bbox_to_anchor=(1, 1),
        frameon=False, handlelength=0.9, handleheight=0.9, handletextpad=0.4, borderpad=0, labelspacing=0.7,
    )  # fmt: skip
