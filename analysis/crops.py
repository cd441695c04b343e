"""Where a reconstruction's energy lies, square crops around it, and how alike pictures are."""

import numpy as np
import torch
from torch import Tensor

ENERGY_SHARE = 0.95  # of a reconstruction's squared values, inside its bounding box
MIN_CROP_PIXELS = 11  # a unit of conv1 sees 7


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


def crop_boxes(pictures: list[Tensor], least: int = MIN_CROP_PIXELS) -> tuple[int, list[tuple[int, int]]]:
    """One square per image around the energy of all its reconstructions: (side, [(top, left) per image]).

    pictures: one (N, 3, H, W) per rule. The side is shared: that of the largest bounding box, at least
    `least` and at most the image's. Each square is centred on its bounding box and shifted into the image.
    """
    height, width = pictures[0].shape[-2:]
    boxes = []
    for rules in zip(*map(bounding_boxes, pictures), strict=True):
        known = [box for box in rules if box]
        tops, lefts, bottoms, rights = zip(*known or [(height // 2, width // 2) * 2], strict=True)
        boxes.append((min(tops), min(lefts), max(bottoms), max(rights)))
    side = max(max(bottom - top, right - left) for top, left, bottom, right in boxes)
    side = min(max(side, least), height, width)
    centers = [((top + bottom) // 2, (left + right) // 2) for top, left, bottom, right in boxes]
    return side, [corner_inside(center, side, (height, width)) for center in centers]


def corner_inside(center: tuple[int, int], side: int, size: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the square around `center`, shifted into an image of `size` (H, W)."""
    row, column = (min(max(middle - side // 2, 0), length - side) for middle, length in zip(center, size, strict=True))
    return row, column


def energy_centers(pictures: Tensor) -> list[tuple[int, int]]:
    """The median row and column of each picture's energy, (N, 3, H, W); the middle of an all-zero picture."""
    energy = pictures.double().square().sum(1)
    centers = []
    for axis in (2, 1):
        share = energy.sum(axis).cumsum(1)
        total = share[:, -1:]
        middle = torch.full_like(total[:, 0], share.shape[1] // 2).long()
        centers.append(torch.where(total[:, 0] > 0, (share >= total / 2).int().argmax(1), middle).tolist())
    return list(zip(*centers, strict=True))


def crop(pictures: Tensor, side: int, corners: list[tuple[int, int]]) -> Tensor:
    """(N, 3, H, W) -> (N, 3, side, side), cut at each (top, left), inside the image."""
    return torch.stack([
        picture[:, top : top + side, left : left + side] for picture, (top, left) in zip(pictures, corners, strict=True)
    ])  # fmt: skip


def crop_together(images: Tensor, pictures: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and their reconstructions by each rule, cropped to the same squares: (N, 3, side, side) each."""
    side, corners = crop_boxes(list(pictures.values()))
    return crop(images, side, corners), {rule: crop(whole, side, corners) for rule, whole in pictures.items()}


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


def correlations(first: Tensor, second: Tensor) -> list[float | None]:
    """Pearson's correlation of first[n] and second[n], over all values of (n, ...); None where one is constant."""
    centered = []
    for pictures in (first, second):
        flat = pictures.double().flatten(1)
        is_constant = flat.amax(1, keepdim=True) == flat.amin(1, keepdim=True)
        centered.append(torch.where(is_constant, 0, flat - flat.mean(1, keepdim=True)))
    norms = centered[0].norm(dim=1) * centered[1].norm(dim=1)
    return ratios((centered[0] * centered[1]).sum(1), norms)


def ratios(values: Tensor, divisors: Tensor) -> list[float | None]:
    """values / divisors, (n,) each; None where the divisor is zero."""
    pairs = zip(values.tolist(), divisors.tolist(), strict=True)
    return [value / divisor if divisor else None for value, divisor in pairs]
