"""Data sets as uint8 tensors, and everything that happens to a batch on the device.

`load(source, split)` knows three sources: the names in DATASETS ("cifar10", "shapes") and folders of pictures
`PATH/train/<class>/*`, `PATH/test/<class>/*`. Randomness enters as integers (seed, epoch, step), so a run that was
interrupted goes on with the same order and the same crops without any generator's state.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from shapes import CLASSES as SHAPES
from shapes import draw_shapes

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> names its folder may have
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class DataError(ValueError):
    """A data set that cannot be used; the message says what to do."""


def load(
    source: str, split: str, root: str | Path = "data", image_size: int = 224
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, 3, H, W) uint8, labels (N,) int64, and the classes' names.

    source      a name in DATASETS, or a folder with train/<class>/* and test/<class>/* (or val/)
    split       "train" or "test"
    root        where "cifar10" is kept, and downloaded to
    image_size  what pictures are resized and centre-cropped to, unless all are squares of one size that is not
                larger; the named data sets keep their own

    Raises DataError when the images are missing, broken, or would not fit in memory.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if source in DATASETS:
        return DATASETS[source](split, Path(root))
    return load_folder(Path(source), split, image_size)


def load_cifar10(split: str, root: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """CIFAR-10 (Krizhevsky 2009) by torchvision: 50,000 + 10,000 images of 32x32, downloaded once, md5 checked."""
    try:
        dataset = torchvision.datasets.CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError, EOFError) as error:
        archive, md5 = torchvision.datasets.CIFAR10.filename, torchvision.datasets.CIFAR10.tgz_md5
        raise DataError(
            f"CIFAR-10 could not be downloaded to {root} ({error}): put {archive} (md5 {md5}) there yourself, pass "
            "--data FOLDER with a copy as pictures in train/<class>/ and test/<class>/, or try --data shapes"
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets), tuple(dataset.classes)


def load_shapes(split: str, root: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The embedded drawn shapes: 5,000 + 1,000 images of 32x32; nothing is read from `root`."""
    images, labels, _ = draw_shapes(split)
    return torch.from_numpy(images), torch.from_numpy(labels), SHAPES


DATASETS = {"cifar10": load_cifar10, "shapes": load_shapes}


# --- folders of pictures ---------------------------------------------------------------------------------------------


def list_files(source: str | Path, split: str) -> list[Path] | None:
    """The files of a folder's split in the order of `load`; None for the named data sets, which are arrays."""
    if str(source) in DATASETS:
        return None
    return [file for files in _files_by_class(Path(source), split).values() for file in files]


def load_folder(path: Path, split: str, image_size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """`load` for PATH/<split>/<class>/*: classes and files in the order of their names, numbers by value."""
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


def _files_by_class(path: Path, split: str) -> dict[str, list[Path]]:
    """Class name -> files of a split; what is wrong with the folder is said here."""
    needs = f"it needs train/<class>/* and test/<class>/* with {', '.join(sorted(SUFFIXES))} files"
    if not path.is_dir():
        names = ", ".join(DATASETS)
        raise DataError(f"--data {path} is no folder: {needs}; or choose one of {names}")
    folders = {name: [path / alias for alias in SPLITS[name] if (path / alias).is_dir()] for name in SPLITS}
    if not folders[split]:
        raise DataError(f"{path} has no folder {' or '.join(SPLITS[split])}: {needs}")
    classes = {name: _subfolders(found[0]) for name, found in folders.items() if found}
    if len(classes[split]) < 2:
        raise DataError(f"{folders[split][0]} holds {len(classes[split])} class folders, two are the least: {needs}")
    if len(set(map(tuple, classes.values()))) > 1:
        only = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{path}: train and test have different classes, {', '.join(only)} in one of them only")
    by_class = {}
    for name in classes[split]:
        folder = folders[split][0] / name
        by_class[name] = sorted((file for file in folder.iterdir() if _is_picture(file)), key=_natural)
        if not by_class[name]:
            raise DataError(f"{folder} holds no pictures: add some, or remove the folder; {needs}")
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


# --- batches, on the device ------------------------------------------------------------------------------------------


def statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in 0..1, over all pixels of (N, 3, H, W) uint8 images: exact.

    The deviation is a grey level at least, so that a constant channel can be divided by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        share = images[:, channel].flatten().bincount(minlength=256).cpu().double()
        share /= share.sum()
        mean.append(float(share @ values))
        std.append(max(float(share @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))
    return mean, std


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in an epoch, (count,) int64: a function of (seed, epoch) alone."""
    return torch.from_numpy(np.random.default_rng((0, seed, epoch)).permutation(count))


def crop_and_flip(images: Tensor, seed: int, step: int, padding: int = 4) -> Tensor:
    """Each image shifted by up to `padding` pixels, its border mirrored, and flipped left to right half of the time.

    (N, 3, H, W) uint8 -> the same shape and dtype; a function of the images and (seed, step) alone, on any device.
    """
    count, channels, height, width = images.shape
    rng = np.random.default_rng((1, seed, step))
    shift = torch.from_numpy(rng.integers(-padding, padding + 1, (2, count, 1)))
    flip = torch.from_numpy(rng.random((count, 1)) < 0.5)
    rows = _mirrored(torch.arange(height) + shift[0], height)  # (N, H)
    columns = _mirrored(torch.arange(width) + shift[1], width)  # (N, W)
    columns = torch.where(flip, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 reflected at the border pixel: -1 -> 1, size -> size - 2."""
    last = size - 1
    return (last - (last - index.abs()).abs()).clamp(min=0)


def resize(images: Tensor, image_size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in 0..1, bilinear, as PIL resizes."""
    images = images.float() / 255
    if images.shape[-2:] == (image_size, image_size):
        return images
    shrinks = image_size < max(images.shape[-2:])
    return F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=shrinks)


class Preprocess:
    """What turns stored images into the network's input; torchvision's Resize, ToTensor and Normalize, on the device.

    image_size  pixels a side
    mean, std   of each channel in 0..1, as `statistics` gives them
    device      where the images are
    """

    def __init__(self, image_size: int, mean: list[float], std: list[float], device: torch.device | str = "cpu"):
        self.image_size = image_size
        self.mean, self.std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32, laid out channels_last as the network likes."""
        images = (resize(images, self.image_size) - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)
