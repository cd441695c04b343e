"""report.html: settings, results and every figure of a run on one page, in the order of a course report.

The page needs no server, no script and no network: its pictures are the files beside it, so the folder can be moved.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from PIL import Image

from analysis.inspection import Inspection
from figures import FIGURES
from figures.registry import SECTIONS, Outcome
from figures.report_details import (
    accuracies,
    accuracy_by_class,
    dead_channels,
    drawing_details,
    percent,
    plural,
    table,
    training_details,
)
from runtime.checkpoint import Metadata, atomic_file

PAGE = Path(__file__).with_suffix(".html")
PRINTED_INCHES = (7.0, 8.0)  # what an A4 page has room for beside margins, a heading and a caption
PARTS_SHOWN = 24  # of a figure's files; the others are listed


def write_report(
    folder: Path, inspection: Inspection, outcomes: Mapping[str, Outcome], summary: dict | None, command: str
) -> Path:
    """Write report.html.

    folder    where the figures are
    outcomes  of every figure of the registry, by name
    summary   content of summary.json, if the test images were searched
    command   that drew the figures
    """
    names = [name for section in SECTIONS for name in FIGURES if FIGURES[name].section == section]
    drawn = [name for name in names if outcomes[name].files]
    numbers = {name: n for n, name in enumerate(drawn, 1)}
    sections = {section: "" for section in SECTIONS}
    for name in drawn:
        sections[FIGURES[name].section] += show_figure(folder, name, numbers[name], outcomes[name])
    for section in SECTIONS:
        missing = {name: outcomes[name].reason for name in names if FIGURES[name].section == section}
        sections[section] += list_missing(missing)
    metadata = inspection.metadata
    single = [(name, file) for name in drawn for file in outcomes[name].files if is_single_channel(file)]
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        sections,
        title=escape(f"ResNet-18 on {Path(metadata.config.get('data', inspection.source)).name}"),
        lead=escape(headline(metadata, summary, len(drawn))),
        training=table(training_details(metadata)),
        drawing=table(drawing_details(inspection, command)),
        accuracy=table(accuracies(metadata, summary), ("", "loss", "accuracy")),
        classes=accuracy_by_class(summary),
        dead=escape(dead_channels(summary)),
        appendix=show_single_channels(folder, numbers, single),
    )
    with atomic_file(folder / "report.html") as file:
        file.write(text.encode(errors="replace"))  # a file name need not be valid text
    return folder / "report.html"


def headline(metadata: Metadata, summary: dict | None, figures: int) -> str:
    """The most important numbers in two sentences."""
    result = metadata.result
    if "test_accuracy" in result:
        first = f"Test accuracy {percent(result['test_accuracy'])} after {plural(result['epoch'], 'epoch')}."
    else:
        first = "The training is not finished." if metadata.history else "The checkpoint holds no result of a training."
    searched = f", drawn from {summary['images_searched']:,} test images" if summary else ""
    return f"{first} {plural(figures, 'figure')}{searched}."


def show_figure(folder: Path, name: str, number: int, outcome: Outcome) -> str:
    """A figure's pictures, one below the other; the first has the registry's sentence and the JSON file's numbers."""
    entry, files = FIGURES[name], [file for file in outcome.files if not is_single_channel(file)]
    text = []
    for part, file in enumerate(files[:PARTS_SHOWN], 1):
        label = f"Figure {number}.{part}" if len(files) > 1 else f"Figure {number}"
        caption = f"<b>{label}. {escape(entry.title)}</b> ({file_link(file)})."
        caption += f" {escape(entry.reading)}" * (part == 1)
        text.append(show_picture(folder, file, f"{label}: {entry.title}, {file.stem}", caption))
    if others := files[PARTS_SHOWN:]:
        text.append(f"<p>{len(others)} more of figure {number}: {', '.join(map(file_link, others))}.</p>")
    words = entry.words(outcome.content) if entry.words and outcome.content is not None else ""
    return "".join(text) + f"<p>{escape(words)}</p>" * bool(words)


def is_single_channel(file: Path) -> bool:
    """Whether the picture shows one channel, large."""
    return "_channel_" in file.stem


def show_single_channels(folder: Path, numbers: Mapping[str, int], files: Sequence[tuple[str, Path]]) -> str:
    """The appendix: figures of single channels."""
    shown = (
        show_picture(
            folder,
            file,
            f"Figure A{n}: {file.stem}",
            f"<b>Figure A{n}.</b> {file_link(file)}, one channel of figure {numbers[name]}.",
        )
        for n, (name, file) in enumerate(files[:PARTS_SHOWN], 1)
    )
    others = [file_link(file) for _, file in files[PARTS_SHOWN:]]
    heading = "<h2 id=channels>Appendix: single channels</h2>\n" if files else ""
    return heading + "".join(shown) + (f"<p>{len(others)} more: {', '.join(others)}.</p>" if others else "")


def show_picture(folder: Path, file: Path, alt: str, caption: str) -> str:
    """A picture that links to its file, at the size it was drawn for or, if that is larger, as large as A4 allows."""
    with Image.open(folder / file) as picture:
        inches = [pixels / dpi for pixels, dpi in zip(picture.size, picture.info.get("dpi", (300, 300)), strict=True)]
    scale = min(1, *(most / size for most, size in zip(PRINTED_INCHES, inches, strict=True)))
    width, height = (round(96 * scale * size) for size in inches)  # pixels of CSS
    link = url(file)
    return (
        f'<figure><a href="{link}"><img src="{link}" width={width} height={height} alt="{escape(alt)}"></a>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def list_missing(reasons: Mapping[str, str]) -> str:
    """The figures that were not drawn, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(f"{FIGURES[name].title} ({name})")
    items = (f"<li>{escape(', '.join(each))}: {escape(reason)}." for reason, each in names.items() if reason)
    text = "".join(items)
    return f"<p>Not drawn:</p><ul>{text}</ul>" if text else ""


def file_link(file: Path) -> str:
    """The file's name, linked."""
    return f'<a href="{url(file)}">{escape(file.as_posix())}</a>'


def url(file: Path) -> str:
    """A path below the page's folder as a relative URL."""
    return quote(os.fsencode(file.as_posix()))
