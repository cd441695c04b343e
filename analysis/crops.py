"""Where a reconstruction's energy lies, square crops around it, and how alike pictures are."""

import numpy as np
import torch
from torch import Tensor


def energy_quantile(pictures: Tensor, share: float) -> Tensor:
    """(N, 2) int64: first row and column up to which this share of the energy of each of (N, 3, H, W) pictures lies.

    The middle of an all-zero picture.
    """
    energy = pictures.double().square().sum(1)
    quantiles = []
    for axis in (2, 1):
        up_to = energy.sum(axis).cumsum(1)  # (N, H), then (N, W)
        total = up_to[:, -1:]
        first = (up_to >= share * total).int().argmax(1)
        quantiles.append(torch.where(total[:, 0] > 0, first, up_to.shape[1] // 2))
    return torch.stack(quantiles, 1)


def bounding_boxes(pictures: Tensor) -> list[tuple[int, int, int, int] | None]:
    """(top, left, bottom, right) around 95 % of each picture's energy; None for an all-zero picture.

    pictures: (N, 3, H, W). At most a quarter of the remaining energy lies beyond each side.
    """
    beyond = 0.05 / 4
    boxes = torch.cat([energy_quantile(pictures, beyond), energy_quantile(pictures, 1 - beyond) + 1], 1).tolist()
    return [tuple(box) if picture.any() else None for box, picture in zip(boxes, pictures, strict=True)]


def crop_boxes(pictures: list[Tensor], least: int = 11) -> tuple[int, list[tuple[int, int]]]:
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


def crop(pictures: Tensor, side: int, corners: list[tuple[int, int]]) -> Tensor:
    """(N, 3, H, W) -> (N, 3, side, side), cut at each (top, left), inside the image."""
    pairs = zip(pictures, corners, strict=True)
    return torch.stack([picture[:, top : top + side, left : left + side] for picture, (top, left) in pairs])


def standardize(rows: Tensor) -> Tensor:
    """(n, ...) -> (n, m) float64 of mean 0 and norm 1, whose products are Pearson correlations; constant rows: zero."""
    rows = rows.double().flatten(1)
    is_constant = rows.amax(1, keepdim=True) == rows.amin(1, keepdim=True)
    centered = rows - rows.mean(1, keepdim=True)
    return torch.where(is_constant, 0.0, centered / centered.norm(dim=1, keepdim=True))


def mean_correlation(pictures: np.ndarray | Tensor) -> float | None:
    """The mean Pearson correlation over all pairs of pictures (n, ...) that are not constant; None without a pair."""
    rows = standardize(torch.as_tensor(pictures))
    rows = rows[rows.any(1)]
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return (rows @ rows.T)[first, second].mean().item() if len(rows) > 1 else None


def correlations(first: Tensor, second: Tensor) -> list[float | None]:
    """Pearson's correlation of first[n] and second[n], over all values of (n, ...); None where one is constant."""
    first, second = standardize(first), standardize(second)
    pairs = zip((first * second).sum(1).tolist(), (first.any(1) & second.any(1)).tolist(), strict=True)
    return [value if is_known else None for value, is_known in pairs]


def ratios(values: Tensor, divisors: Tensor) -> list[float | None]:
    """values / divisors, (n,) each; None where the divisor is zero."""
    pairs = zip(values.tolist(), divisors.tolist(), strict=True)
    return [value / divisor if divisor else None for value, divisor in pairs]
