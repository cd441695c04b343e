"""The exact mirror beside one with a known mistake: where pooling windows share a switch, unpooling overwrites."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.channels import reconstruct_units
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_unpooling
from analysis.settings import Settings
from figures.comparison import (
    GREY,
    comparison_figure,
    crop_rows,
    relative_norms,
    row_captions,
    scale_captions,
    select_units_above_pooling,
    tile_limits,
)
from figures.style import format_number


def draw_unpooling(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The same units by unpooling that sums and that overwrites, and the difference, with its norm."""
    units = select_units_above_pooling(inspection, settings)
    rule = settings.rules[0]
    pictures = reconstruct_units(inspection, mirrors_by_unpooling(inspection.network, rule), units)
    pictures["difference"] = pictures["overwrite"] - pictures["sum"]
    errors = relative_norms(pictures["difference"], pictures["sum"])
    patches, columns = crop_rows(inspection, units, pictures)
    limits = dict.fromkeys(columns, tile_limits(columns)["sum"])  # one scale per row
    captions = scale_captions(limits)
    captions["difference"] = [f"error {format_number(error, '.0%')}" for error in errors]
    known = [error for error in errors if error is not None]
    mean = format_number(np.mean(known) if known else None, ".0%")
    title = (
        f"{units.stage}, {rule}: unpooling by sum (exact) and by F.max_unpool2d (overwrite)",
        f"mean relative error {mean}; one scale per row; {GREY}",
    )
    yield Path("unpooling"), comparison_figure(patches, columns, row_captions(units), captions, title, limits)
