"""Training batches: the host draws an epoch's indices and augmentation; the device crops, flips and normalises.

Randomness is a function of integers: an epoch's order of (seed, epoch), an image's augmentation of (seed, step).
Resuming a run therefore needs no generator state.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
BOXES_AT_A_TIME = 2**16  # drawn; their random words take 12 MB


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
    cutmix      probability that a batch's images get a box of their partners, each its neighbor in the batch, whose
                order is random (`boxes.draw_cutmix_boxes`); not with scale_crop, whose results share no pixel grid
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
    seed          seed of order and augmentation
    augmentation  random shift or box, flip, cutout and CutMix
    """

    def __init__(self, images: Tensor | HostImages, labels: Tensor, preprocess: Preprocess, batch_size: int,
                 seed: int, augmentation: Augmentation = Augmentation()):  # fmt: skip
        self.images, self.labels, self.preprocess, self.device = images, labels, preprocess, labels.device
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.mean_color = preprocess.mean_color.round().to(torch.uint8)
        self._build_tables()

    def _build_tables(self) -> None:
        """Source rows and columns of every crop, and hidden ones of every cutout: a batch only looks them up."""
        _, channels, height, width = self.images.shape
        device, shift, cutout = self.device, self.augmentation.shift, self.augmentation.cutout
        self._y, self._x = y, x = torch.arange(height, device=device), torch.arange(width, device=device)
        # in the order 0, ..., shift, -shift, ..., -1, so that negative offsets count from the end
        offsets = torch.cat([torch.arange(shift + 1, device=device), torch.arange(-shift, 0, device=device)])[:, None]
        self._channels = torch.arange(channels, device=device)[:, None, None]
        self._source_y = reflect_index(y + offsets, height)  # (2 * shift + 1, H)
        source_x = reflect_index(x + offsets, width)
        self._source_x = torch.stack([source_x, source_x.flip(1)])  # (2, 2 * shift + 1, W): as it is, and flipped
        if cutout:
            self._hidden_y = (y - y[:, None] + cutout // 2) // cutout == 0  # (H, H): by centre
            self._hidden_x = (x - x[:, None] + cutout // 2) // cutout == 0
            if self.augmentation.scale_crop is not None:  # in pixels of the result
                size = self.preprocess.image_size
                middle = 2 * torch.arange(size, device=device) + 1  # of each of them, in half pixels
                self._hidden_y = self._hidden_y[:, middle * height // (2 * size)]  # (H, S)
                self._hidden_x = self._hidden_x[:, middle * width // (2 * size)]

    def __len__(self) -> int:
        """Iterations per epoch."""
        return len(self.images) // self.batch_size

    def rows(self, epoch: int) -> Tensor:
        """All batches of an epoch (counted from 0): (iterations, batch_size, columns) int64 on the device; see COLUMNS.

        There are six columns, ten with `scale_crop`, 16 with `cutmix`.
        """
        order = epoch_order(len(self.images), self.seed, epoch)[: len(self) * self.batch_size]
        order = order.reshape(len(self), self.batch_size, 1)
        words = random_words(self.seed, epoch * len(self), len(self), self.batch_size * 5)
        shift, (height, width) = self.augmentation.shift, self.images.shape[2:]
        counts = np.array([2 * shift + 1, 2 * shift + 1, 2, height, width], np.uint64)  # of values, by column
        columns = (words.reshape(len(self), self.batch_size, 5) % counts).astype(np.int64)
        columns[..., :2] -= shift
        if self.augmentation.flip == "alternate":
            columns[..., 2] = (first_flips(len(self.images), self.seed)[order[..., 0]] + epoch) % 2
        elif self.augmentation.flip == "none":
            columns[..., 2] = 0
        rows = np.concatenate([order, columns], -1)
        if self.augmentation.scale_crop is not None:
            rows = np.concatenate([rows, self._draw_boxes(epoch)], -1)
        if self.augmentation.cutmix:
            words = random_words(self.seed, epoch * len(self), len(self), boxes.CUTMIX_WORDS, stream=4)
            box = boxes.draw_cutmix_boxes(words, height, width, self.augmentation.cutmix)[:, None]
            # every row has its partner's columns, so that a process's shard needs no rows of the others
            rows = np.concatenate([rows, np.roll(rows, 1, 1), np.repeat(box, self.batch_size, 1)], -1)
        return torch.from_numpy(rows).to(self.device)

    def _draw_boxes(self, epoch: int) -> np.ndarray:
        """The boxes of an epoch: (iterations, batch_size, 4) int64; a part of the epoch at a time, to save memory."""
        drawn, (height, width) = [], self.images.shape[2:]
        for start in range(0, len(self), part := max(1, BOXES_AT_A_TIME // self.batch_size)):
            steps = min(part, len(self) - start)
            words = random_words(self.seed, epoch * len(self) + start, steps, self.batch_size * boxes.WORDS, stream=3)
            words = words.reshape(steps, self.batch_size, boxes.WORDS)
            drawn.append(boxes.draw_boxes(words, height, width, self.augmentation.scale_crop))
        return np.concatenate(drawn)

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
        y, x = self._source_y[down], self._source_x[flip, right]  # (B, H), (B, W)
        if stored is None:
            stored, index = self.images, image
        else:
            index = torch.arange(len(rows), device=self.device)
        images = stored[index[:, None, None, None], self._channels, y[:, None, :, None], x[:, None, None, :]]
        return self._cut_out(images, rows, self.mean_color), self.labels[image]

    def _cut_out(self, images: Tensor, rows: Tensor, color: Tensor | int) -> Tensor:
        if not self.augmentation.cutout:
            return images
        hidden_y, hidden_x = self._hidden_y[rows[:, 4]], self._hidden_x[rows[:, 5]]
        return torch.where(hidden_y[:, None, :, None] & hidden_x[:, None, None, :], color, images)

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
        if self.augmentation.scale_crop is not None:
            return self.scale_crop(rows, stored)
        images, *labels = (self.mix if self.augmentation.cutmix else self.crop)(rows, stored)
        return self.preprocess(images), *labels

    def scale_crop(self, rows: Tensor, stored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`__call__` for rows (B, 10): a random box of each image, resized to the network's input."""
        image = rows[:, 0]
        images = self.preprocess.normalize(self.images[image] if stored is None else stored)
        images = boxes.resize_boxes(images, rows[:, 6:], rows[:, 3], self.preprocess.image_size)
        images = self._cut_out(images, rows, 0)  # the mean color, normalised
        return images.contiguous(memory_format=torch.channels_last), self.labels[image]


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` images, (count,) int64, that depends only on (seed, epoch)."""
    return np.random.default_rng((0, seed, epoch)).permutation(count)


def first_flips(count: int, seed: int) -> np.ndarray:
    """Flip of each image in the first epoch of alternating flips: (count,) int64, 0 or 1."""
    return np.random.default_rng((2, seed)).integers(0, 2, count)


def random_words(seed: int, step: int, steps: int, count: int, stream: int = 1) -> np.ndarray:
    """`count` random words for each of `steps` iterations, starting at `step`: (steps, count) uint64.

    An iteration's words depend only on (seed, step) and the stream: Philox (Salmon et al. 2011) is a counter-based
    generator that yields four words per count.
    """
    blocks = -(-count // 4)  # rounded up
    philox = np.random.Philox(np.random.SeedSequence((stream, seed))).advance(step * blocks)
    return philox.random_raw(steps * blocks * 4).reshape(steps, blocks * 4)[:, :count]


def reflect_index(index: Tensor, size: int) -> Tensor:
    """Indices outside 0..size-1 reflected at the border pixel, which is not repeated: -1 -> 1, size -> size - 2."""
    last = size - 1
    return (last - (last - index.abs()).abs()).clamp(min=0)
