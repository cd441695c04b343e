"""report.html: settings, results and every figure of a run on one page, in the order of a course report.

The page needs no server, no script and no network: its pictures are the files beside it, so the folder can be moved.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from analysis.inspection import LoadedNetwork
from figures import FIGURES
from figures.output import output_file
from figures.registry import SECTIONS, Outcome
from figures.report_details import accuracies, drawing_details, headline, lowest_classes, training_details
from figures.style import html_template
from network import CHANNELS
from runtime.checkpoint import Metadata

PAGE = html_template(Path(__file__).with_suffix(".html"))
PRINTED_INCHES = (7.0, 8.0)  # what an A4 page has room for beside margins, a heading and a caption
PARTS_SHOWN = 24  # of a figure's files; the others are listed
FIRST_SHOWN = ("hierarchy", "top9", "filters")  # the first of these that is drawn is on the first screen


def write_report(
    folder: Path, inspection: LoadedNetwork, outcomes: Mapping[str, Outcome], summary: dict | None, command: str
) -> Path:
    """Write report.html.

    folder    where the figures are
    outcomes  of every figure of the registry, by name
    summary   content of summary.json, if the test images were searched
    command   that drew the figures
    """
    drawn = [name for section in SECTIONS for name in names_of(section) if outcomes[name].files]
    figures = {name: figure_content(folder, name, number, outcomes[name]) for number, name in enumerate(drawn, 1)}
    metadata = inspection.metadata
    first = next((figures[name] for name in FIRST_SHOWN if name in figures and figures[name]["pictures"]), None)
    text = PAGE.render(
        title=f"ResNet-18 on {Path(metadata.config.get('data', inspection.source)).name}",
        lead=headline(metadata, summary, len(drawn)),
        accuracy=first_accuracy(metadata, summary),
        first=first,
        training=training_details(metadata),
        drawing=drawing_details(inspection, command),
        accuracies=list(accuracies(metadata, summary)),
        summary=summary,
        classes=lowest_classes(summary),
        channels=CHANNELS,
        figures={section: [figures[name] for name in names_of(section) if name in figures] for section in SECTIONS},
        missing={section: missing_figures(section, outcomes) for section in SECTIONS},
        single=[
            (figures[name]["number"], picture)
            for name in drawn
            for picture in pictures_of(folder, [file for file in outcomes[name].files if is_single_channel(file)])
        ],
        parts_shown=PARTS_SHOWN,
    )
    with output_file(folder / "report.html") as file:
        file.write(text.encode(errors="replace"))  # a file name need not be valid text
    return folder / "report.html"


def first_accuracy(metadata: Metadata, summary: dict | None) -> tuple[float, str] | None:
    """The accuracy to show first, in 0..1, and on what: of the training's last test, else of the images searched."""
    rows = [(share, name) for name, _, share in accuracies(metadata, summary) if not name.startswith("training images")]
    return rows[0] if rows else None


def names_of(section: str) -> list[str]:
    """The registry's figures of a section."""
    return [name for name, entry in FIGURES.items() if entry.section == section]


def figure_content(folder: Path, name: str, number: int, outcome: Outcome) -> dict[str, Any]:
    """What the page shows of a figure: title, sentence on how to read it, pictures, numbers of its JSON file."""
    entry = FIGURES[name]
    return {
        "number": number,
        "title": entry.title,
        "reading": entry.reading,
        "pictures": pictures_of(folder, [file for file in outcome.files if not is_single_channel(file)]),
        "words": entry.words(outcome.content) if entry.words and outcome.content is not None else "",
    }


def is_single_channel(file: Path) -> bool:
    """Whether the picture shows one channel, large: such pictures are an appendix."""
    return "_channel_" in file.stem


def pictures_of(folder: Path, files: list[Path]) -> list[dict[str, Any]]:
    """Name and URL of each picture, and its width and height in pixels of CSS, at most as large as A4 allows."""
    pictures = []
    for file in files:
        with Image.open(folder / file) as picture:
            dpi = picture.info.get("dpi", (300, 300))
            inches = [pixels / per_inch for pixels, per_inch in zip(picture.size, dpi, strict=True)]
        scale = min(1, *(most / size for most, size in zip(PRINTED_INCHES, inches, strict=True)))
        size = [round(96 * scale * length) for length in inches]
        url = quote(os.fsencode(file.as_posix()))
        pictures.append({"name": file.as_posix(), "stem": file.stem, "url": url, "size": size})
    return pictures


def missing_figures(section: str, outcomes: Mapping[str, Outcome]) -> dict[str, list[str]]:
    """The figures of a section that were not drawn: reason -> titles with names."""
    reasons: dict[str, list[str]] = {}
    for name in names_of(section):
        if reason := outcomes[name].reason:
            reasons.setdefault(reason, []).append(f"{FIGURES[name].title} ({name})")
    return reasons
