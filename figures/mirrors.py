"""The exact mirror beside mirrors with one mistake each, and by stage how far they are off."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.channels import StrongestUnits, reconstruct_units
from analysis.crops import crop, crop_boxes
from analysis.faulty_mirrors import EXACT, MISTAKES, Deviation, deviations, mirrors_by_mistake
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.comparison import row_captions, select_units, select_units_above_pooling
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, bare_axes_at, format_number, format_two_digits, styled, text_at
from network import STAGES

UNITS_SHOWN = 4  # and compared at every stage
# In inches: left of and above the tiles; columns; a tile; rows of tiles, of the table and of the notes
LEFT, TOP = 0.8, 0.9
COLUMN = (WIDTH_INCHES - LEFT - 0.02) / (2 + len(MISTAKES))
TILE = COLUMN - 0.05
TILE_ROW, TABLE_ROW, NOTE_ROW = TILE + 0.3, 0.14, 0.25
CENTERS = {name: LEFT + column * COLUMN + TILE / 2 for column, name in enumerate(MISTAKES, 2)}  # of the columns
NOTE = (
    "error: norm of the difference to the exact picture, relative to its norm; corr.: correlation with it\n"
    "own scale per tile, grey: zero"
)


@dataclass(frozen=True)
class MirrorsContent:
    """What the figure shows.

    units       of the deepest stage
    patches     (n, s, s, 3) in 0..1: their images
    columns     name of the mirror -> (n, s, s, 3) in 0..1, around grey
    deviations  stage -> name of the mirror -> deviation from the exact one, for units of this stage
    """

    rule: str
    units: StrongestUnits
    patches: np.ndarray
    columns: dict[str, np.ndarray]
    deviations: dict[str, dict[str, Deviation]]


@register(
    "mirrors",
    "The exact mirror beside faulty ones",
    "Each column has one mistake found in public code; the numbers say how far its pictures are from the exact "
    "ones, even where they look alike.",
    stages=STAGES,
    section="belief",
)
def draw_mirrors(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of mirrors.json."""
    shown = first_units(select_units_above_pooling(inspection, settings))
    rule = settings.main_rule
    mirrors = mirrors_by_mistake(inspection.network, rule)
    found, entries = {}, []
    for stage in (stage for stage in STAGES if stage in inspection.search.top):
        at_stage = replace(settings, stages=(stage,), channels="different")
        units = shown if stage == shown.stage else first_units(select_units(inspection, at_stage))
        pictures = reconstruct_units(inspection, mirrors, units)
        found[stage] = deviations(pictures)
        entries += unit_entries(units, found[stage])
        if stage == shown.stage:
            side, corners = crop_boxes([pictures[EXACT]])
            patches = to_array(crop(inspection.resized(inspection.images[shown.images]), side, corners))
            columns = {name: diverging_tiles(crop(each, side, corners)) for name, each in pictures.items()}
    yield Path("mirrors"), mirrors_figure(MirrorsContent(rule, shown, patches, columns, found))
    yield Path("mirrors"), json_content(rule, found, entries)


def first_units(units: StrongestUnits) -> StrongestUnits:
    """The first UNITS_SHOWN."""
    count = slice(UNITS_SHOWN)
    return StrongestUnits(
        units.stage, units.channels[count], units.images[count], units.positions[count], units.scores[count]
    )


def unit_entries(units: StrongestUnits, found: dict[str, Deviation]) -> list[dict]:
    """The units' part of mirrors.json."""
    return [
        {
            "stage": units.stage,
            "channel": channel,
            "image": image,
            "error": {name: each.error[n] for name, each in found.items()},
            "correlation": {name: each.correlation[n] for name, each in found.items()},
        }
        for n, (channel, image) in enumerate(zip(units.channels, units.images.tolist(), strict=True))
    ]


def json_content(rule: str, found: dict[str, dict[str, Deviation]], entries: list[dict]) -> dict:
    """The content of mirrors.json."""
    mistakes = {
        name: {
            "wrong": mistake.wrong,
            "visible": mistake.visible,
            "stages": {stage: by_name[name].medians() for stage, by_name in found.items()},
        }
        for name, mistake in MISTAKES.items()
    }
    return {"rule": rule, "mistakes": mistakes, "units": entries}


@styled
def mirrors_figure(content: MirrorsContent) -> Figure:
    """A row per unit, a column per mirror; below, each mirror's medians by stage; at last, what is wrong with each."""
    table = TOP + len(content.patches) * TILE_ROW + 0.08
    notes = table + (len(content.deviations) + 1) * TABLE_ROW + 0.08
    figure = Figure((WIDTH_INCHES, notes + len(MISTAKES) * NOTE_ROW + 0.02))
    stage = content.units.stage
    title = f"The same units of {stage} by the exact mirror, and by mirrors with one mistake each ({content.rule})"
    text_at(figure, WIDTH_INCHES / 2, 0.13, title, fontsize=8)
    text_at(figure, WIDTH_INCHES / 2, 0.33, NOTE, fontsize=7)
    draw_tiles(figure, content)
    draw_table(figure, table, content)
    for number, (name, mistake) in enumerate(MISTAKES.items()):
        y = notes + number * NOTE_ROW
        text_at(figure, 1.62, y, name, ha="right", va="top", weight="bold")
        text_at(figure, 1.7, y, f"{mistake.wrong}\n{mistake.visible}", ha="left", va="top", linespacing=1.1)
    return figure


def draw_tiles(figure: Figure, content: MirrorsContent) -> None:
    """The images, and the pictures by each mirror, with two numbers below each."""
    for column, name in enumerate(["image", *content.columns]):
        heading = textwrap.fill(name, 12)
        text_at(figure, LEFT + column * COLUMN + TILE / 2, TOP - 0.05, heading, va="bottom", fontsize=7)
    for row, caption in enumerate(row_captions(content.units)):
        top = TOP + row * TILE_ROW
        text_at(figure, LEFT - 0.05, top + TILE / 2, caption, ha="right")
        for column, tiles in enumerate((content.patches, *content.columns.values())):
            axes = bare_axes_at(figure, LEFT + column * COLUMN, top, TILE, TILE)
            axes.imshow(tiles[row], interpolation="antialiased")
        for name, x in CENTERS.items():
            deviation = content.deviations[content.units.stage][name]
            error, correlation = format_error(deviation.error[row]), format_two_digits(deviation.correlation[row])
            text_at(figure, x, top + TILE + 0.02, f"error {error}\ncorr. {correlation}", va="top")


def draw_table(figure: Figure, top: float, content: MirrorsContent) -> None:
    """Below each mirror's column, its medians by stage."""
    title = f"By stage, median over up to {UNITS_SHOWN} units: error / correlation"
    text_at(figure, LEFT, top, title, ha="left", fontsize=7, weight="bold")
    for row, (stage, by_name) in enumerate(content.deviations.items(), 1):
        text_at(figure, LEFT + COLUMN + TILE, top + row * TABLE_ROW, stage, ha="right")
        for name, x in CENTERS.items():
            medians = by_name[name].medians()
            text = f"{format_error(medians['error'])} / {format_two_digits(medians['correlation'])}"
            text_at(figure, x, top + row * TABLE_ROW, text)


def format_error(error: float | None) -> str:
    """0, 0.043, 0.43, 4.3, 43, 430, 4.3e+03; a dash for None."""
    if error is None or error < 0.1 or error >= 1000:
        return format_number(error, ".2g")
    return f"{error:.2f}" if error < 1 else f"{error:.1f}" if error < 10 else f"{error:.0f}"
