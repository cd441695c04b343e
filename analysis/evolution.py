"""How what a channel responds to changes during training (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from analysis.activations import search
from analysis.channels import StrongestUnits, reconstruct_units, strongest_units
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from runtime import checkpoint


@dataclass(frozen=True)
class Epoch:
    """The channels after one epoch: its name, their strongest units, and the pictures (n, 3, S, S) of these."""

    name: str
    units: StrongestUnits
    pictures: Tensor


def snapshots_beside(path: Path) -> dict[int, Path]:
    """epoch -> snapshot of the run that a checkpoint belongs to; empty if it is not a run's model.pt or last.pt."""
    return checkpoint.snapshots(path.parent if path.name in ("model.pt", "last.pt") else path)


def evolution(
    inspection: Inspection, settings: Settings, snapshots: dict[int, Path], units: StrongestUnits
) -> Iterator[Epoch]:
    """The channels of `units` at each snapshot, which is searched by itself, and last in the inspection's network."""
    last = inspection.metadata.result.get("epoch")  # of a finished run
    for epoch, file in snapshots.items():
        if epoch == last:
            continue
        network = checkpoint.load_network(file)[0].to(inspection.device, memory_format=torch.channels_last)
        batches, stage = inspection.batches(settings.batch_size), units.stage
        inside = searched_units(network, [stage], inspection.metadata.image_size, settings.border)
        top = search(network, batches, [stage], k=1, inside=inside).top[stage]
        found = strongest_units(inspection, units.stage, units.channels, top)
        yield _draw(f"epoch {epoch}", replace(inspection, network=network), settings, found)
    yield _draw(f"epoch {last}" if last else "now", inspection, settings, units)


def _draw(name: str, inspection: Inspection, settings: Settings, units: StrongestUnits) -> Epoch:
    mirrors = mirrors_by_rule(inspection.network, settings.rules[:1], settings.unpool)
    (pictures,) = reconstruct_units(inspection, mirrors, units).values()
    return Epoch(name, units, pictures)
