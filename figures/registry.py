"""The registry of figures: name -> how it is drawn, what it is, and how to read it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.inspection import Inspection
from analysis.settings import Settings

# of report.html, in its order: scores, training curves, filters, feature maps, reconstructions, what to believe
SECTIONS = ("results", "curves", "filters", "maps", "reconstructions", "belief")


class NotDrawn(Exception):
    """A figure that does not apply to this network or these images; the message says what it needs."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure of the registry.

    draw     yields (path below the output folder without suffix, Figure or content of a JSON file); may raise NotDrawn
    title    what the figure is, in a few words
    reading  one sentence on how to read it
    needs    "checkpoint" alone, the "pictures" to explain, a "search" of the test images, or "both" of these
    stages   to be searched beside those of the settings
    section  one of SECTIONS: where the report shows it
    words    content of its JSON file -> a sentence with its main numbers, for the report
    is_slow  whether it takes 30 s or more on two cores at 224x224, beside the search: drawn only when asked for by name
    """

    draw: Callable[[Inspection, Settings], Iterator[tuple[Path, Figure | Any]]]
    title: str
    reading: str
    needs: str = "search"
    stages: tuple[str, ...] = ()
    section: str = "reconstructions"
    words: Callable[[Any], str] | None = None
    is_slow: bool = False


FIGURES: dict[str, FigureEntry] = {}  # filled by `import figures`, in the order of its imports


def register(name: str, title: str, reading: str, **fields: Any) -> Callable[[Callable], Callable]:
    """A decorator that registers a drawing function under this name; fields: the others of `FigureEntry`."""

    def add(draw: Callable) -> Callable:
        FIGURES[name] = FigureEntry(draw, title, reading, **fields)
        return draw

    return add


@dataclass(frozen=True)
class Outcome:
    """What became of a figure.

    files    its pictures, in the order they were drawn: paths below the output folder
    content  of its JSON file, if it has one
    reason   why it was not drawn, if it was not
    """

    files: tuple[Path, ...] = ()
    content: Any = None
    reason: str = ""
