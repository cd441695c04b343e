"""The image files of a folder, PATH/train/<class>/* and PATH/test/<class>/*, and how each of them is read."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> accepted folder names
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NEEDS = f"it needs train/<class>/* and test/<class>/* with {', '.join(sorted(SUFFIXES))} files"


class DataError(ValueError):
    """A data set cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Listing:
    """The image files of a split, ordered by class, then by name with numbers by value.

    folder   that holds the classes' folders
    classes  their names, sorted
    files    (name below `folder`, size in bytes, modification time in ns) of each
    labels   the class of each, a number into `classes`
    """

    folder: Path
    classes: tuple[str, ...]
    files: list[tuple[str, int, int]]
    labels: list[int]

    @property
    def names(self) -> list[str]:
        """The files' names below `folder`."""
        return [name for name, _, _ in self.files]


def read_image(path: str | Path, size: int) -> Tensor:
    """An image file as (3, size, size) uint8 RGB: the shorter side resized to `size`, then centre-cropped.

    The EXIF orientation is applied; transparency is blended with white. Raises DataError, which names the file, if
    it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits per pixel: convert() would clip at 255
                image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """The error for a file that is no image."""
    return DataError(f"{path} cannot be read as an image ({error}): replace or remove it")


def list_files(path: Path, split: str) -> list[Path]:
    """The image files of a split, in the order of `list_split`."""
    listing = list_split(path, split)
    return [listing.folder / name for name in listing.names]


def list_split(path: Path, split: str) -> Listing:
    """The image files of a split. Raises DataError if the folder lacks a split, classes or images."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: {NEEDS}")
    folders = {name: [path / alias for alias in SPLITS[name] if (path / alias).is_dir()] for name in SPLITS}
    if not folders[split]:
        raise DataError(f"{path} has no folder {' or '.join(SPLITS[split])}: {NEEDS}")
    classes = {name: _subfolders(found[0]) for name, found in folders.items() if found}
    folder = folders[split][0]
    if len(classes[split]) < 2:
        raise DataError(f"{folder} has {len(classes[split])} class folders, at least two are needed: {NEEDS}")
    if len(set(map(tuple, classes.values()))) > 1:
        only = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{path}: train and test have different classes, {', '.join(only)} in only one of them")
    files, labels = [], []
    for label, name in enumerate(classes[split]):
        found = sorted(_images(folder / name), key=lambda file: _natural_key(file[0]))
        if not found:
            raise DataError(f"{folder / name} has no images: add some, or remove the folder; {NEEDS}")
        files += [(f"{name}/{file}", size, time) for file, size, time in found]
        labels += [label] * len(found)
    return Listing(folder, tuple(classes[split]), files, labels)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size in bytes and modification time in ns of the image files in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
                try:
                    status = entry.stat()
                except OSError as error:  # a link to nothing
                    raise unreadable(entry.path, error) from error
                yield entry.name, status.st_size, status.st_mtime_ns


def _natural_key(name: str) -> tuple:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
