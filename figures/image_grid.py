"""Pictures composed as one array, which is drawn at once: hundreds of axes would take minutes.

Pictures are (H, W, 3) float in 0..1; reconstructions have any sign and are drawn around grey, which is zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from analysis.channels import robust_limit

MIN_TILE_PIXELS = 56


def to_array(pictures: Tensor) -> np.ndarray:
    """(..., 3, H, W) -> (..., H, W, 3), as matplotlib takes pictures."""
    return pictures.movedim(-3, -1).numpy()


def image_grid(tiles: np.ndarray, columns: int, gap: int = 1, fill: float = 1.0) -> np.ndarray:
    """Tiles (n, h, w, ...) in rows of `columns`, as one array; `gap` pixels of `fill` between them."""
    count, height, width, *rest = tiles.shape
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *rest), fill, dtype=tiles.dtype)
    for n, tile in enumerate(tiles):
        row, column = divmod(n, columns)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def tile_grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """`image_grid` whose gaps survive a reduction to tiles of 20 pixels; small tiles are enlarged."""
    times = math.ceil(MIN_TILE_PIXELS / tiles.shape[1])
    tiles = tiles.repeat(times, 1).repeat(times, 2)
    return image_grid(tiles, columns, gap=math.ceil(tiles.shape[1] / 14))


def color_limit(pictures: np.ndarray) -> float:
    """Half-width of the scale that shows all of these: their largest absolute value."""
    return float(np.abs(pictures).max(initial=0))


def diverging_rgb(pictures: np.ndarray, limit: float) -> np.ndarray:
    """-limit..limit -> 0..1, with zero at grey; values beyond are clipped. All grey for a limit of zero."""
    return np.clip(0.5 + 0.5 * pictures / limit, 0, 1) if limit > 0 else np.full_like(pictures, 0.5)


def diverging_tiles(tiles: Tensor, limits: Sequence[float] | None = None) -> np.ndarray:
    """Reconstructions (n, 3, s, s) -> (n, s, s, 3) in 0..1, each on its own scale, with zero at grey.

    limits: half-widths of the tiles' color scales; by default the `robust_limit` of each
    """
    limits = robust_limit(tiles) if limits is None else limits
    return np.stack([diverging_rgb(tile, limit) for tile, limit in zip(to_array(tiles), limits, strict=True)])


def hstack_images(pictures: list[np.ndarray], gap_share: float = 1 / 24) -> np.ndarray:
    """Pictures of one height side by side, with white between them: a gap of this share of the first one's width."""
    gap = np.ones((pictures[0].shape[0], max(2, int(pictures[0].shape[1] * gap_share)), 3))
    row = [pictures[0]]
    for picture in pictures[1:]:
        row += [gap, picture]
    return np.concatenate(row, axis=1)


def draw_numbered_grid(axes: Axes, tiles: np.ndarray, columns: int, fill: float = 1.0, **imshow) -> AxesImage:
    """Draw tiles as one grid; ticks give the number of each row's first tile and of each column."""
    times = math.ceil(7 / min(tiles.shape[1:3]))  # so that the gaps are thin beside the smallest maps
    tiles = tiles.repeat(times, 1).repeat(times, 2)
    height, width = tiles.shape[1:3]
    picture = axes.imshow(image_grid(tiles, columns, fill=fill), interpolation="nearest", **imshow)
    rows = math.ceil(len(tiles) / columns)
    every = 1 if columns <= 16 else 4
    axes.set_xticks([(width - 1) / 2 + n * (width + 1) for n in range(0, columns, every)], range(0, columns, every))
    axes.set_yticks([(height - 1) / 2 + n * (height + 1) for n in range(rows)], [n * columns for n in range(rows)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return picture
