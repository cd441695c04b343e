"""How what channels respond to changes during training (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.activations import SearchResult, search
from analysis.channels import StrongestUnits, reconstruct_units, strongest_units
from analysis.crops import correlations
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from runtime import checkpoint
from runtime.checkpoint import CheckpointError

IMAGES = 9


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


@dataclass(frozen=True)
class Final:
    """What snapshots are compared with: nine images per channel, and by stage some channels' units and pictures."""

    inspection: Inspection
    nine: dict[str, Tensor]
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
    units = {
        stage: strongest_units(inspection, stage, each, inspection.search.top[stage])
        for stage, each in channels.items()
    }
    nine = {stage: best_images(inspection.search.peaks[stage]) for stage in channels}
    pictures = {stage: draw_units(inspection, settings, each) for stage, each in units.items()}
    final = Final(inspection, nine, units, pictures)
    last = inspection.metadata.result.get("epoch")  # of a finished run
    for epoch, file in snapshots.items():
        if epoch != last:
            there = inspection_at(inspection, file)
            inside = searched_units(there.network, channels, there.metadata.image_size, settings.border)
            found = search(there.network, there.batches(settings.batch_size), channels, k=1, inside=inside)
            yield compare(epoch, replace(there, search=found), settings, final)
    yield compare(last or last_epoch(inspection), inspection, settings, final)


def inspection_at(inspection: Inspection, file: Path) -> Inspection:
    """The same images with the network, image size and normalisation of a snapshot. Raises CheckpointError."""
    network, metadata = checkpoint.load_network(file)
    if (count := network.fc.out_features) != (expected := inspection.network.fc.out_features):
        raise CheckpointError(f"{file} has {count} classes, {inspection.checkpoint} has {expected}: another run's?")
    network = network.to(inspection.device, memory_format=torch.channels_last)
    preprocess = Preprocess(metadata.image_size, metadata.mean, metadata.std, inspection.device)
    return replace(inspection, network=network, metadata=metadata, preprocess=preprocess)


def last_epoch(inspection: Inspection) -> int | None:
    """The epoch of the last line of the history."""
    return inspection.metadata.history[-1].get("epoch") if inspection.metadata.history else None


def compare(epoch: int | None, inspection: Inspection, settings: Settings, final: Final) -> Snapshot:
    """A searched network beside the final one."""
    found, size = inspection.search, final.inspection.metadata.image_size
    shares, correlation, units, pictures = {}, {}, {}, {}
    for stage, nine in final.nine.items():
        shares[stage] = mean_share(best_images(found.peaks[stage]), nine)
        drawn = draw_units(inspection, settings, same_units(final, stage, found))
        drawn = F.interpolate(drawn, (size, size), mode="bilinear") if drawn.shape[-1] != size else drawn
        alike = [value or 0.0 for value in correlations(drawn, final.pictures[stage])]
        correlation[stage] = sum(alike) / len(alike)
        units[stage] = strongest_units(inspection, stage, final.units[stage].channels[:1], found.top[stage])
        pictures[stage] = draw_units(inspection, settings, units[stage])
    return Snapshot(epoch, inspection.metadata.image_size, shares, correlation, units, pictures)


def draw_units(inspection: Inspection, settings: Settings, units: StrongestUnits) -> Tensor:
    """(n, 3, S, S): what each unit saw, by the main rule."""
    mirrors = mirrors_by_rule(inspection.network, [settings.main_rule], settings.unpool)
    (pictures,) = reconstruct_units(inspection, mirrors, units).values()
    return pictures


def same_units(final: Final, stage: str, found: SearchResult) -> StrongestUnits:
    """The final units of a stage, at the same places in the maps of another image size."""
    units = final.units[stage]
    (height, width), (rows, columns) = final.inspection.search.top[stage].map_size, found.top[stage].map_size
    row, column = units.positions // width, units.positions % width
    return replace(units, positions=row * rows // height * columns + column * columns // width)


def best_images(peaks: Tensor) -> Tensor:
    """Which of the images are the nine that excite each channel most: (N, C) bool. peaks: (N, C)."""
    best = peaks.sort(dim=0, descending=True, stable=True).indices[:IMAGES]
    return torch.zeros_like(peaks, dtype=torch.bool).scatter(0, best, True) & (peaks > 0)


def mean_share(earlier: Tensor, final: Tensor) -> float:
    """The mean share of each channel's final images that are among its earlier ones; (N, C) bool each.

    Over the channels that are excited in the end.
    """
    count = final.sum(0)
    return ((earlier & final).sum(0)[count > 0] / count[count > 0]).double().mean().item()
