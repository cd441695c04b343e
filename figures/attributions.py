"""Importance maps of the same images by every method, the one with the highest score first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import robust_limit
from analysis.inspection import Inspection, PictureInspection, one_per_class, pictures_asked_for
from analysis.settings import Settings
from figures import style
from figures.faithfulness import BASELINES, class_content, format_score, importance_batch
from figures.image_grid import to_array
from figures.registry import register

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
    scores, scored, entries = {}, NOT_SCORED, []
    if isinstance(inspection, Inspection):
        content = class_content(inspection, settings)
        scores, scored = content["methods"], SCORED.format(count=len(content["images"]))
    methods = list(scores or settings.methods)
    title = f"What each method calls important for the predicted class{style.unpooling_note(settings.unpool)}"
    asked_for = pictures_asked_for(inspection, settings)
    for pictures in [[picture] for picture in asked_for] or [one_per_class(inspection, IMAGES)]:
        with torch.inference_mode():
            stored = torch.stack([picture.image for picture in pictures])
            batch = importance_batch(inspection, stored, torch.arange(len(pictures)), settings.unpool)
            maps = {name: batch.map(name).cpu() for name in methods}
        classes = [inspection.metadata.classes[number] for number in batch.classes.tolist()]
        figure = attributions_figure(to_array(batch.images), classes, maps, scores, title, CAPTION + scored)
        yield Path(pictures[0].folder, "attributions"), figure
        entries += [{"image": picture.origin, "class": name} for picture, name in zip(pictures, classes, strict=True)]
    kept = ("score", "low", "high")
    by_method = {name: {key: scores[name][key] for key in kept} if scores else None for name in methods}
    yield Path("attributions"), {"images": entries, "methods": by_method}


@style.styled
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
    rows, width = -(-len(maps) // blocks), style.WIDTH_INCHES / blocks
    tile = min(MOST_TILE, (width - LABEL) / len(images) - GAP)
    above, below = style.heading_inches(title, caption)
    above += LINE
    figure = Figure((style.WIDTH_INCHES, above + (rows + 1) * (tile + GAP) + below))
    style.heading(figure, title, caption)

    def draw_row(block: int, row: int, text: str, shown: Sequence[np.ndarray]) -> None:
        left, top = block * width + GAP, above + row * (tile + GAP)
        style.text_at(figure, left, top + tile / 2, text, ha="left", linespacing=1.3)
        for column, picture in enumerate(shown):
            axes = style.bare_axes_at(figure, left + LABEL - GAP + column * (tile + GAP), top, tile, tile)
            axes.imshow(picture, interpolation="antialiased")
            if row == 0:
                axes.set_title(style.truncate(classes[column], int(tile * 17)), pad=2)

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
