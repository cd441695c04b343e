"""The registry of figures: name -> how it is drawn, what it is, and how to read it; which of them a run draws."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.inspection import Inspection
from analysis.settings import Settings

# of report.html, in its order: scores, training curves, filters, feature maps, reconstructions, what to believe
SECTIONS = ("results", "curves", "filters", "maps", "reconstructions", "belief")
SLOW = "it can take minutes on a CPU and is drawn only when --figures names it"


class NotDrawn(Exception):
    """A figure that does not apply to this network or these images; the message says what it needs."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure of the registry. Its `draw` may raise NotDrawn.

    It needs the "checkpoint" alone, the "pictures" to explain, a "search" of the test images, "both" of these, or
    "either": the user's pictures, or else both.
    """

    draw: Callable[[Inspection, Settings], Iterator[tuple[Path, Figure | Any]]]  # file without suffix; figure or JSON
    title: str  # what the figure is, in a few words
    reading: str  # one sentence on how to read it
    needs: str = "search"
    stages: tuple[str, ...] = ()  # to be searched beside those of the settings
    section: str = "reconstructions"  # one of SECTIONS: where the report shows it
    passes: int = 250  # its cost beside the search, roughly, in forward passes of one image, for the forecast
    is_slow: bool = False  # 30 s or more on two cores at 224x224, beside the search: drawn only if asked for by name


FIGURES: dict[str, FigureEntry] = {}  # filled by `import figures`, in the order of its imports


def register(name: str, title: str, reading: str, **fields: Any) -> Callable[[Callable], Callable]:
    """A decorator that registers a drawing function under this name; fields: the others of `FigureEntry`."""

    def add(draw: Callable) -> Callable:
        FIGURES[name] = FigureEntry(draw, title, reading, **fields)
        return draw

    return add


@dataclass(frozen=True)
class Outcome:
    """What became of a figure."""

    files: tuple[Path, ...] = ()  # pictures and JSON files in the order they were written, below the output folder
    reason: str = ""  # why it was not drawn, or not all of it
    failed: bool = False  # the reason is an error


def choose_figures(
    asked: Sequence[str] | None, has_own_pictures: bool, has_gallery: bool
) -> tuple[list[str], dict[str, str]]:
    """The names of the figures to draw, and for every other one the reason why it is not.

    By default all are drawn, except the slow ones, and those that search the test images if the pictures are the
    user's own. Those that explain these pictures are drawn if the gallery searches the test images anyway.
    """
    if asked:
        return list(dict.fromkeys(asked)), {name: "not asked for" for name in FIGURES if name not in asked}
    skipped = () if not has_own_pictures else ("search",) if has_gallery else ("search", "both")
    left_out = {
        name: SLOW if entry.is_slow else "with --images, the test images are searched only for what --figures names"
        for name, entry in FIGURES.items()
        if entry.is_slow or entry.needs in skipped
    }
    return [name for name in FIGURES if name not in left_out], left_out


def needs_of(names: Iterable[str], has_own_pictures: bool) -> set[str]:
    """What these figures need: "checkpoint", "pictures", "search"."""
    needs = {FIGURES[name].needs for name in names}
    either = {"pictures"} if has_own_pictures else {"pictures", "search"}
    return needs | ({"pictures", "search"} if "both" in needs else either if "either" in needs else set())
