"""The images and labels of a run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dataset import sources
from dataset.folders import DataError
from dataset.placement import HostImages, place
from dataset.preprocess import color_histogram, mean_and_std
from dataset.store import Split
from training.distributed import ALONE, World


@dataclass(frozen=True)
class Data:
    """Two splits: images (N, 3, H, W) uint8, on the device or on the host, and labels (N,) int64 on the device."""

    train: tuple[Tensor | HostImages, Tensor]
    test: tuple[Tensor | HostImages, Tensor]
    classes: tuple[str, ...]  # names
    mean: tuple[float, ...]  # of the training images by channel, in 0..1
    std: tuple[float, ...]
    fingerprint: str  # of both splits


def load_data(source: str, root: str | Path, image_size: int, hold_out: int, device: torch.device,
              images_on: str = "auto", world: World = ALONE) -> Data:  # fmt: skip
    """A data set of `dataset.sources.load`; with `hold_out`, this many training images replace the test images.

    images_on: of `dataset.placement.IMAGES_ON`. Raises DataError if the data are unusable or differ between processes.
    """
    with world.local_rank_zero_first():
        train = sources.load_split(source, "train", root, image_size)
        if hold_out >= len(train.images):
            raise DataError(f"--hold-out {hold_out} leaves none of {len(train.images)} training images: lower it")
        test = train if hold_out else sources.load_split(source, "test", root, image_size)
    kept, held, histogram = slice(None), slice(None), train.histogram
    if hold_out:
        kept, held = sources.hold_out(len(train.images), hold_out)
        histogram = histogram - sum(color_histogram(train.images[part]) for part in held.split(256))
    mean, std = map(tuple, mean_and_std(histogram))
    splits = ("train", train), ("train" if hold_out else "test", test)  # by the folder they come from
    facts = tuple(train.classes), mean, std, fingerprint(source, *splits)
    if any(world.all_reduce_max(facts != world.broadcast(lambda: facts))):
        raise DataError("the processes found different images: give every machine the same data")
    placed = [
        (place(split.images, device, images_on, index if hold_out else None), split.labels[index].to(device))
        for split, index in ((train, kept), (test, held))
    ]
    return Data(*placed, *facts)


def fingerprint(source: str, *splits: tuple[str, Split]) -> str:
    """A hash of the labels, a folder's file names, and about 1,000 images of each split, given with its folder."""
    digest = hashlib.sha256()
    for name, split in splits:
        files = sources.list_files(source, name) or []
        digest.update("\0".join(file.relative_to(source).as_posix() for file in files).encode(errors="surrogateescape"))
        digest.update(split.labels.numpy().tobytes())
        digest.update(split.images[:: max(1, len(split.images) // 1024)].numpy().tobytes())
    return digest.hexdigest()
