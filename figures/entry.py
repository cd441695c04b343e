"""What the registry knows of a figure, and how a figure says that it cannot be drawn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.inspection import Inspection
from analysis.settings import Settings


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
    """

    draw: Callable[[Inspection, Settings], Iterator[tuple[Path, Figure | Any]]]
    title: str
    reading: str
    needs: str = "search"
    stages: tuple[str, ...] = ()
