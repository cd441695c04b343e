"""Training batches: which images and which crop of each, drawn on the host by the epoch; cut out on the device.

Randomness enters as integers: the order of an epoch is a function of (seed, epoch), an image's augmentation of (seed,
step). So a run that was interrupted goes on with the same batches without any generator's state.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.preprocess import Preprocess

FLIPS = ("random", "alternate", "none")
# the columns of a plan: which image, how far down and right its crop begins, flipped or not, the middle of the cutout
COLUMNS = ("image", "down", "right", "flip", "cut_row", "cut_column")


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image, in stored pixels.

    shift   largest translation in either direction; the border is reflected
    flip    one of FLIPS: "random" flips each image left to right with probability 1/2; "alternate" flips it every
            other epoch, about half of the images in the first (Jordan 2024, arXiv:2404.00498, section 3.6)
    cutout  side of a square of mean colour at a random centre; 0 disables it (DeVries, Taylor 2017, arXiv:1708.04552)
    """

    shift: int = 4
    flip: str = "random"
    cutout: int = 0


class Batches:
    """The batches of all epochs; each is of the same size, so an incomplete last one is left out.

    images, labels  (N, 3, H, W) uint8 and (N,) int64, on the device
    preprocess      makes the network's input of what was cut out
    batch_size      images an iteration, at most N
    seed            of order and augmentation
    augmentation    random shift, flip and cutout of each image
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        preprocess: Preprocess,
        batch_size: int,
        seed: int,
        augmentation: Augmentation = Augmentation(),
    ):
        self.images, self.labels, self.preprocess = images, labels, preprocess
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.colour = (preprocess.mean * 255).round().to(torch.uint8)

    def __len__(self) -> int:
        """Iterations an epoch."""
        return len(self.images) // self.batch_size

    def plan(self, epoch: int) -> Tensor:
        """What each batch of an epoch, counted from 0, is made of: (iterations, batch_size, 6) int64, on the device."""
        order = epoch_order(len(self.images), self.seed, epoch)[: len(self) * self.batch_size]
        words = random_words(self.seed, epoch * len(self), len(self), self.batch_size * 5)
        down, right, flip, cut_row, cut_column = words.reshape(len(self), self.batch_size, 5).transpose(2, 0, 1)
        height, width = self.images.shape[2:]
        order = order.reshape(len(self), self.batch_size)
        if self.augmentation.flip == "alternate":
            flip = first_flips(len(self.images), self.seed)[order] + epoch
        columns = [
            order,
            (down % (2 * self.augmentation.shift + 1)).astype(np.int64) - self.augmentation.shift,
            (right % (2 * self.augmentation.shift + 1)).astype(np.int64) - self.augmentation.shift,
            (flip % 2 * (self.augmentation.flip != "none")).astype(np.int64),
            (cut_row % height).astype(np.int64),
            (cut_column % width).astype(np.int64),
        ]
        return torch.from_numpy(np.stack(columns, -1)).to(self.images.device)

    def cut(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """The images (B, 3, H, W) uint8 and labels (B,) that rows (B, 6) of a plan tell."""
        _, channels, height, width = self.images.shape
        device = self.images.device
        image, down, right, flip, cut_row, cut_column = (column[:, None] for column in plan.unbind(1))
        rows = mirrored(torch.arange(height, device=device) + down, height)  # (B, H)
        columns = mirrored(torch.arange(width, device=device) + right, width)  # (B, W)
        columns = torch.where(flip > 0, columns.flip(1), columns)
        channel = torch.arange(channels, device=device)[:, None, None]
        cut = self.images[image[..., None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
        if self.augmentation.cutout:
            hidden_rows = (
                torch.arange(height, device=device) - cut_row + self.augmentation.cutout // 2
            ) // self.augmentation.cutout == 0
            hidden_columns = (
                torch.arange(width, device=device) - cut_column + self.augmentation.cutout // 2
            ) // self.augmentation.cutout == 0
            hidden = hidden_rows[:, None, :, None] & hidden_columns[:, None, None, :]
            cut = torch.where(hidden, self.colour, cut)
        return cut, self.labels[plan[:, 0]]

    def __call__(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """What rows (B, 6) of a plan tell, for the network: inputs (B, 3, S, S) float32, and labels (B,)."""
        images, labels = self.cut(plan)
        return self.preprocess(images), labels


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` images in an epoch, (count,) int64: a function of (seed, epoch) alone."""
    return np.random.default_rng((0, seed, epoch)).permutation(count)


def first_flips(count: int, seed: int) -> np.ndarray:
    """Which of `count` images are flipped in the first epoch of alternating flips, (count,) int64 of 0 and 1."""
    return np.random.default_rng((2, seed)).integers(0, 2, count)


def random_words(seed: int, step: int, steps: int, each: int) -> np.ndarray:
    """`each` random numbers for every of `steps` iterations from `step` on: (steps, each) uint64.

    Those of an iteration are a function of (seed, its number) alone: Philox (Salmon et al. 2011) is a function of a
    counter, which makes four words at a time.
    """
    counts = -(-each // 4)
    philox = np.random.Philox(np.random.SeedSequence((1, seed))).advance(step * counts)
    return philox.random_raw(steps * counts * 4).reshape(steps, counts * 4)[:, :each]


def mirrored(index: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 reflected at the border pixel: -1 -> 1, size -> size - 2."""
    last = size - 1
    return (last - (last - index.abs()).abs()).clamp(min=0)
