"""Folders of pictures, PATH/train/<class>/* and PATH/test/<class>/*, as uint8 tensors."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> names its folder may have
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NEEDS = f"it needs train/<class>/* and test/<class>/* with {', '.join(sorted(SUFFIXES))} files"


class DataError(ValueError):
    """A data set that cannot be used; the message says what to do."""


def load_folder(path: Path, split: str, image_size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """`data.load` for PATH/<split>/<class>/*: classes and files in the order of their names, numbers by value."""
    by_class = _files_by_class(path, split)
    files = [file for members in by_class.values() for file in members]
    labels = torch.repeat_interleave(torch.tensor([len(members) for members in by_class.values()]))

    sizes = set(_in_parallel(_size_of, files, f"{split} sizes"))
    side = max(max(size) for size in sizes)
    fits = len(sizes) == 1 and len(set(*sizes)) == 1 and side <= image_size
    side = side if fits else image_size
    _refuse_what_does_not_fit(len(files) * 3 * side * side, f"{path}: {len(files):,} images of {side}x{side}")

    images = torch.empty(len(files), 3, side, side, dtype=torch.uint8)

    def decode(n: int) -> None:
        images[n] = read_image(files[n], side)

    _in_parallel(decode, range(len(files)), f"{split} images")
    return images, labels, tuple(by_class)


def read_image(path: str | Path, size: int) -> Tensor:
    """One picture as (3, size, size) uint8 RGB: its shorter side resized to `size`, then cropped at the centre.

    Turned upright where its EXIF data say so; white shows through what is transparent. Raises DataError, with the
    file's name, when it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would cut off at 255
                picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB")
            if picture.size != (size, size):
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    except Exception as error:  # what a damaged file makes a decoder raise has no end
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as a picture ({error}): replace or remove it")


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:  # reads the header alone
            return picture.size
    except Exception as error:
        raise _unreadable(path, error) from error


def _in_parallel(function, items, title: str) -> list:
    """[function(item) for item in items] on all cores, with a progress bar on a terminal; the first error ends it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(tqdm(pool.map(function, items), title, len(items), leave=False, disable=None, unit=" images"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def list_files(path: Path, split: str) -> list[Path]:
    """The files of a split in the order of `load_folder`."""
    return [file for files in _files_by_class(path, split).values() for file in files]


def _files_by_class(path: Path, split: str) -> dict[str, list[Path]]:
    """Class name -> files of a split; what is wrong with the folder is said here."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder: {NEEDS}")
    folders = {name: [path / alias for alias in SPLITS[name] if (path / alias).is_dir()] for name in SPLITS}
    if not folders[split]:
        raise DataError(f"{path} has no folder {' or '.join(SPLITS[split])}: {NEEDS}")
    classes = {name: _subfolders(found[0]) for name, found in folders.items() if found}
    if len(classes[split]) < 2:
        raise DataError(f"{folders[split][0]} holds {len(classes[split])} class folders, two are the least: {NEEDS}")
    if len(set(map(tuple, classes.values()))) > 1:
        only = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{path}: train and test have different classes, {', '.join(only)} in one of them only")
    by_class = {}
    for name in classes[split]:
        folder = folders[split][0] / name
        by_class[name] = sorted((file for file in folder.iterdir() if _is_picture(file)), key=_natural)
        if not by_class[name]:
            raise DataError(f"{folder} holds no pictures: add some, or remove the folder; {NEEDS}")
    return by_class


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _natural(file: Path) -> tuple:
    """A key that sorts "img2" before "img10"."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], file.name


def _refuse_what_does_not_fit(size: int, what: str) -> None:
    available = available_memory()
    if available is not None and size > 0.9 * available:
        raise DataError(
            f"{what} need {size / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free: "
            "pass a smaller --image-size or fewer images"
        )


def available_memory() -> int | None:
    """Bytes of main memory that can be had without swapping; None where the system does not tell."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
