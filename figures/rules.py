"""The same units under three ReLU rules, and through single branches of the residual blocks."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.channels import reconstruct_units
from analysis.crops import crop, crop_boxes, ratios
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
from figures.style import format_percent, unpooling_note

BRANCH_ROWS = 3


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
        f"Strongest units of {units.stage} under three ReLU rules{unpooling_note(settings.unpool)}",
        f"Each tile has its own scale, given below it. {GREY}",
    )
    yield Path("rules"), comparison_figure(patches, columns, row_captions(units), scale_captions(columns), title)


@register(
    "branches",
    "Residual and shortcut branches",
    "The percentages say how much of a picture's norm came through the convolutions alone and through the shortcuts "
    "alone; the rest took mixed paths.",
    section="belief",
)
def draw_branches(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The same units through both branches of every block, through the residual alone, through the shortcut alone.

    The last column enlarges what the shortcut alone leaves: a few pixels of the picture beside it.
    """
    units = select_units_above_pooling(inspection, settings, BRANCH_ROWS)
    rule = settings.main_rule
    pictures = reconstruct_units(inspection, mirrors_by_branches(inspection.network, rule, settings.unpool), units)
    side, corners = crop_boxes([pictures["shortcut"]])
    outer_side, outer_corners = crop_boxes(list(pictures.values()))
    patches, columns = crop_rows(inspection, units, pictures)
    captions = scale_captions(columns)
    norms = {name: whole.flatten(1).norm(dim=1) for name, whole in pictures.items()}
    for name in ("residual", "shortcut"):
        shares = ratios(norms[name], norms["both"])
        texts = ["–" if share is None else format_percent(share, 1 if share else 0) for share in shares]
        captions[name] = [f"{scale}\n{text} of the norm" for scale, text in zip(captions[name], texts, strict=True)]
    enlarged = f"shortcut ×{outer_side / side:.0f}"
    columns[enlarged] = crop(pictures["shortcut"], side, corners)
    title = (
        f"Strongest units of {units.stage} through both branches of every block, or one ({rule}"
        f"{unpooling_note(settings.unpool)})",
        f"Below a tile: its own scale, and its norm relative to both branches, which include mixed paths. {GREY}",
        f"Last column: the frame in the shortcut's picture, {side} pixels wide, enlarged. Through shortcuts alone, a "
        "unit reaches a few pixels; under guided and gradient none if a ReLU on the way was off (zero).",
    )
    figure = comparison_figure(patches, columns, row_captions(units), captions, title)
    for row, axes in enumerate(figure.get_axes()[3 :: 1 + len(columns)]):
        if norms["shortcut"][row] == 0:
            axes.text(0.5, 0.5, "zero", ha="center", va="center", transform=axes.transAxes, fontsize=7)
            figure.get_axes()[4 + row * (1 + len(columns))].get_images()[0].set_visible(False)
            continue
        (top, left), (outer_top, outer_left) = corners[row], outer_corners[row]
        corner = left - outer_left - 0.5, top - outer_top - 0.5
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="black", linewidth=0.5))
    yield Path("branches"), figure
