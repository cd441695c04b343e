"""Pictures composed as one array, which is drawn at once: hundreds of axes would take minutes.

Pictures are (H, W, 3) float in 0..1; reconstructions have any sign and are drawn around grey, which is zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.channels import robust_limit
from figures.style import CAPTION_COLOR, ERROR_COLOR, MARGIN_INCHES, WIDTH_INCHES, bare_axes_at, format_short

MIN_TILE_PIXELS = 56
COLUMNS = 8  # of `draw_tile_page`
ROW_INCHES, TILE_LABEL_INCHES, TILE_GAP_INCHES = 1.05, 0.16, 0.12
BAR_COLOR = "#2166ac"


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


def tile_page_inches(count: int) -> float:
    """The height of `draw_tile_page`."""
    return math.ceil(count / COLUMNS) * ROW_INCHES


def draw_tile_page(
    figure: Figure, top: float, tiles: Sequence[np.ndarray], channels: Sequence[int], sizes: np.ndarray, **imshow
) -> Axes:
    """Tiles (h, w) or (h, w, 3) in rows of COLUMNS over the figure's width, from `top` inches on.

    Above each, its channel and its size; below, the size as a bar that is as long as the tile for the largest of all.
    """
    height = tile_page_inches(max(1, len(tiles)))
    axes = bare_axes_at(figure, 0, top, WIDTH_INCHES, height)
    axes.set(xlim=(0, WIDTH_INCHES), ylim=(height, 0))  # its units are inches
    side = (WIDTH_INCHES - 2 * MARGIN_INCHES + TILE_GAP_INCHES) / COLUMNS - TILE_GAP_INCHES
    largest = float(np.abs(sizes).max(initial=0)) or 1.0
    for n, (tile, channel, size) in enumerate(zip(tiles, channels, sizes, strict=True)):
        left = MARGIN_INCHES + n % COLUMNS * (side + TILE_GAP_INCHES)
        upper = n // COLUMNS * ROW_INCHES + TILE_LABEL_INCHES
        axes.imshow(tile, extent=(left, left + side, upper + side, upper), aspect="auto", **imshow)
        axes.add_patch(Rectangle((left, upper), side, side, fill=False, linewidth=0.3, edgecolor="0.7"))
        axes.text(left, upper - 0.03, channel)
        axes.text(left + side, upper - 0.03, format_short(size), ha="right", color=CAPTION_COLOR)
        color = BAR_COLOR if size >= 0 else ERROR_COLOR
        axes.barh(upper + side + 0.04, side * abs(size) / largest, height=0.035, left=left, color=color)
    return axes
