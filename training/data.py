"""The images and labels of a run, on the device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dataset import sources
from dataset.folders import DataError
from dataset.preprocess import mean_and_std
from training.distributed import ALONE, World


@dataclass(frozen=True)
class Data:
    """Images and labels on the device.

    train, test  images (N, 3, H, W) uint8 and labels (N,) int64
    classes      names
    mean, std    of the training images by channel, in 0..1
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_data(source: str, root: str | Path, image_size: int, hold_out: int, device: torch.device,
              world: World = ALONE) -> Data:  # fmt: skip
    """A data set of `dataset.sources.load`; with `hold_out`, this many training images replace the test images.

    Raises DataError if the data cannot be used or differ between the processes.
    """
    with world.local_rank_zero_first():
        loaded = sources.load_split(source, "train", root, image_size)
        images, labels, classes = loaded.images, loaded.labels, loaded.classes
        if hold_out >= len(images):
            raise DataError(f"--hold-out {hold_out} leaves none of {len(images)} training images: lower it")
        if hold_out:
            train, test = sources.hold_out(images, labels, hold_out)
            mean, std = map(tuple, mean_and_std(train[0]))
        else:
            train, test = (images, labels), sources.load(source, "test", root, image_size)[:2]
            mean, std = map(tuple, loaded.mean_and_std())
        train, test = (tuple(values.to(device) for values in split) for split in (train, test))
    if not world.all_equal((classes, mean, std, len(train[0]), len(test[0]))):
        raise DataError("the processes found different images: give every machine the same data")
    return Data(train, test, tuple(classes), mean, std)
