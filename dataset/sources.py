"""Load a data set as uint8 tensors: one of DATASETS by name, or a folder of images.

To add a data set, write a function like `load_shapes` and add it to DATASETS.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset import folders, store
from dataset.folders import SPLITS, DataError
from dataset.preprocess import color_histogram
from dataset.shapes import CLASSES, draw_shapes
from dataset.store import Split

Arrays = tuple[Tensor, Tensor, tuple[str, ...]]  # images (N, 3, H, W) uint8, labels (N,) int64, class names


def load(source: str, split: str, root: str | Path = "data", image_size: int = 224) -> Arrays:
    """Images (N, 3, H, W) uint8, labels (N,) int64 and class names.

    source      name in DATASETS, or folder with train/<class>/* and test/<class>/* (or val/<class>/*)
    split       "train" or "test"
    root        folder that CIFAR-10 is downloaded to, and that a folder's images are decoded into once
    image_size  side in pixels that a folder's images are resized and centre-cropped to, unless they are all squares
                of one size that is not larger

    A folder's images are memory-mapped: they must not be written to.

    Raises DataError if images are missing or unreadable or do not fit on the disk, ValueError for an unknown split.
    """
    loaded = load_split(source, split, root, image_size)
    return loaded.images, loaded.labels, loaded.classes


def load_split(source: str, split: str, root: str | Path = "data", image_size: int = 224) -> Split:
    """`load` with the images' color histogram, which is stored with a folder's images."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if source in DATASETS:
        images, labels, classes = DATASETS[source](split, Path(root))
        return Split(images, labels, classes, color_histogram(images))
    if not Path(source).is_dir():
        raise DataError(f"--data {source} is not a folder: {folders.NEEDS}; or choose one of {', '.join(DATASETS)}")
    return store.load_folder(Path(source), split, Path(root), image_size)


def load_cifar10(split: str, root: Path) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32, downloaded once by torchvision, md5 checked."""
    from torchvision.datasets import CIFAR10  # slow to import

    try:
        dataset = CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError, EOFError) as error:
        advice = f"put {CIFAR10.filename} there yourself, pass --data FOLDER with its images, or try --data shapes"
        raise DataError(f"CIFAR-10 could not be downloaded to {root} ({error}): {advice}") from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets), tuple(dataset.classes)


def load_shapes(split: str, root: Path) -> Arrays:
    """The embedded synthetic shapes: 5,000 + 1,000 images of 32x32; `root` is not used."""
    images, labels, _ = draw_shapes(split)
    return torch.from_numpy(images), torch.from_numpy(labels), CLASSES


DATASETS = {"cifar10": load_cifar10, "shapes": load_shapes}


def list_files(source: str | Path, split: str) -> list[Path] | None:
    """The image files of a folder's split, in the order of `load`; None for the data sets in DATASETS."""
    return None if str(source) in DATASETS else folders.list_split(Path(source), split).paths


def hold_out(images: int, count: int) -> tuple[Tensor, Tensor]:
    """Of this many images, the indices of those that remain and of the `count` held out: int64, ascending, fixed."""
    held = np.zeros(images, bool)
    held[np.random.default_rng(0).permutation(images)[:count]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
