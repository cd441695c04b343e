"""The evidence for the most probable classes of an image: where it is at conv5_x, and sent back through the mirrors."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import robust_limit
from analysis.crops import mean_correlation
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, project
from analysis.settings import Settings
from figures.comparison import evidence_over_image, show_tile
from figures.image_grid import diverging_rgb, to_array
from figures.registry import register
from figures.style import (
    RULE_STYLE,
    WIDTH_INCHES,
    axes_at,
    format_percent,
    format_two_digits,
    heading,
    heading_inches,
    styled,
    text_at,
    truncate,
    unpooling_note,
)  # fmt: skip
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18, class_signal

STAGE = STAGES[-1]  # the logits are linear in it
CLASSES_SHOWN = 3
RULES_SHOWN = ("guided", "gradient")
MAPS = "class activation map"
TILE, GAP = 1.5, 0.06  # inches


@torch.inference_mode()
def class_evidence(
    network: ResNet18, mirrors: Mapping[str, ReverseResNet18], inputs: Tensor, count: int = CLASSES_SHOWN
) -> tuple[dict, dict[str, Tensor]]:
    """What speaks for the `count` most probable classes of a normalised image (1, 3, S, S).

    Returns two dictionaries. The numbers, a list each with one entry per class, in descending order of probability:
    `classes`, `probabilities` in 0..1, `logits` and `biases`. The pictures, on the CPU, one per class: MAPS ->
    (n, h, w) float64, conv5_x weighted by the weights of the class (Zhou et al. 2016, arXiv:1512.04150): its mean and
    the bias are the logit; and name of the mirror -> (n, 3, S, S), in units of the normalised image, from the gradient
    of the logit, `class_signal`.

    Raises CheckpointError when a picture is not finite.
    """
    trace = network.trace(inputs, STAGE)
    features = trace.features[STAGE]
    maps = torch.einsum("ck,khw->chw", network.fc.weight.cpu().double(), features[0].cpu().double())
    biases = network.fc.bias.cpu().double()
    logits = maps.mean((1, 2)) + biases
    classes = logits.sort(descending=True, stable=True).indices[:count]
    signals = torch.cat([class_signal(network, features, number) for number in classes.tolist()])
    pictures = {name: project(mirror, signals, STAGE, trace) for name, mirror in mirrors.items()}
    columns = {"classes": classes, "probabilities": logits.softmax(0)[classes]}
    columns |= {"logits": logits[classes], "biases": biases[classes]}
    return {name: values.tolist() for name, values in columns.items()}, {MAPS: maps[classes]} | pictures


def column_limit(pictures: Tensor) -> float:
    """The half-width of a column's scale: the maximum of maps (n, h, w), the largest `robust_limit` of pictures."""
    return pictures.abs().max().item() if pictures.dim() == 3 else max(robust_limit(pictures))


def evidence_in_words(entries: list[dict]) -> str:
    """What classes.json says of each image, a sentence each, for the report."""
    sentences = []
    for entry in entries:
        image = f"Test image {entry['image']}" if isinstance(entry["image"], int) else entry["image"]
        numbers = ", ".join(f"{name} {format_two_digits(value)}" for name, value in entry["correlation"].items())
        sentences.append(f"{image}, mean correlation of the pictures for {', '.join(entry['classes'])}: {numbers}.")
    return " ".join(sentences)


@register(
    "classes",
    "Evidence for a class",
    "Each row is the evidence for one class, on one scale per column; the mean of its class activation map and the "
    "bias are its logit, and the correlation says how little a column depends on the class.",
    needs="pictures",
    words=evidence_in_words,
)
def draw_classes(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Each picture with the evidence for its three most probable classes; at last the content of classes.json."""
    mirrors = mirrors_by_rule(inspection.network, RULES_SHOWN, settings.unpool)
    entries = []
    for picture in inspection.pictures:
        numbers, pictures = class_evidence(inspection.network, mirrors, inspection.inputs(picture.image[None]))
        names = [inspection.metadata.classes[number] for number in numbers["classes"]]
        entry = {"image": picture.origin} | numbers | {"classes": names, "maps": pictures[MAPS].tolist()}
        entry["scale"] = {name: column_limit(values) for name, values in pictures.items()}
        entry["correlation"] = {name: mean_correlation(values) for name, values in pictures.items()}
        image = to_array(inspection.resized(picture.image[None])[0])
        title = (
            f"Evidence for the most probable classes of {truncate(picture.title, 60)}{unpooling_note(settings.unpool)}"
        )
        yield Path(picture.folder, "classes"), classes_figure(image, entry, pictures, title, picture.choice)
        entries.append(entry)
    yield Path("classes"), entries


@styled
def classes_figure(image: np.ndarray, entry: dict, pictures: dict[str, Tensor], title: str, choice: str = "") -> Figure:
    """An image (H, W, 3); a row per class and the difference of the first two; a column per way to draw the evidence.

    entry     of classes.json
    pictures  as `class_evidence` returns them
    choice    how the image was chosen
    """
    names = [truncate(name, 14) for name in entry["classes"]]
    caption = (
        f"Class activation map: {STAGE} weighted by the class's weights in the last layer; blue speaks for the class, "
        "red against it; its mean and the bias are the logit. Guided and gradient: the logit's gradient, sent back to "
        "the pixels; grey is zero. Each column has one scale, also for the difference.",
        "Correlation: mean over the pairs of classes; near 1, a picture shows what is in the image, not what speaks "
        "for a class.",
        *[choice] * bool(choice),
    )
    above, below = heading_inches(title, *caption)
    labels = [
        f"{name}\n{format_percent(probability)}\nlogit {format_two_digits(logit)}\nbias {format_two_digits(bias)}"
        for name, probability, logit, bias in zip(
            names, entry["probabilities"], entry["logits"], entry["biases"], strict=True
        )
    ]
    if len(names) > 1:
        first, second = entry["logits"][:2]
        labels.append(f"{names[0]}\n\N{MINUS SIGN} {names[1]}\n{format_two_digits(first - second)}")
        pictures = {name: torch.cat([each, each[:1] - each[1:2]]) for name, each in pictures.items()}
    top, step = above + 0.42, TILE + GAP
    left = WIDTH_INCHES - len(pictures) * step
    figure = Figure((WIDTH_INCHES, top + len(labels) * step + 0.28 + below))
    heading(figure, title, *caption)
    show_tile(axes := axes_at(figure, GAP, top, TILE, TILE), image)
    axes.set_title("image", pad=3)
    for row, label in enumerate(labels):
        text_at(figure, left - 0.08, top + row * step + TILE / 2, label, ha="right")
    text_at(figure, left - 0.08, top + len(labels) * step + 0.05, "correlation of the classes", ha="right")
    for column, (name, each) in enumerate(pictures.items()):
        limit = entry["scale"][name]
        tiles = evidence_over_image(image, each, limit) if name == MAPS else diverging_rgb(to_array(each), limit)
        for row, tile in enumerate(tiles):
            show_tile(axes := axes_at(figure, left + column * step, top + row * step, TILE, TILE), tile)
            if row == 0:
                color, _ = RULE_STYLE.get(name, ("black", ""))
                axes.set_title(f"{name}\n±{limit:.2g}", pad=3, color=color)
        correlation = format_two_digits(entry["correlation"][name])
        text_at(figure, left + column * step + TILE / 2, top + len(tiles) * step + 0.05, correlation, weight="bold")
    return figure
