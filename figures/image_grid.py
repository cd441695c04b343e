"""Pictures composed as one array, which is drawn at once: hundreds of axes would take minutes.

Pictures are (H, W, 3) float in 0..1; reconstructions have any sign and are drawn around grey, which is zero.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.channels import robust_limit
from figures import style

GAP_SHARE = 1 / 24  # of `hstack_images`
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
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def tile_grid(tiles: np.ndarray) -> np.ndarray:
    """A square `image_grid`; small tiles are enlarged, so that gaps survive a reduction to 20 pixels."""
    times = math.ceil(56 / tiles.shape[1])
    tiles = tiles.repeat(times, 1).repeat(times, 2)
    return image_grid(tiles, math.ceil(math.sqrt(len(tiles))), gap=math.ceil(tiles.shape[1] / 14))


def hstack_images(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (..., h, w, 3) of one height side by side, with a white gap of GAP_SHARE of the first one's width."""
    *shape, width, colors = pictures[0].shape
    gap = np.ones((*shape, max(2, int(width * GAP_SHARE)), colors))
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=-2)


def diverging_rgb(pictures: np.ndarray, limit: float) -> np.ndarray:
    """-limit..limit -> 0..1, with zero at grey; values beyond are clipped. All grey for a limit of zero."""
    return np.clip(0.5 + 0.5 * pictures / limit, 0, 1) if limit > 0 else np.full_like(pictures, 0.5)


def diverging_tiles(tiles: Tensor, limits: Sequence[float] | None = None) -> np.ndarray:
    """Reconstructions (n, 3, s, s) -> (n, s, s, 3) in 0..1, each on its own scale, with zero at grey.

    limits: half-widths of the tiles' color scales; by default the `robust_limit` of each
    """
    limits = robust_limit(tiles) if limits is None else limits
    return np.stack([diverging_rgb(tile, limit) for tile, limit in zip(to_array(tiles), limits, strict=True)])


def draw_pictures(
    figure: FigureBase, columns: int, pictures: Sequence[np.ndarray], titles: Sequence[str],
    is_wrong: Iterable[bool] = repeat(False), pad: float = 6, interpolation: str = "nearest",
) -> np.ndarray:  # fmt: skip
    """Pictures in rows of `columns`, each with its title `pad` points above, red if it is wrong; returns all axes."""
    grid = figure.subplots(max(1, math.ceil(len(pictures) / columns)), columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, title, wrong in zip(grid, pictures, titles, is_wrong, strict=False):
        axes.imshow(picture, interpolation=interpolation)
        axes.set_title(title, loc="left", pad=pad, color=style.ERROR_COLOR if wrong else "black")
    return grid


def tile_page(
    tiles: Sequence[np.ndarray], channels: Sequence[int], sizes: np.ndarray, below: float, *text: str, **imshow
) -> tuple[Figure, FigureBase]:
    """A figure of tiles (h, w) or (h, w, 3) in rows of eight, and its lowest part, with `below` inches of room.

    Above each tile, its channel and its size; below, the size as a bar that is as long as the tile for the largest of
    all. text: title and caption; imshow: color map and scale of tiles (h, w)
    """
    columns, pitch, row_pitch = 8, 1.15, 1.38  # from tile to tile, in tiles
    height = max(1, math.ceil(len(tiles) / columns)) * row_pitch
    inches = (style.WIDTH_INCHES - 2 * style.MARGIN_INCHES) / (columns * pitch - 0.15)  # of a tile
    figure = style.new_figure(inches * height + below, *text, h_pad=0.03)
    above, rest = figure.subfigures(2, height_ratios=(inches * height, below))
    margin = style.MARGIN_INCHES / inches
    axes = above.add_axes((0, 0, 1, 1), aspect="equal", anchor="N", frameon=False, xticks=[], yticks=[])
    axes.set(xlim=(-margin, columns * pitch - 0.15 + margin), ylim=(height - 0.2, -0.2))  # its units are tiles
    largest = float(np.abs(sizes).max(initial=0)) or 1.0
    for n, (tile, channel, size) in enumerate(zip(tiles, channels, sizes, strict=True)):
        left, upper = n % columns * pitch, n // columns * row_pitch
        axes.imshow(tile, extent=(left, left + 1, upper + 1, upper), aspect="equal", **imshow)
        axes.add_patch(Rectangle((left, upper), 1, 1, fill=False, linewidth=0.3, edgecolor="0.7"))
        axes.text(left, upper - 0.04, channel)
        axes.text(left + 1, upper - 0.04, style.format_short(size), ha="right", color=style.CAPTION_COLOR)
        color = BAR_COLOR if size >= 0 else "0.6"
        axes.barh(upper + 1.05, abs(size) / largest, height=0.05, left=left, color=color)
    return figure, rest
