"""The evidence for the most probable classes of an image, under each rule."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.class_evidence import ClassEvidence, class_evidence
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, bare_axes_at, format_percent, styled, truncate, unpooling_note
from reverse_network import RULES

CLASSES_SHOWN = 3


@register(
    "classes",
    "Evidence for a class",
    "Each row is the evidence for one class; under the deconvnet rule, only the pooling switches depend on the "
    "image, because the starting signal is the same for every image.",
    needs="pictures",
)
def draw_classes(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """Each picture with the evidence for its three most probable classes."""
    mirrors = mirrors_by_rule(inspection.network, RULES, settings.unpool)
    for picture in inspection.pictures:
        inputs = inspection.inputs(picture.image[None])
        evidence = class_evidence(inspection.network, mirrors, inputs, CLASSES_SHOWN)
        image = to_array(inspection.resized(picture.image[None])[0])
        title = f"Evidence for the most probable classes{unpooling_note(settings.unpool)}: {picture.title}"
        yield Path(picture.folder, "classes"), classes_figure(image, evidence, inspection.metadata.classes, title)


@styled
def classes_figure(image: np.ndarray, evidence: ClassEvidence, names: Sequence[str], title: str) -> Figure:
    """An image (H, W, 3), and a row per class: a tile per rule, each on its own scale around grey."""
    tile, gap, top = 1.5, 0.06, 0.52
    left = WIDTH_INCHES - len(evidence.pictures) * (tile + gap)
    height = top + len(evidence.classes) * (tile + gap) + 0.42
    figure = Figure((WIDTH_INCHES, height))
    figure.text(0.5, 1 - 0.16 / height, truncate(title, 95), ha="center", va="center", fontsize=8)
    axes = bare_axes_at(figure, gap, top, tile, tile)
    axes.imshow(image, interpolation="antialiased")
    axes.set_title("image", pad=3)
    for row, (number, probability) in enumerate(zip(evidence.classes, evidence.probabilities, strict=True)):
        middle = 1 - (top + row * (tile + gap) + tile / 2) / height
        label = f"{truncate(names[number], 12)}\n{format_percent(probability)}"
        figure.text((left - 0.08) / WIDTH_INCHES, middle, label, ha="right", va="center")
        for column, (rule, pictures) in enumerate(evidence.pictures.items()):
            axes = bare_axes_at(figure, left + column * (tile + gap), top + row * (tile + gap), tile, tile)
            axes.imshow(diverging_tiles(pictures[row : row + 1])[0], interpolation="antialiased")
            if row == 0:
                axes.set_title(rule, pad=3)
    note = (
        "Grey is zero. Each tile has its own scale; the strongest 1 % of its pixels are clipped.\n"
        "All images have the same starting signal: under the deconvnet rule, only the pooling switches depend on the "
        "image."
    )
    figure.text(0.5, 0.2 / height, note, ha="center", va="center")
    return figure
