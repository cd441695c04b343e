"""How what channels respond to changes during training (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from analysis.crops import corner_inside, correlations, crop, crop_boxes, energy_centers
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, heading, styled, unpooling_note
from network import STAGES
from runtime import checkpoint
from runtime.checkpoint import CheckpointError

IMAGES_PER_CHANNEL = 9
COMPARED_CHANNELS = 9  # at each stage
MIN_COLUMNS, MAX_COLUMNS = 7, 9  # of epochs; fewer leave the rest of the width empty
COLORS = dict(zip(STAGES, colormaps["viridis"](np.linspace(0.9, 0, len(STAGES))), strict=True))


@dataclass(frozen=True)
class Snapshot:
    """The channels after one epoch, at that epoch's image size.

    epoch        None if it is not known
    shares       stage -> mean share of a living channel's final nine images that are among its nine already
    correlation  stage -> mean correlation of the pictures of some channels' final strongest units with the final
                 pictures; a picture of zero counts as 0
    units        stage -> the strongest unit of the first of these channels
    pictures     stage -> (1, 3, S, S): what this unit saw
    """

    epoch: int | None
    image_size: int
    shares: dict[str, float]
    correlation: dict[str, float]
    units: dict[str, StrongestUnits]
    pictures: dict[str, Tensor]


def snapshots_beside(path: Path) -> dict[int, Path]:
    """epoch -> snapshot of the run that a checkpoint belongs to; empty if it is not a run's model.pt or last.pt."""
    return checkpoint.snapshots(path.parent if path.name in ("model.pt", "last.pt") else path)


def evolution(
    inspection: Inspection, settings: Settings, snapshots: Mapping[int, Path], channels: Mapping[str, list[int]]
) -> Iterator[Snapshot]:
    """Each snapshot, searched by itself at its own image size, and last the inspection's network.

    channels: stage -> living channels whose pictures are compared; the first one's strongest units are returned

    Raises CheckpointError for a snapshot with another number of classes.
    """
    final, size = inspection.search, inspection.metadata.image_size
    final_units = {
        stage: strongest_units(inspection, stage, compared, final.top[stage]) for stage, compared in channels.items()
    }
    final_pictures = {stage: draw_units(inspection, settings, units) for stage, units in final_units.items()}
    for epoch, earlier in searched_snapshots(inspection, settings, snapshots, list(channels)):
        shares, correlation, units, pictures = {}, {}, {}, {}
        for stage, compared in channels.items():
            top = earlier.search.top[stage]
            shares[stage] = mean_share(best_images(earlier.search.peaks[stage]), best_images(final.peaks[stage]))
            same = same_units(final_units[stage], final.top[stage].map_size, top.map_size)
            drawn = draw_units(earlier, settings, same)
            drawn = F.interpolate(drawn, (size, size), mode="bilinear") if drawn.shape[-1] != size else drawn
            alike = [value or 0.0 for value in correlations(drawn, final_pictures[stage])]
            correlation[stage] = sum(alike) / len(alike)
            units[stage] = strongest_units(earlier, stage, compared[:1], top)
            pictures[stage] = draw_units(earlier, settings, units[stage])
        yield Snapshot(epoch, earlier.metadata.image_size, shares, correlation, units, pictures)


def searched_snapshots(
    inspection: Inspection, settings: Settings, snapshots: Mapping[int, Path], stages: Sequence[str]
) -> Iterator[tuple[int | None, Inspection]]:
    """Epoch and inspection of the same images by each snapshot, and last the final one, of an epoch known or None."""
    metadata = inspection.metadata
    last = metadata.result.get("epoch")  # of a finished run
    for epoch, file in snapshots.items():
        if epoch != last:
            earlier = inspection_at(inspection, file)
            inside = searched_units(earlier.network, stages, earlier.metadata.image_size, settings.border)
            result = search(earlier.network, earlier.batches(settings.batch_size), stages, k=1, inside=inside)
            yield epoch, replace(earlier, search=result)
    yield last or (metadata.history[-1].get("epoch") if metadata.history else None), inspection


def inspection_at(inspection: Inspection, file: Path) -> Inspection:
    """The same images with the network, image size and normalisation of a snapshot. Raises CheckpointError."""
    network, metadata = checkpoint.load_network(file)
    if (count := network.fc.out_features) != (expected := inspection.network.fc.out_features):
        raise CheckpointError(f"{file} has {count} classes, {inspection.checkpoint} has {expected}: another run's?")
    network = network.to(inspection.device, memory_format=torch.channels_last)
    preprocess = Preprocess(metadata.image_size, metadata.mean, metadata.std, inspection.device)
    return replace(inspection, network=network, metadata=metadata, preprocess=preprocess)


def draw_units(inspection: Inspection, settings: Settings, units: StrongestUnits) -> Tensor:
    """(n, 3, S, S): what each unit saw, by the main rule."""
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    (pictures,) = reconstruct_units(inspection, mirrors, units).values()
    return pictures


def same_units(units: StrongestUnits, map_size: tuple[int, int], other_size: tuple[int, int]) -> StrongestUnits:
    """Units of maps of `map_size`, at the same places in the maps of another image size."""
    (height, width), (rows, columns) = map_size, other_size
    row, column = units.positions // width, units.positions % width
    return replace(units, positions=row * rows // height * columns + column * columns // width)


def best_images(peaks: Tensor) -> Tensor:
    """Which of the images are the nine that excite each channel most: (N, C) bool. peaks: (N, C)."""
    best = peaks.sort(dim=0, descending=True, stable=True).indices[:IMAGES_PER_CHANNEL]
    return torch.zeros_like(peaks, dtype=torch.bool).scatter(0, best, True) & (peaks > 0)


def mean_share(earlier: Tensor, final: Tensor) -> float:
    """The mean share of each channel's final images that are among its earlier ones; (N, C) bool each.

    Over the channels that are excited in the end.
    """
    count = final.sum(0)
    return ((earlier & final).sum(0)[count > 0] / count[count > 0]).double().mean().item()


@register(
    "evolution",
    "Channels during training",
    "A channel has settled once its strongest image and its picture stop changing; the curves say how early each "
    "stage does.",
    stages=STAGES,
    is_slow=True,
)
def draw_evolution(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of evolution.json."""
    if not (files := snapshots_beside(inspection.checkpoint)):
        raise NotDrawn("it needs a run of train.py --snapshots 1 2 5 10 20 40")
    if (count := len(inspection.searched)) < IMAGES_PER_CHANNEL:
        raise NotDrawn(f"it needs {IMAGES_PER_CHANNEL} test images or more: {count} are searched")
    channels = {stage: channels_to_compare(inspection, settings, stage) for stage in STAGES}
    channels = {stage: compared for stage, compared in channels.items() if compared}
    if not channels:
        raise NotDrawn("all channels are zero at all units searched")
    try:
        snapshots = list(evolution(inspection, settings, files, channels))
    except CheckpointError as error:
        raise NotDrawn(str(error)) from error
    content = json_content(snapshots, channels, count)
    tiles = {stage: crop_tiles(inspection, snapshots, stage) for stage in channels}
    note = f"{settings.main_rule}{unpooling_note(settings.unpool)}"
    yield Path("evolution"), evolution_figure(content, tiles, note)
    yield Path("evolution"), content


def json_content(snapshots: Sequence[Snapshot], channels: dict[str, list[int]], images_searched: int) -> dict:
    """What evolution.json holds."""
    stages = {
        stage: {
            "channel": compared[0],
            "images": [snapshot.units[stage].images[0].item() for snapshot in snapshots],
            "activations": [snapshot.units[stage].scores[0].item() for snapshot in snapshots],
            "shares": [snapshot.shares[stage] for snapshot in snapshots],
            "correlations": [snapshot.correlation[stage] for snapshot in snapshots],
            "channels": compared,
        }
        for stage, compared in channels.items()
    }
    return {
        "epochs": [snapshot.epoch for snapshot in snapshots],
        "image_sizes": [snapshot.image_size for snapshot in snapshots],
        "images_searched": images_searched,
        "chance": IMAGES_PER_CHANNEL / images_searched,
        "stages": stages,
    }


def channels_to_compare(inspection: Inspection, settings: Settings, stage: str) -> list[int]:
    """Living channels of a stage: those asked for, if it has them, or else the strongest different ones."""
    chosen = chosen_channels(settings, inspection.search, stage, COMPARED_CHANNELS)
    return split_dead_channels(inspection.search.top[stage], chosen)[0][:COMPARED_CHANNELS]


def crop_tiles(inspection: Inspection, snapshots: Sequence[Snapshot], stage: str) -> list[np.ndarray]:
    """The stage's picture in each snapshot, (s, s, 3) in 0..1 around grey, and the last one's part of the image.

    Cropped to squares of one side, in pixels of each network's input.
    """
    shared_side = max(crop_boxes([snapshot.pictures[stage]])[0] for snapshot in snapshots)
    tiles = []
    for snapshot in snapshots:
        pictures, side = snapshot.pictures[stage], min(shared_side, snapshot.image_size)
        corners = [corner_inside(center, side, pictures.shape[2:]) for center in energy_centers(pictures)]
        tiles.append(diverging_tiles(crop(pictures, side, corners))[0])
    image = inspection.resized(inspection.images[snapshots[-1].units[stage].images])
    return [*tiles, to_array(crop(image, side, corners))[0]]


@styled
def evolution_figure(content: dict, tiles: dict[str, list[np.ndarray]], note: str) -> Figure:
    """A row per stage, a column per epoch, and the last image; below, by stage and epoch, how much is settled.

    content  of evolution.json
    tiles    stage -> `crop_tiles`
    """
    columns = columns_shown(len(content["epochs"]))
    tile_inches = 6.2 / (max(len(columns), MIN_COLUMNS) + 1)
    tiles_inches = tile_inches * 1.25 * len(tiles) + 0.3
    figure = Figure((WIDTH_INCHES, tiles_inches + 2.8), layout="constrained")
    axes = figure.subplot_mosaic([["tiles"] * 2, ["shares", "correlations"]], height_ratios=(tiles_inches, 2))
    draw_tiles(axes["tiles"], content, tiles, columns)
    axes["shares"].set_title(f"Share of a channel's final {IMAGES_PER_CHANNEL} images", loc="left")
    axes["correlations"].set_title("Correlation with the final picture", loc="left")
    for measure in ("shares", "correlations"):
        draw_curves(axes[measure], content, measure)
    chance = axes["shares"].axhline(content["chance"], color="0.5", linestyle="--", linewidth=0.8, label="chance")
    handles = [*axes["shares"].lines[: len(tiles)], chance]
    axes["correlations"].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=1.2
    )
    resized = " Dotted: the image size changes." if len(set(content["image_sizes"])) > 1 else ""
    heading(
        figure,
        "What one channel of each stage responds to, by epoch",
        f"Pictures: {note}, the strongest unit in {content['images_searched']:,} test images; own scale each, grey: "
        "zero. Numbers: its image, red where it has changed since the snapshot before.",
        "Left: mean over all living channels; chance: nine images at random. Right: the same units of the same images "
        f"at each epoch, mean over up to {COMPARED_CHANNELS} channels.{resized}",
    )
    return figure


def columns_shown(count: int) -> list[int]:
    """Which of `count` snapshots have a column: all, or MAX_COLUMNS of them, evenly spread, with first and last."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, MAX_COLUMNS))})


def draw_tiles(axes: Axes, content: dict, tiles: dict[str, list[np.ndarray]], columns: list[int]) -> None:
    """The tiles of these snapshots and the last image, a row per stage, each above its image's number."""
    for row, (stage, pictures) in enumerate(tiles.items()):
        top, images = 1.25 * row, content["stages"][stage]["images"]
        for column, n in enumerate([*columns, -1]):
            axes.imshow(pictures[n], interpolation="antialiased", extent=(column, column + 0.95, top + 0.95, top))
        for column, n in enumerate(columns):
            color = ERROR_COLOR if n > 0 and images[n] != images[n - 1] else "black"
            axes.text(column + 0.475, top + 1, images[n], ha="center", va="top", color=color)
    epochs = ["now" if epoch is None else f"epoch {epoch}" for epoch in content["epochs"]]
    headings = [f"{epochs[n]}\n{content['image_sizes'][n]} px" for n in columns]
    labels = [f"{stage}\nchannel {entry['channel']}" for stage, entry in content["stages"].items()]
    axes.set_xticks(np.arange(len(columns) + 1) + 0.475, [*headings, "last image"])
    axes.set_yticks(1.25 * np.arange(len(tiles)) + 0.475, labels)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(0, max(len(columns), MIN_COLUMNS) + 1), ylim=(1.25 * len(tiles), 0))


def draw_curves(axes: Axes, content: dict, measure: str) -> None:
    """The "shares" of the final images or the "correlations" with the final pictures, by stage and epoch."""
    epochs, sizes = epochs_of(content["epochs"]), content["image_sizes"]
    for stage, entry in content["stages"].items():
        axes.plot(epochs, entry[measure], "o-", color=COLORS[stage], markersize=2.5, linewidth=1.2, label=stage)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(pad=2)
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_xlabel("epoch", labelpad=1)
    for n in range(1, len(sizes)):
        if sizes[n] != sizes[n - 1]:  # a line between epochs of different image size
            axes.axvline((epochs[n - 1] + epochs[n]) / 2, color="0.4", linestyle=":", linewidth=1)


def epochs_of(epochs: Sequence[int | None]) -> list[int]:
    """The epochs as numbers; an unknown last one follows the one before."""
    known = [epoch for epoch in epochs if epoch is not None]
    return known + [max(known, default=0) + 1] * (len(epochs) - len(known))
