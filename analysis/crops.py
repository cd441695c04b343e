"""Where a reconstruction's energy lies, and square crops around it."""

import numpy as np
import torch
from torch import Tensor

ENERGY_SHARE = 0.95  # of a reconstruction's squared values, inside its bounding box
MIN_CROP_PIXELS = 32


def bounding_boxes(pictures: Tensor) -> list[tuple[int, int, int, int] | None]:
    """(top, left, bottom, right) around ENERGY_SHARE of each picture's energy; None for an all-zero picture.

    pictures: (N, 3, H, W). At most a quarter of the remaining energy lies beyond each side.
    """
    energy = pictures.square().sum(1)  # (N, H, W)
    beyond = (1 - ENERGY_SHARE) / 4
    ends = []
    for axis in (2, 1):
        share = energy.sum(axis, dtype=torch.float64).cumsum(1)
        share = share / share[:, -1:]
        ends += [(share > beyond).int().argmax(1), (share >= 1 - beyond).int().argmax(1) + 1]
    top, bottom, left, right = (values.tolist() for values in ends)
    is_empty = (energy.flatten(1).amax(1) == 0).tolist()
    boxes = zip(top, left, bottom, right, strict=True)
    return [None if empty else box for empty, box in zip(is_empty, boxes, strict=True)]


def crop_boxes(pictures: list[Tensor]) -> tuple[int, list[tuple[int, int]]]:
    """One square per image around the energy of all its reconstructions: (side, [(top, left) per image]).

    pictures: one (N, 3, H, W) per rule. The side is shared: that of the largest bounding box, at least
    MIN_CROP_PIXELS and at most the image's, which is then shown whole. A smaller square is centred on the bounding box
    and may reach beyond the image.
    """
    height, width = pictures[0].shape[-2:]
    boxes = []
    for rules in zip(*map(bounding_boxes, pictures), strict=True):
        found = [box for box in rules if box]
        tops, lefts, bottoms, rights = zip(*found or [(height // 2, width // 2) * 2], strict=True)
        boxes.append((min(tops), min(lefts), max(bottoms), max(rights)))
    side = max(max(bottom - top, right - left) for top, left, bottom, right in boxes)
    side = min(max(side, MIN_CROP_PIXELS), height, width)
    if side == height == width:
        return side, [(0, 0)] * len(boxes)
    return side, [((top + bottom - side) // 2, (left + right - side) // 2) for top, left, bottom, right in boxes]


def crop(pictures: Tensor, side: int, corners: list[tuple[int, int]], fill: float) -> Tensor:
    """(N, 3, H, W) -> (N, 3, side, side), cut at each (top, left); `fill` beyond a picture's border."""
    height, width = pictures.shape[-2:]
    tiles = pictures.new_full((len(pictures), 3, side, side), fill)
    for tile, picture, (top, left) in zip(tiles, pictures, corners, strict=True):
        rows = slice(max(top, 0), min(top + side, height))
        columns = slice(max(left, 0), min(left + side, width))
        inside = picture[:, rows, columns]
        tile[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
    return tiles


def crop_together(images: Tensor, pictures: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and their reconstructions by each rule, cropped to the same squares: (N, 3, side, side) each.

    images: (N, 3, H, W) in 0..1, grey beyond the border. pictures: rule -> (N, 3, H, W), 0 beyond the border.
    """
    side, corners = crop_boxes(list(pictures.values()))
    return crop(images, side, corners, 0.5), {rule: crop(each, side, corners, 0.0) for rule, each in pictures.items()}


def mean_correlation(pictures: np.ndarray | Tensor) -> float | None:
    """The mean Pearson correlation over all pairs of pictures (n, ...).

    Constant pictures are skipped; None if fewer than two remain.
    """
    flat = np.asarray(pictures, np.float64).reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1)
    flat = flat[norms > 0] / norms[norms > 0, None]
    if len(flat) < 2:
        return None
    return float((flat @ flat.T)[np.triu_indices(len(flat), 1)].mean())
