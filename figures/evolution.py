"""A few channels' strongest reconstructions over the epochs (Zeiler & Fergus 2014, figure 4)."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from analysis.evolution import evolution, snapshots_beside
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.comparison import comparison_figure, select_units, tile_limits
from figures.entry import NotDrawn
from figures.image_grid import to_array
from figures.style import unpooling_note


def draw_evolution(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """One row per channel, one column per epoch whose weights were kept."""
    if not (snapshots := snapshots_beside(inspection.checkpoint)):
        raise NotDrawn("it needs a run of train.py --snapshots 1 2 5 10 20 40")
    units = select_units(inspection, settings)
    columns, captions = {}, {}
    for epoch in evolution(inspection, settings, snapshots, units):
        columns[epoch.name] = epoch.pictures
        found = zip(epoch.units.images.tolist(), epoch.units.scores.tolist(), strict=True)
        captions[epoch.name] = [f"image {image}\n{score:.2f}" for image, score in found]
    searched = f"{len(inspection.searched):,} test images"
    note = unpooling_note(settings.unpool)
    title = (
        f"{units.stage}, {settings.rules[0]}{note}: strongest unit of each channel in {searched}, by epoch",
        "below: image and activation; own scale per tile; left: the last epoch's image",
    )
    shown = to_array(inspection.resized(inspection.images[units.images]))
    rows = [f"channel {channel}" for channel in units.channels]
    yield Path("evolution"), comparison_figure(shown, columns, rows, captions, title, tile_limits(columns))
