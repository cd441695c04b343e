"""Importance maps of the same images by every method, the one with the highest score first."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import robust_limit
from analysis.inspection import Inspection, PictureInspection, one_per_class, pictures_asked_for
from analysis.settings import Settings
from figures import style
from figures.comparison import evidence_over_image, show_tile
from figures.faithfulness import BASELINES, class_content, format_score, importance_batch
from figures.image_grid import to_array
from figures.registry import register

IMAGES = 3
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
    "Where they are scored, methods come with the highest score first: believe a map no more than its score, and "
    "compare it with the baselines, which know nothing of the network.",
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
    names, blocks = list(maps), 2 if len(images) > 1 else 3
    count = -(-len(names) // blocks)
    side = min(1, (style.WIDTH_INCHES / blocks - 1.3) / len(images))  # of a tile, inches
    figure = style.new_figure(0.15 + (side + 0.06) * (count + 1), title, caption, **style.TIGHT)
    for n, block in enumerate(figure.subfigures(1, blocks)):
        shown = {}
        for name in names[n * count : (n + 1) * count]:
            (limit,) = robust_limit(maps[name].flatten()[None, None, :, None])
            shown[name] = evidence_over_image(images, maps[name], limit)
        grid = block.subplots(count + 1, len(images), squeeze=False)
        for axes in grid.flat:
            show_tile(axes)
            axes.set_anchor("W")  # so that the layout knows where the texts begin
        for axes, name in zip(grid[0], classes, strict=True):
            axes.set_title(style.truncate(name, int(side * 17)))
        for row, (name, tiles) in zip(grid, ({"image": images} | shown).items(), strict=False):
            text = [
                name,
                *([format_score(scores[name])] if name in scores else []),
                *["baseline"] * (name in BASELINES),
            ]
            row[0].set_ylabel("\n".join(text), rotation=0, ha="right", va="center", linespacing=1.3)
            for axes, tile in zip(row, tiles, strict=True):
                axes.imshow(tile, interpolation="antialiased")
    return figure
