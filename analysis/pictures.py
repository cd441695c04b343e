"""Images to explain one by one: the user's files as pictures, and numbers spread over a data set."""

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dataset import folders


@dataclass(frozen=True)
class Picture:
    """One image to explain."""

    folder: str  # where its figures go, below the output folder; "" for the output folder itself
    title: str  # what it is, for captions
    image: Tensor  # (3, S, S) uint8
    label: str | None  # name of its class, if known
    origin: int | str  # its index in the test split, or the user's file
    choice: str = ""  # one sentence on how it was chosen, for captions; "" if the user chose it


def read_pictures(files: Sequence[str], image_size: int) -> list[Picture]:
    """The user's files, resized and centre-cropped; no two folder names are equal. Raises DataError for no image."""
    pictures, used = [], set()
    for file in map(Path, files):
        stem = file.stem.strip(".") or "image"
        names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        folder = next(name for name in names if _comparable(name) not in used)
        used.add(_comparable(folder))
        name = file.name.encode(errors="replace").decode()  # a file name need not be valid text
        title = f"{name}, resized and cropped to {image_size}x{image_size}"
        pictures.append(Picture(folder, title, folders.read_image(file, image_size), None, name))
    return pictures


def _comparable(name: str) -> str:
    """Equal for the names that Windows or macOS takes for one: in small or capital letters, accents composed or not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def spread(count: int, total: int) -> Tensor:
    """(count,) int64: numbers below `total`, ascending, one drawn by a seed from each of `count` equal parts.

    Even over a data set sorted by class, and over one whose classes alternate. `count` is at most `total`.
    """
    edges = torch.arange(count + 1) * total // count
    shares = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return edges[:-1] + (shares * edges.diff()).long()
