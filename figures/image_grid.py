"""Numpy arrays of pictures -> one array to draw: what hundreds of axes would do slowly, an array does at once."""

import math

import numpy as np


def mosaic(tiles: np.ndarray, columns: int, gap: int = 1, fill: float = 1.0) -> np.ndarray:
    """Tiles (n, h, w, ...) set in rows as one array, so that hundreds are drawn at once."""
    count, height, width, *rest = tiles.shape
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *rest), fill, dtype=tiles.dtype)
    for n, tile in enumerate(tiles):
        row, column = divmod(n, columns)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def around_grey(pictures: np.ndarray, limit: float) -> np.ndarray:
    """Values -limit..limit -> 0..1, with zero at grey; all grey where the limit is zero."""
    return np.clip(0.5 + 0.5 * pictures / limit, 0, 1) if limit > 0 else np.full_like(pictures, 0.5)


def limit_of(pictures: np.ndarray) -> float:
    """The half-width of the scale that shows all of these: their largest absolute value."""
    return float(np.abs(pictures).max(initial=0))


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, with white between them."""
    gap = np.ones((pictures[0].shape[0], max(2, pictures[0].shape[1] // 24), 3))
    row = [pictures[0]]
    for picture in pictures[1:]:
        row += [gap, picture]
    return np.concatenate(row, axis=1)


def enlarge(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> size by repeating pixels, so that a unit stays a square one can count."""
    rows = np.arange(size[0]) * array.shape[0] // size[0]
    columns = np.arange(size[1]) * array.shape[1] // size[1]
    return array[rows][:, columns]
