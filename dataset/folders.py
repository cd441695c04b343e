"""Load a folder of images, PATH/train/<class>/* and PATH/test/<class>/*, as uint8 tensors."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> accepted folder names
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NEEDS = f"it needs train/<class>/* and test/<class>/* with {', '.join(sorted(SUFFIXES))} files"


class DataError(ValueError):
    """A data set cannot be used; the message says what to do."""


def load_folder(path: Path, split: str, image_size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """`sources.load` for a folder. Classes are sorted by name, files by name with numbers by value."""
    by_class = _files_by_class(path, split)
    files = [file for members in by_class.values() for file in members]
    labels = torch.repeat_interleave(torch.tensor([len(members) for members in by_class.values()]))

    sizes = set(_in_parallel(_size_of, files, f"{split} sizes"))
    side = max(max(size) for size in sizes)
    keep_size = len(sizes) == 1 and len(set(*sizes)) == 1 and side <= image_size
    side = side if keep_size else image_size
    _check_memory(len(files) * 3 * side * side, f"{path}: {len(files):,} images of {side}x{side}")

    images = torch.empty(len(files), 3, side, side, dtype=torch.uint8)

    def decode(n: int) -> None:
        images[n] = read_image(files[n], side)

    _in_parallel(decode, range(len(files)), f"{split} images")
    return images, labels, tuple(by_class)


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
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({error}): replace or remove it")


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:  # reads only the header
            return file.size
    except Exception as error:
        raise _unreadable(path, error) from error


def _in_parallel(function, items, title: str) -> list:
    """[function(item) for item in items] in one thread per core, with a progress bar; stops at the first error."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(tqdm(pool.map(function, items), title, len(items), leave=False, disable=None, unit=" images"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def list_files(path: Path, split: str) -> list[Path]:
    """The image files of a split, in the order of `load_folder`."""
    return [file for files in _files_by_class(path, split).values() for file in files]


def _files_by_class(path: Path, split: str) -> dict[str, list[Path]]:
    """Class name -> files of a split. Raises DataError if the folder lacks a split, classes or images."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: {NEEDS}")
    folders = {name: [path / alias for alias in SPLITS[name] if (path / alias).is_dir()] for name in SPLITS}
    if not folders[split]:
        raise DataError(f"{path} has no folder {' or '.join(SPLITS[split])}: {NEEDS}")
    classes = {name: _subfolders(found[0]) for name, found in folders.items() if found}
    if len(classes[split]) < 2:
        raise DataError(
            f"{folders[split][0]} has {len(classes[split])} class folders, at least two are needed: {NEEDS}"
        )
    if len(set(map(tuple, classes.values()))) > 1:
        only = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{path}: train and test have different classes, {', '.join(only)} in only one of them")
    by_class = {}
    for name in classes[split]:
        folder = folders[split][0] / name
        by_class[name] = sorted((file for file in folder.iterdir() if _is_image(file)), key=_natural_key)
        if not by_class[name]:
            raise DataError(f"{folder} has no images: add some, or remove the folder; {NEEDS}")
    return by_class


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _natural_key(file: Path) -> tuple:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], file.name


def _check_memory(size: int, what: str) -> None:
    """Raises DataError if `size` bytes exceed 90 % of the available memory."""
    available = available_memory()
    if available is not None and size > 0.9 * available:
        raise DataError(
            f"{what} need {size / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free: "
            "pass a smaller --image-size or fewer images"
        )


def available_memory() -> int | None:
    """Available main memory in bytes, without swapping; None where the system does not report it."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
