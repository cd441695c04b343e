"""Training batches: the host draws an epoch's indices and augmentation; the device crops, flips and normalises.

Randomness is a function of integers: an epoch's order of (seed, epoch), an image's augmentation of (seed, step).
Resuming a run therefore needs no generator state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dataset import boxes
from dataset.placement import HostImages, batches_of
from dataset.preprocess import Preprocess

FLIPS = ("random", "alternate", "none")
# columns of a row: index of the image, offset of the crop in pixels, flip (0 or 1), centre of the cutout; then, with
# `scale_crop`, those of a box (dataset/boxes.py); with `cutmix`, the same columns of the partner and those of a box
COLUMNS = ("image", "down", "right", "flip", "cutout_row", "cutout_column")


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a training image; lengths in stored pixels (before resizing).

    shift       maximum translation along each axis; the border is reflected
    flip        one of FLIPS: "random" flips each image left to right with probability 1/2; "alternate" flips it every
                other epoch, about half of the images in the first (Jordan 2024, arXiv:2404.00498, section 3.6)
    cutout      side of a square of mean color at a random centre; 0 disables it (DeVries, Taylor 2017,
                arXiv:1708.04552)
    scale_crop  instead of the translation: a random box of at least this share of the area, resized to the network's
                input (dataset/boxes.py); the cutout is then as large in the result; None disables it
    cutmix      probability that a batch's images get a box of their partners, their neighbors in the batch
                (dataset/boxes.py); not with scale_crop, whose results share no pixel grid
    """

    shift: int = 4
    flip: str = "random"
    cutout: int = 0
    scale_crop: float | None = None
    cutmix: float = 0.0


class Batches:
    """The training batches of every epoch. All have the same size: an incomplete last batch is dropped.

    images        (N, 3, H, W) uint8, on the device or on the host
    labels        (N,) int64, on the device
    preprocess    turns augmented images into the network's input
    batch_size    images per iteration, at most N
    seed          of order and augmentation
    """

    def __init__(self, images: Tensor | HostImages, labels: Tensor, preprocess: Preprocess, batch_size: int,
                 seed: int, augmentation: Augmentation = Augmentation()):  # fmt: skip
        self.images, self.labels, self.preprocess, self.device = images, labels, preprocess, labels.device
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.mean_uint8 = preprocess.mean_255.round().to(torch.uint8)
        channels, self._y, self._x = (torch.arange(size, device=self.device) for size in images.shape[1:])
        self._channels = channels[:, None, None]

    def __len__(self) -> int:
        """Iterations per epoch."""
        return len(self.images) // self.batch_size

    def rows(self, epoch: int) -> Tensor:
        """All batches of an epoch (counted from 0): (iterations, batch_size, columns) int64 on the device; see COLUMNS.

        There are six columns, ten with `scale_crop`, 16 with `cutmix`.
        """
        steps, size, augmentation = len(self), self.batch_size, self.augmentation
        draw = partial(random_words, self.seed, epoch * steps, steps)
        order = np.random.default_rng((0, self.seed, epoch)).permutation(len(self.images))[: steps * size]
        order, shift, (height, width) = order.reshape(steps, size, 1), augmentation.shift, self.images.shape[2:]
        counts = np.array([2 * shift + 1, 2 * shift + 1, 2, height, width], np.uint64)  # of values, by column
        columns = (draw(size * 5, stream=1).reshape(steps, size, 5) % counts).astype(np.int64)
        columns[..., :2] -= shift
        if augmentation.flip == "alternate":
            first_flips = np.random.default_rng((2, self.seed)).integers(0, 2, len(self.images))
            columns[..., 2] = (first_flips[order[..., 0]] + epoch) % 2
        elif augmentation.flip == "none":
            columns[..., 2] = 0
        rows = np.concatenate([order, columns], -1)
        if augmentation.scale_crop is not None:
            words = draw(size * boxes.WORDS, stream=3).reshape(steps, size, boxes.WORDS)
            rows = np.concatenate([rows, boxes.draw_boxes(words, height, width, augmentation.scale_crop)], -1)
        if augmentation.cutmix:
            words = draw(boxes.CUTMIX_WORDS, stream=4)
            box = boxes.draw_cutmix_boxes(words, height, width, augmentation.cutmix)[:, None]
            # every row has its partner's columns, so that a process's shard needs no rows of the others
            rows = np.concatenate([rows, np.roll(rows, 1, 1), np.repeat(box, size, 1)], -1)
        return torch.from_numpy(rows).to(self.device)

    def iterate(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The arguments of a call for each iteration: its row of `rows` (iterations, B, columns), and its images.

        Images on the host are gathered one iteration ahead, with `cutmix` followed by those of the partners.
        """
        if isinstance(self.images, Tensor):
            yield from ((row, None) for row in rows)
        else:
            index = rows[..., 0:7:6].transpose(1, 2).flatten(1) if self.augmentation.cutmix else rows[..., 0]
            yield from zip(rows, batches_of(self.images, index.cpu(), self.device), strict=True)

    def crop(self, rows: Tensor, stored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows (B, 6) -> shifted, flipped images (B, 3, H, W) uint8 and labels (B,) int64.

        stored: the images of these rows (B, 3, H, W) uint8 on the device; needed if all images are on the host
        """
        image, down, right, flip = rows[:, :4].unbind(1)
        x = torch.where(flip[:, None] == 1, self._x.flip(0), self._x)  # (B, W)
        x, y = reflect_index(x + right[:, None], len(self._x)), reflect_index(self._y + down[:, None], len(self._y))
        index = image if stored is None else torch.arange(len(rows), device=self.device)
        images = self.images if stored is None else stored
        images = images[index[:, None, None, None], self._channels, y[:, None, :, None], x[:, None, None, :]]
        return self._cut_out(images, rows, self.mean_uint8), self.labels[image]

    def _cut_out(self, images: Tensor, rows: Tensor, color: Tensor | int) -> Tensor:
        """Images (B, 3, h, w), possibly resized, with the squares that the rows give in stored pixels."""
        side, hidden = self.augmentation.cutout, []
        if not side:
            return images
        for axis, size, center in zip((self._y, self._x), images.shape[2:], rows[:, 4:6].split(1, 1), strict=True):
            middle = (2 * torch.arange(size, device=self.device) + 1) * len(axis) // (2 * size)  # in stored pixels
            hidden.append((middle - center + side // 2) // side == 0)  # (B, size)
        return torch.where(hidden[0][:, None, :, None] & hidden[1][:, None, None, :], color, images)

    def mix(self, rows: Tensor, stored: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`crop` for rows (B, 16) with CutMix: images, their labels (B,), the partners' (B,), and the images' share ().

        Outside the box, pixels are those of `crop`. The share, in 0..1, is exact: it is that of the clipped box.
        """
        n = len(COLUMNS)
        images, labels = self.crop(torch.cat([rows[:, :n], rows[:, n : 2 * n]]), stored)
        (images, partners), (labels, partner_labels) = images.chunk(2), labels.chunk(2)
        top, left, height, width = rows[:, 2 * n :, None].unbind(1)  # (B, 1)
        inside_y = (self._y >= top) & (self._y < top + height)  # (B, H)
        inside_x = (self._x >= left) & (self._x < left + width)  # (B, W)
        images = torch.where(inside_y[:, None, :, None] & inside_x[:, None, None, :], partners, images)
        return images, labels, partner_labels, 1 - (height * width)[0, 0] / (len(self._y) * len(self._x))

    def __call__(self, rows: Tensor, stored: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `iterate` yields -> the network's input (B, 3, S, S) float32, and labels (B,) int64.

        With `cutmix`, the partners' labels (B,) and the share () of the first labels follow.
        """
        if self.augmentation.scale_crop is None:
            images, *labels = (self.mix if self.augmentation.cutmix else self.crop)(rows, stored)
            return self.preprocess(images), *labels
        image = rows[:, 0]
        images = self.preprocess.normalize(self.images[image] if stored is None else stored)
        images = boxes.resize_boxes(images, rows[:, 6:], rows[:, 3], self.preprocess.image_size)
        images = self._cut_out(images, rows, 0)  # the mean color, normalised
        return images.contiguous(memory_format=torch.channels_last), self.labels[image]


def random_words(seed: int, step: int, steps: int, count: int, stream: int) -> np.ndarray:
    """`count` random words for each of `steps` iterations, starting at `step`: (steps, count) uint64.

    An iteration's words depend only on (seed, step) and the stream: Philox (Salmon et al. 2011) is a counter-based
    generator that yields four words per count.
    """
    blocks = -(-count // 4)  # rounded up
    philox = np.random.Philox(np.random.SeedSequence((stream, seed))).advance(step * blocks)
    return philox.random_raw(steps * blocks * 4).reshape(steps, blocks * 4)[:, :count]


def reflect_index(index: Tensor, size: int) -> Tensor:
    """Indices outside 0..size-1 reflected at the border pixel, which is not repeated: -1 -> 1, size -> size - 2."""
    return (size - 1 - (size - 1 - index.abs()).abs()).clamp(min=0)
