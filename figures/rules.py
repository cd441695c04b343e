"""The same units under three ReLU rules, and through single branches of the residual blocks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.channels import reconstruct_units
from analysis.crops import crop, crop_boxes, ratios
from analysis.inspection import Inspection
from analysis.reconstruction import ALL_RULES, mirrors_by_rule
from analysis.settings import Settings
from figures import comparison, style
from figures.registry import register
from reverse_network import BRANCHES, ReverseResNet18


@register(
    "rules",
    "The same units under three ReLU rules",
    "The columns differ only in how the backward signal passes a ReLU; where they agree, the picture does not "
    "depend on that choice.",
    section="belief",
)
def draw_rules(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The same units under all three rules."""
    units = comparison.select_units_above_pooling(inspection, settings)
    mirrors = mirrors_by_rule(inspection.network, ALL_RULES, settings.unpool)
    patches, columns = comparison.crop_rows(inspection, units, reconstruct_units(inspection, mirrors, units))
    title = (
        f"Strongest units of {units.stage} under three ReLU rules{style.unpooling_note(settings.unpool)}",
        "Each tile has its own scale, given below it. Grey is zero.",
    )
    captions = comparison.row_captions(units), comparison.scale_captions(columns)
    yield Path("rules"), comparison.comparison_figure(patches, columns, *captions, title)


@register(
    "branches",
    "Residual and shortcut branches",
    "The percentages say how much of a picture's norm came through the convolutions alone and through the shortcuts "
    "alone; the rest took mixed paths.",
    section="belief",
)
def draw_branches(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The same units through both branches of every block, or one; then the content of branches.json."""
    units, rule = comparison.select_units_above_pooling(inspection, settings, 3), settings.main_rule
    mirrors = {name: ReverseResNet18(inspection.network, rule, settings.unpool, name) for name in BRANCHES}
    pictures = reconstruct_units(inspection, mirrors, units)
    side, corners = crop_boxes([pictures["shortcut"]])
    outer_side, outer_corners = crop_boxes(list(pictures.values()))
    patches, columns = comparison.crop_rows(inspection, units, pictures)
    captions = comparison.scale_captions(columns)
    norms = {name: whole.flatten(1).norm(dim=1) for name, whole in pictures.items()}
    shares = {name: ratios(norms[name], norms["both"]) for name in ("residual", "shortcut")}
    for name, of_norm in shares.items():
        texts = ["–" if share is None else style.format_percent(share, 1 if share else 0) for share in of_norm]
        captions[name] = [f"{scale}\n{text} of the norm" for scale, text in zip(captions[name], texts, strict=True)]
    columns[f"shortcut ×{outer_side / side:.0f}"] = crop(pictures["shortcut"], side, corners)
    note = style.unpooling_note(settings.unpool)
    title = (
        f"Strongest units of {units.stage} through both branches of every block, or one ({rule}{note})",
        "Grey is zero. Below a tile: its own scale, and its norm relative to both branches, which include mixed paths.",
        f"Last column: the frame in the shortcut's picture, {side} pixels wide, enlarged. Through shortcuts alone, a "
        "unit reaches a few pixels; under guided and gradient none if a ReLU on the way was off (zero).",
    )
    figure = comparison.comparison_figure(patches, columns, comparison.row_captions(units), captions, title)
    for n, (*_, shortcut, enlarged) in enumerate(np.reshape(figure.get_axes(), (len(patches), -1))):
        if norms["shortcut"][n] == 0:
            shortcut.text(0.5, 0.5, "zero", ha="center", va="center", transform=shortcut.transAxes, fontsize=7)
            enlarged.get_images()[0].set_visible(False)
        else:
            top, left = np.subtract(corners[n], outer_corners[n]) - 0.5
            shortcut.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="black", linewidth=0.5))
    yield Path("branches"), figure
    shown = {"channels": units.channels, "images": units.images.tolist()}
    yield Path("branches"), {"rule": rule, "stage": units.stage} | shown | shares
