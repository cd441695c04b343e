"""Importance maps of the same images by every method, the one with the highest score first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import robust_limit
from analysis.inspection import Inspection, Picture, PictureInspection, one_per_class, pictures_asked_for
from analysis.settings import Settings
from figures.faithfulness import BASELINES, class_content, format_score, importance_batch
from figures.image_grid import to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, bare_axes_at, heading, heading_inches, styled, text_at, truncate, unpooling_note

IMAGES = 3
FOR, AGAINST = (0.70, 0.05, 0.10), (0.10, 0.30, 0.65)  # colors of positive and of negative values
LABEL, GAP, LINE, MOST_TILE = 1.13, 0.05, 0.15, 1.0  # inches: left of a row, between tiles, of class names, of a tile
CAPTION = (
    "Red: important for the predicted class, which stands above the image; blue: against it; grey: zero. Each "
    "method has one scale; the strongest 1 % of its pixels are clipped. "
)
SCORED = (
    "The score is the network's own answer to removed blocks: how much more of the class's probability is lost when "
    "the blocks that a map calls important are removed first than when they are removed last (mean and 95 % interval "
    "over {count:,} test images; 0: chance)."
)
NOT_SCORED = "The methods are not scored: that needs the test images."


@register(
    "attributions",
    "What each method calls important",
    "Methods come with the highest score first: believe a map no more than its score, and compare it with the "
    "baselines, which know nothing of the network.",
    needs="either",
    section="belief",
)
def draw_attributions(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """Three test images of different classes, or those asked for, one by one; then the content of attributions.json."""
    asked_for = pictures_asked_for(inspection, settings)
    scores, caption = {}, NOT_SCORED
    if isinstance(inspection, Inspection):
        content = class_content(inspection, settings)
        scores, caption = content["methods"], SCORED.format(count=len(content["images"]))
    methods = list(scores or settings.methods)
    entries = []
    for pictures in [[picture] for picture in asked_for] or [one_per_class(inspection, IMAGES)]:
        classes, maps = importance_maps(inspection, pictures, methods, settings.unpool)
        images = to_array(torch.cat([inspection.resized(picture.image[None]) for picture in pictures]))
        note = CAPTION + caption
        title = f"What each method calls important for the predicted class{unpooling_note(settings.unpool)}"
        yield Path(pictures[0].folder, "attributions"), attributions_figure(images, classes, maps, scores, title, note)
        entries += [{"image": picture.origin, "class": name} for picture, name in zip(pictures, classes, strict=True)]
    kept = ("score", "low", "high")
    by_method = {name: {key: scores[name][key] for key in kept} if scores else None for name in methods}
    yield Path("attributions"), {"images": entries, "methods": by_method}


@torch.inference_mode()
def importance_maps(
    inspection: PictureInspection, pictures: Sequence[Picture], methods: Sequence[str], unpool: str
) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the classes predicted for n pictures; method -> maps (n, H, W) of these classes, on the CPU."""
    stored = torch.stack([picture.image for picture in pictures])
    batch = importance_batch(inspection, stored, torch.arange(len(pictures)), unpool)
    names = [inspection.metadata.classes[number] for number in batch.classes.tolist()]
    return names, {name: batch.map(name).cpu() for name in methods}


@styled
def attributions_figure(
    images: np.ndarray, classes: list[str], maps: dict[str, Tensor], scores: dict[str, dict], title: str, caption: str
) -> Figure:
    """A row per method and a column per image, in two blocks side by side, in three for one image.

    images   (n, H, W, 3) in 0..1
    classes  the one explained of each
    maps     method -> (n, H, W)
    scores   of faithfulness.json, by method; may be empty
    """
    blocks = 2 if len(images) > 1 else 3
    rows = -(-len(maps) // blocks)
    width = WIDTH_INCHES / blocks
    tile = min(MOST_TILE, (width - LABEL) / len(images) - GAP)
    above, below = heading_inches(title, caption)
    above += LINE
    figure = Figure((WIDTH_INCHES, above + (rows + 1) * (tile + GAP) + below))
    heading(figure, title, caption)

    def draw_row(block: int, row: int, text: str, shown: Sequence[np.ndarray]) -> None:
        left, top = block * width + GAP, above + row * (tile + GAP)
        text_at(figure, left, top + tile / 2, text, ha="left", linespacing=1.3)
        for column, picture in enumerate(shown):
            axes = bare_axes_at(figure, left + LABEL - GAP + column * (tile + GAP), top, tile, tile)
            axes.imshow(picture, interpolation="antialiased")
            if row == 0:
                axes.set_title(truncate(classes[column], int(tile * 17)), pad=2)

    for block in range(blocks):
        draw_row(block, 0, "image", images)
    for n, (name, of_method) in enumerate(maps.items()):
        text = [name, *([format_score(scores[name])] if scores else []), *["baseline"] * (name in BASELINES)]
        draw_row(n // rows, n % rows + 1, "\n".join(text), overlay(images, of_method))
    return figure


def overlay(images: np.ndarray, maps: Tensor) -> np.ndarray:
    """Maps (n, H, W) over the faded grey images (n, H, W, 3), on one scale: (n, H, W, 3) in 0..1.

    Red where a value is positive, blue where it is negative, the image's grey where it is zero.
    """
    limit = robust_limit(maps.flatten()[None, None, :, None])[0] or 1
    values = np.clip(maps.numpy() / limit, -1, 1)[..., None]
    grey = 0.55 + 0.45 * images.mean(-1, keepdims=True)
    return grey * (1 - np.abs(values)) + np.where(values > 0, FOR, AGAINST) * np.abs(values)
