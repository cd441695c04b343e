"""The image files of a folder, PATH/train/<class>/* and PATH/test/<class>/*, and how each of them is read."""

import os
import re
import stat
from collections import Counter
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
    """The image files of a split, ordered by class, then by name with numbers by value.

    folder   that holds the classes' folders
    classes  their names, sorted by folder
    files    (name below `folder`, size in bytes, modification time in ns) of each
    labels   the class of each, a number into `classes`
    ignored  what else lies there: suffix, "folders" or "other files" -> count
    """

    folder: Path
    classes: tuple[str, ...]
    files: list[tuple[str, int, int]]
    labels: list[int]
    ignored: Counter[str] = field(compare=False)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name, _, _ in self.files]


def read_image(path: str | Path, size: int) -> Tensor:
    """An image file as (3, size, size) uint8 RGB: the shorter side resized to `size`, then centre-cropped.

    The EXIF orientation is applied; transparency is blended with white. 16-bit grey whose values are all below 4096
    is taken for 12-bit. Raises DataError, which names the file, if it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                raise ValueError("floating-point pixels: save it with 8 or 16 bits")
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
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """The error for a file that is no image."""
    return DataError(f"{path} cannot be read as an image ({error}): replace or remove it")


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
    names = tuple(map(one_line, classes[split]))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{folder} has two folders that read {twice[0]!r}: rename one")
    files, labels = [], []
    ignored = Counter(_kind(entry) for entry in _visible(folder) if not entry.is_dir())
    for label, name in enumerate(classes[split]):
        entries = _visible(folder / name)
        images = [entry for entry in entries if _is_image(entry)]
        ignored.update(_kind(entry) for entry in set(entries) - set(images))
        if not images:
            raise DataError(f"{folder / name} has no images: add some, or remove the folder; {NEEDS}")
        for entry in sorted(images, key=lambda entry: _natural_key(entry.name)):
            files.append((f"{name}/{entry.name}", entry.stat().st_size, entry.stat().st_mtime_ns))
            labels.append(label)
    return Listing(folder, names, files, labels, ignored)


def _visible(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, sorted by name, except for hidden entries."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry) -> bool:
    """Whether it is a file with the suffix of an image. Raises DataError for a link to nothing."""
    try:
        return _suffix(entry) in SUFFIXES and stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        raise unreadable(entry.path, error) from error


def _suffix(entry: os.DirEntry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _kind(entry: os.DirEntry) -> str:
    return "folders" if entry.is_dir() else _suffix(entry) or "other files"


def describe_ignored(listing: Listing) -> str:
    """One line on what was left out; "" if nothing was."""
    if not listing.ignored:
        return ""
    counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(listing.ignored.items()))
    return f"note: {listing.folder}: left out {counts}; images are {', '.join(sorted(SUFFIXES))} in a class's folder"


def _natural_key(name: str) -> tuple:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
