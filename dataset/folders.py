"""The image files of a folder, PATH/train/<class>/* and PATH/test/<class>/*, and how each of them is read."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from runtime.checkpoint import one_line

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> accepted folder names
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NEEDS = f"it needs train/<class>/* and test/<class>/* with {', '.join(sorted(SUFFIXES))} files"


class DataError(ValueError):
    """A data set cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Listing:
    """The image files of a split, ordered by class, then by name with numbers by value."""

    folder: Path  # that holds the classes' folders
    classes: tuple[str, ...]  # their names, sorted by folder
    files: list[tuple[str, int, int]]  # name below `folder`, size in bytes, modification time in ns
    labels: list[int]  # the class of each, a number into `classes`
    ignored: Counter[str] = field(compare=False)  # what else lies there: suffix, "folders" or "other files" -> count

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name, _, _ in self.files]


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """The image in a file. Raises DataError, which names the file, if it cannot be opened or used within the block."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise DataError(f"{path} cannot be read as an image ({error}): replace or remove it") from error


def read_image(path: str | Path, size: int) -> Tensor:
    """An image file as (3, size, size) uint8 RGB: the shorter side resized to `size`, then centre-cropped.

    The EXIF orientation is applied; transparency is blended with white. 16-bit grey whose values are all below 4096
    is taken for 12-bit. Raises DataError, which names the file, if it cannot be decoded.
    """
    with open_image(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits per pixel: convert() would clip at 255
            deep = np.asarray(image).astype(np.int64)
            white = 4095 if deep.max() < 4096 else 65535
            image = Image.fromarray((deep * 255 // white).clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def list_split(path: Path, split: str) -> Listing:
    """The image files of a split. Raises DataError if the folder lacks a split, classes or images."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: {NEEDS}")
    folders = {name: path / alias for name in SPLITS for alias in SPLITS[name][::-1] if (path / alias).is_dir()}
    if split not in folders:
        raise DataError(f"{path} has no folder {' or '.join(SPLITS[split])}: {NEEDS}")
    classes = {name: [entry.name for entry in _visible(folder) if entry.is_dir()] for name, folder in folders.items()}
    folder = folders[split]
    if len(classes[split]) < 2:
        raise DataError(f"{folder} has {len(classes[split])} class folders, at least two are needed: {NEEDS}")
    if len(set(map(tuple, classes.values()))) > 1:
        only = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{path}: train and test have different classes, {', '.join(only)} in only one of them")
    files, labels = [], []
    ignored = Counter(map(_kind, (entry for entry in _visible(folder) if not entry.is_dir())))
    for label, name in enumerate(classes[split]):
        kinds = {entry: _kind(entry) for entry in _visible(folder / name)}
        images = [entry for entry, kind in kinds.items() if kind in SUFFIXES]
        ignored.update(kind for kind in kinds.values() if kind not in SUFFIXES)
        if not images:
            raise DataError(f"{folder / name} has no images: add some, or remove the folder; {NEEDS}")
        stats = ((entry.name, entry.stat()) for entry in sorted(images, key=_by_number))
        files += [(f"{name}/{file}", status.st_size, status.st_mtime_ns) for file, status in stats]
        labels += [label] * len(images)
    return Listing(folder, tuple(map(one_line, classes[split])), files, labels, ignored)


def _visible(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, sorted by name, except for hidden entries."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _kind(entry: os.DirEntry) -> str:
    return "folders" if entry.is_dir() else os.path.splitext(entry.name)[1].lower() or "other files"


def _by_number(entry: os.DirEntry) -> tuple:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", entry.name)  # in turn text and digits
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], entry.name


def describe_ignored(listing: Listing) -> str:
    """One line on what was left out; "" if nothing was."""
    if not listing.ignored:
        return ""
    counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(listing.ignored.items()))
    return f"note: {listing.folder}: left out {counts}; images are {', '.join(sorted(SUFFIXES))} in a class's folder"
