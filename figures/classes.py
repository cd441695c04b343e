"""The evidence for the most probable classes of an image: a signal at conv5_x, sent back through the mirrors."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, project
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, bare_axes_at, format_percent, styled, truncate, unpooling_note
from network import STAGES, ResNet18
from reverse_network import RULES, ReverseResNet18, class_signal

STAGE = STAGES[-1]  # the logits are linear in it
CLASSES_SHOWN = 3


@torch.inference_mode()
def class_evidence(
    network: ResNet18, mirrors: Mapping[str, ReverseResNet18], inputs: Tensor, count: int = CLASSES_SHOWN
) -> tuple[dict[int, float], dict[str, Tensor]]:
    """What speaks for the `count` most probable classes of a normalised image (1, 3, S, S).

    Returns two dictionaries: class -> its probability in 0..1, in descending order; and name of the mirror -> pictures
    (n, 3, S, S) on the CPU, in units of the normalised image, one per class. The starting signal is the gradient of the
    logit, `class_signal`.

    Raises CheckpointError when a picture is not finite.
    """
    trace = network.trace(inputs, STAGE)
    features = trace.features[STAGE]
    probabilities, classes = network.classify(features)[0].softmax(0).cpu().sort(descending=True, stable=True)
    classes = classes[:count].tolist()
    signals = torch.cat([class_signal(network, features, number) for number in classes])
    pictures = {name: project(mirror, signals, STAGE, trace) for name, mirror in mirrors.items()}
    return dict(zip(classes, probabilities.tolist(), strict=False)), pictures


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
        probabilities, pictures = class_evidence(inspection.network, mirrors, inspection.inputs(picture.image[None]))
        image = to_array(inspection.resized(picture.image[None])[0])
        labels = [
            f"{truncate(inspection.metadata.classes[number], 12)}\n{format_percent(probability)}"
            for number, probability in probabilities.items()
        ]
        title = f"Evidence for the most probable classes{unpooling_note(settings.unpool)}: {picture.title}"
        yield Path(picture.folder, "classes"), classes_figure(image, labels, pictures, title)


@styled
def classes_figure(image: np.ndarray, labels: Sequence[str], pictures: dict[str, Tensor], title: str) -> Figure:
    """An image (H, W, 3), and a row per class: a tile per rule, each on its own scale around grey.

    labels    of the classes
    pictures  rule -> (n, 3, H, W), one per class
    """
    tile, gap, top = 1.5, 0.06, 0.52
    left = WIDTH_INCHES - len(pictures) * (tile + gap)
    height = top + len(labels) * (tile + gap) + 0.42
    figure = Figure((WIDTH_INCHES, height))
    figure.text(0.5, 1 - 0.16 / height, truncate(title, 95), ha="center", va="center", fontsize=8)
    axes = bare_axes_at(figure, gap, top, tile, tile)
    axes.imshow(image, interpolation="antialiased")
    axes.set_title("image", pad=3)
    tiles = {rule: diverging_tiles(of_rule) for rule, of_rule in pictures.items()}
    for row, label in enumerate(labels):
        middle = 1 - (top + row * (tile + gap) + tile / 2) / height
        figure.text((left - 0.08) / WIDTH_INCHES, middle, label, ha="right", va="center")
        for column, rule in enumerate(pictures):
            axes = bare_axes_at(figure, left + column * (tile + gap), top + row * (tile + gap), tile, tile)
            axes.imshow(tiles[rule][row], interpolation="antialiased")
            if row == 0:
                axes.set_title(rule, pad=3)
    note = (
        "Grey is zero. Each tile has its own scale; the strongest 1 % of its pixels are clipped.\n"
        "All images have the same starting signal: under the deconvnet rule, only the pooling switches depend on the "
        "image."
    )
    figure.text(0.5, 0.2 / height, note, ha="center", va="center")
    return figure
