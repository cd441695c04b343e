"""How what channels respond to changes during training (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.activations import search, split_dead_channels
from analysis.channels import StrongestUnits, chosen_channels, reconstruct_units, strongest_units
from analysis.crops import correlations, crop, crop_boxes
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures import style
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from network import STAGES
from runtime import checkpoint

COMPARED_CHANNELS = 9  # at each stage
MIN_COLUMNS, MAX_COLUMNS = 7, 11  # of epochs; fewer leave the rest of the width empty
COLORS = dict(zip(STAGES, colormaps["viridis"](np.linspace(0.9, 0, len(STAGES))), strict=True))


def evolution(
    inspection: Inspection, settings: Settings, snapshots: Mapping[int, Path], channels: Mapping[str, list[int]]
) -> tuple[dict, dict[str, list[Tensor]]]:
    """Each snapshot, searched by itself at its own image size, and last the inspection's network.

    channels: stage -> living channels whose pictures are compared; the first one is drawn

    Returns the content of evolution.json, and stage -> in each snapshot (1, 3, S, S): what the strongest unit of the
    first channel saw. In the content, by snapshot:

    shares        mean share of a living channel's final nine images that are among its nine already
    correlations  mean correlation of what the channels' final strongest units see with the final pictures (0: nothing)

    Raises NotDrawn for a snapshot with another number of classes, CheckpointError for a broken one.
    """
    final, size, count = inspection.search, inspection.metadata.image_size, len(inspection.searched)
    content = {"epochs": [], "image_sizes": [], "images_searched": count, "chance": min(9 / count, 1)}
    content["stages"], final_units, final_pictures = {}, {}, {}
    pictures = {stage: [] for stage in channels}
    for stage, compared in channels.items():
        measured = {key: [] for key in ("images", "activations", "shares", "correlations")}
        content["stages"][stage] = {"channel": compared[0], "channels": compared, **measured}
        final_units[stage] = strongest_units(inspection, stage, compared, final.top[stage])
        final_pictures[stage] = draw_units(inspection, settings, final_units[stage])
    for epoch, earlier in searched_snapshots(inspection, settings, snapshots, list(channels)):
        content["epochs"].append(epoch)
        content["image_sizes"].append(earlier.metadata.image_size)
        for stage, entry in content["stages"].items():
            top, units = earlier.search.top[stage], final_units[stage]
            width, columns = final.top[stage].map_size[1], top.map_size[1]  # of square maps
            row, column = units.positions // width, units.positions % width
            same = replace(units, positions=row * columns // width * columns + column * columns // width)
            drawn = F.interpolate(draw_units(earlier, settings, same), (size, size), mode="bilinear")
            alike = [value or 0.0 for value in correlations(drawn, final_pictures[stage])]
            unit = strongest_units(earlier, stage, entry["channels"][:1], top)
            entry["images"].append(unit.images.item())
            entry["activations"].append(unit.scores.item())
            entry["shares"].append(mean_share(earlier.search.peaks[stage], final.peaks[stage]))
            entry["correlations"].append(sum(alike) / len(alike))
            pictures[stage].append(draw_units(earlier, settings, unit))
    return content, pictures


def searched_snapshots(
    inspection: Inspection, settings: Settings, snapshots: Mapping[int, Path], stages: Sequence[str]
) -> Iterator[tuple[int, Inspection]]:
    """Epoch and inspection of the same images by each snapshot, and last the final one."""
    last = inspection.metadata.history[-1]["epoch"]
    for epoch, file in snapshots.items():
        if epoch == last:  # of the same weights
            continue
        network, metadata = checkpoint.load_network(file)
        if (count := network.fc.out_features) != (expected := inspection.network.fc.out_features):
            raise NotDrawn(f"{file} has {count} classes, {inspection.checkpoint} has {expected}: another run's?")
        network = network.to(inspection.device, memory_format=torch.channels_last)
        preprocess = Preprocess(metadata.image_size, metadata.mean, metadata.std, inspection.device)
        earlier = replace(inspection, network=network, metadata=metadata, preprocess=preprocess)
        inside = searched_units(network, stages, metadata.image_size, settings.border)
        batches = earlier.batches(settings.batch_size)
        result = search(network, batches, len(earlier.searched), stages, k=1, inside=inside)
        yield epoch, replace(earlier, search=result)
    yield last, inspection


def draw_units(inspection: Inspection, settings: Settings, units: StrongestUnits) -> Tensor:
    """(n, 3, S, S): what each unit saw, by the main rule."""
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    return reconstruct_units(inspection, mirrors, units)[settings.main_rule]


def mean_share(earlier: Tensor, final: Tensor) -> float:
    """The mean share of each channel's final nine images that are among its earlier nine.

    earlier, final: peaks (N, C); only images that excite a channel count, and channels that are excited in the end.
    """
    best = []
    for peaks in (earlier, final):
        nine = peaks.sort(dim=0, descending=True, stable=True).indices[:9]
        best.append(torch.zeros_like(peaks, dtype=torch.bool).scatter(0, nine, True) & (peaks > 0))
    same, count = (best[0] & best[1]).sum(0), best[1].sum(0)
    return (same[count > 0] / count[count > 0]).double().mean().item()


@register(
    "evolution",
    "Channels during training",
    "A channel has settled once its strongest image and its picture stop changing; the curves say how early each "
    "stage does.",
    stages=STAGES,
    passes=8000,
    is_slow=True,
)
def draw_evolution(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of evolution.json."""
    path = inspection.checkpoint
    files = checkpoint.snapshots(path.parent if path.name in ("model.pt", "last.pt") else path)
    if not files or not inspection.metadata.history:
        raise NotDrawn("it needs a run of train.py --snapshots 1 2 5 10 20 40")
    chosen = {stage: chosen_channels(settings, inspection.search, stage, COMPARED_CHANNELS) for stage in STAGES}
    alive = {stage: split_dead_channels(inspection.search.top[stage], numbers)[0] for stage, numbers in chosen.items()}
    channels = {stage: numbers[:COMPARED_CHANNELS] for stage, numbers in alive.items() if numbers}
    content, pictures = evolution(inspection, settings, files, channels)
    last = {stage: entry["images"][-1] for stage, entry in content["stages"].items()}
    tiles = {stage: crop_tiles(inspection, pictures[stage], last[stage]) for stage in channels}
    note = f"{settings.main_rule}{style.unpooling_note(settings.unpool)}"
    yield Path("evolution"), evolution_figure(content, tiles, note)
    yield Path("evolution"), content


def crop_tiles(inspection: Inspection, pictures: Sequence[Tensor], last_image: int) -> list[np.ndarray]:
    """A stage's picture in each snapshot, (s, s, 3) in 0..1 around grey, and the last one's part of its image.

    Cropped to squares of one side, in pixels of each network's input. pictures: (1, 3, S, S) each
    """
    side = max(crop_boxes([picture])[0] for picture in pictures)
    tiles = []
    for picture in pictures:
        box = crop_boxes([picture], least=side)
        tiles.append(diverging_tiles(crop(picture, *box))[0])
    image = inspection.resized(inspection.images[last_image][None])
    return [*tiles, to_array(crop(image, *box))[0]]


@style.styled
def evolution_figure(content: dict, tiles: dict[str, list[np.ndarray]], note: str) -> Figure:
    """A row per stage, a column per epoch, and the last image; below, by stage and epoch, how much is settled.

    content  of evolution.json
    tiles    stage -> `crop_tiles`
    """
    count = len(content["epochs"])
    columns = np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int).tolist()  # first and last, too
    tiles_inches = 7.75 * len(tiles) / (max(len(columns), MIN_COLUMNS) + 1) + 0.3
    resized = " Dotted: the image size changes, and a tile's part of it." * (len(set(content["image_sizes"])) > 1)
    figure = style.new_figure(
        tiles_inches + 2,
        "What one channel of each stage responds to, by epoch",
        f"Pictures: {note}, the strongest unit in {content['images_searched']:,} test images; own scale each, grey: "
        "zero. Numbers: its image, red where another one than in the column before.",
        "Left: mean over all living channels; chance: nine images at random. Right: the same units of the same images "
        f"at each epoch, mean over up to {COMPARED_CHANNELS} channels.{resized}",
    )
    axes = figure.subplot_mosaic([["tiles"] * 2, ["shares", "correlations"]], height_ratios=(tiles_inches, 2))
    draw_tiles(axes["tiles"], content, tiles, columns)
    for measure in ("shares", "correlations"):
        draw_curves(axes[measure], content, measure)
    axes["shares"].set_title("Share of a channel's final 9 images", loc="left")
    axes["correlations"].set_title("Correlation with the final picture", loc="left")
    axes["shares"].axhline(content["chance"], color="0.5", linestyle="--", linewidth=0.8, label="chance")
    handles, _ = axes["shares"].get_legend_handles_labels()
    axes["correlations"].legend(handles=handles, loc="lower right", frameon=False)
    return figure


def draw_tiles(axes: Axes, content: dict, tiles: dict[str, list[np.ndarray]], columns: list[int]) -> None:
    """The tiles of these snapshots and the last image, a row per stage, each above its image's number."""
    for row, (stage, pictures) in enumerate(tiles.items()):
        top, images = 1.25 * row, content["stages"][stage]["images"]
        for column, n in enumerate([*columns, -1]):
            axes.imshow(pictures[n], interpolation="antialiased", extent=(column, column + 0.95, top + 0.95, top))
        for column, n in enumerate(columns):
            color = style.ERROR_COLOR if images[n] != images[columns[max(column - 1, 0)]] else "black"
            axes.text(column + 0.475, top + 1, images[n], ha="center", va="top", color=color)
    headings = [f"epoch {content['epochs'][n]}\n{content['image_sizes'][n]} px" for n in columns]
    labels = [f"{stage}\nchannel {entry['channel']}" for stage, entry in content["stages"].items()]
    axes.set_xticks(np.arange(len(columns) + 1) + 0.475, [*headings, "last image"])
    axes.set_yticks(1.25 * np.arange(len(tiles)) + 0.475, labels)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(0, max(len(columns), MIN_COLUMNS) + 1), ylim=(1.25 * len(tiles), 0))


def draw_curves(axes: Axes, content: dict, measure: str) -> None:
    """The "shares" of the final images or the "correlations" with the final pictures, by stage and epoch."""
    epochs, sizes = content["epochs"], content["image_sizes"]
    for stage, entry in content["stages"].items():
        axes.plot(epochs, entry[measure], "o-", color=COLORS[stage], markersize=2.5, linewidth=1.2, label=stage)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel("epoch")
    for n in range(1, len(sizes)):
        if sizes[n] != sizes[n - 1]:  # a line between epochs of different image size
            axes.axvline((epochs[n - 1] + epochs[n]) / 2, color="0.4", linestyle=":", linewidth=1)
