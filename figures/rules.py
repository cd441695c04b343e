"""The same units under three ReLU rules, and through single branches of the residual blocks."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from analysis.channels import reconstruct_units
from analysis.crops import ratios
from analysis.inspection import Inspection
from analysis.reconstruction import ALL_RULES, mirrors_by_branches, mirrors_by_rule
from analysis.settings import Settings
from figures.comparison import (
    GREY,
    comparison_figure,
    crop_rows,
    row_captions,
    scale_captions,
    select_units_above_pooling,
)
from figures.registry import register
from figures.style import format_number, unpooling_note


@register(
    "rules",
    "The same units under three ReLU rules",
    "The columns differ only in how the backward signal passes a ReLU; where they agree, the picture does not "
    "depend on that choice.",
    section="belief",
)
def draw_rules(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The same units under all three rules."""
    units = select_units_above_pooling(inspection, settings)
    mirrors = mirrors_by_rule(inspection.network, ALL_RULES, settings.unpool)
    patches, columns = crop_rows(inspection, units, reconstruct_units(inspection, mirrors, units))
    title = (
        f"{units.stage}: the same unit under three ReLU rules{unpooling_note(settings.unpool)}",
        f"below: scale of each tile; {GREY}",
    )
    yield Path("rules"), comparison_figure(patches, columns, row_captions(units), scale_captions(columns), title)


@register(
    "branches",
    "Residual and shortcut branches",
    "The norms say how much of a picture came through the convolutions alone and through the shortcuts alone.",
    section="belief",
)
def draw_branches(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The same units through both branches of every block, through the residual alone, through the shortcut alone."""
    units = select_units_above_pooling(inspection, settings)
    rule = settings.rules[0]
    mirrors = mirrors_by_branches(inspection.network, rule, settings.unpool)
    pictures = reconstruct_units(inspection, mirrors, units)
    patches, columns = crop_rows(inspection, units, pictures)
    captions = scale_captions(columns)
    norms = {name: whole.flatten(1).norm(dim=1) for name, whole in pictures.items()}
    for name in ("residual", "shortcut"):
        captions[name] = [
            f"{scale}, norm {format_number(relative, '.2g')}"
            for scale, relative in zip(captions[name], ratios(norms[name], norms["both"]), strict=True)
        ]
    note = unpooling_note(settings.unpool)
    title = (
        f"{units.stage}, {rule}: the same unit through both branches of every block or one{note}",
        "below: scale of each tile; norm relative to both, which includes mixed paths",
        GREY,
    )
    yield Path("branches"), comparison_figure(patches, columns, row_captions(units), captions, title)
