"""The evidence for the most probable classes of an image: where it is at conv5_x, and sent back through the mirrors."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import check_finite
from analysis.channels import robust_limit
from analysis.crops import mean_correlation
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from figures import style
from figures.comparison import draw_rows, evidence_over_image, show_tile
from figures.image_grid import diverging_rgb, to_array
from figures.registry import register
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18, class_signal

RULES_SHOWN = ("guided", "gradient")
MAPS = "class activation map"


@torch.inference_mode()
def class_evidence(
    network: ResNet18, mirrors: Mapping[str, ReverseResNet18], inputs: Tensor, count: int = 3
) -> tuple[dict, dict[str, Tensor]]:
    """What speaks for the `count` most probable classes of a normalised image (1, 3, S, S).

    Returns two dictionaries. The numbers, a list each with one entry per class, in descending order of probability:
    `classes`, `probabilities` in 0..1, `logits` and `biases`. The pictures, on the CPU, one per class: MAPS ->
    (n, h, w) float64, conv5_x weighted by the weights of the class (Zhou et al. 2016, arXiv:1512.04150): its mean and
    the bias are the logit; and name of the mirror -> (n, 3, S, S), in units of the normalised image, from the gradient
    of the logit, `class_signal`.

    Raises CheckpointError when a picture is not finite.
    """
    trace = network.trace(inputs, STAGES[-1])
    features = trace.features[STAGES[-1]]
    maps = torch.einsum("ck,khw->chw", network.fc.weight.cpu().double(), features[0].cpu().double())
    biases = network.fc.bias.cpu().double()
    logits = maps.mean((1, 2)) + biases
    classes = logits.sort(descending=True, stable=True).indices[:count]
    repeated, pictures = trace.select(torch.zeros(len(classes), dtype=torch.int64)), {}
    signals = class_signal(network, repeated.features[STAGES[-1]], classes)
    for name, mirror in mirrors.items():
        pictures[name] = check_finite(mirror(signals, STAGES[-1], repeated).cpu(), f"reconstructions by {name}")
    columns = {"classes": classes, "probabilities": logits.softmax(0)[classes]}
    columns |= {"logits": logits[classes], "biases": biases[classes]}
    return {name: values.tolist() for name, values in columns.items()}, {MAPS: maps[classes]} | pictures


@register(
    "classes",
    "Evidence for a class",
    "Each row is the evidence for one class, on one scale per column; the mean of its class activation map and the "
    "bias are its logit, and the correlation says how little a column depends on the class.",
    needs="pictures",
)
def draw_classes(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Each picture with the evidence for its three most probable classes; at last the content of classes.json."""
    mirrors = mirrors_by_rule(inspection.network, RULES_SHOWN, settings.unpool)
    entries = []
    for picture in inspection.pictures:
        numbers, pictures = class_evidence(inspection.network, mirrors, inspection.inputs(picture.image[None]))
        names = [inspection.metadata.classes[number] for number in numbers["classes"]]
        entry = {"image": picture.origin} | numbers | {"classes": names, "maps": pictures[MAPS].tolist()}
        entry["correlation"] = {name: mean_correlation(values) for name, values in pictures.items()}
        pictures = {name: torch.cat([values, values[:1] - values[1:2]]) for name, values in pictures.items()}
        scale = {rule: max(robust_limit(pictures[rule])) for rule in RULES_SHOWN}
        entry["scale"] = {MAPS: pictures[MAPS].abs().max().item()} | scale
        image = to_array(inspection.resized(picture.image[None])[0])
        title = f"Evidence for the most probable classes of {style.truncate(picture.title, 60)}"
        title += style.unpooling_note(settings.unpool)
        yield Path(picture.folder, "classes"), classes_figure(image, entry, pictures, title, picture.choice)
        entries.append(entry)
    yield Path("classes"), entries


@style.styled
def classes_figure(image: np.ndarray, entry: dict, pictures: dict[str, Tensor], title: str, choice: str = "") -> Figure:
    """An image (H, W, 3); a row per class and the difference of the first two; a column per way to draw the evidence.

    entry     of classes.json
    pictures  as `class_evidence` returns them, and the difference of the first two classes
    choice    how the image was chosen
    """
    names = [style.truncate(name, 14) for name in entry["classes"]]
    logits, biases = ([style.format_two_digits(value) for value in entry[key]] for key in ("logits", "biases"))
    shares = map(style.format_percent, entry["probabilities"])
    labels = [
        f"{name}\n{share}\nlogit {a}\nbias {b}" for name, share, a, b in zip(names, shares, logits, biases, strict=True)
    ]
    difference = style.format_two_digits(entry["logits"][0] - entry["logits"][1])
    labels.append(f"{names[0]}\n\N{MINUS SIGN} {names[1]}\n{difference}")
    figure = style.new_figure(
        0.3 + 1.55 * len(labels),
        title,
        f"Class activation map: {STAGES[-1]} weighted by the class's weights in the last layer; red speaks for the "
        "class, blue against it; its mean and the bias are the logit. Guided and gradient: the logit's gradient, sent "
        "back to the pixels; grey is zero. Each column has one scale, also for the difference.",
        "Correlation: mean over the pairs of classes; near 1, a picture shows what is in the image, not what speaks "
        "for a class.",
        choice,
        **style.TIGHT,
    )
    grid = figure.subplots(len(labels), 1 + len(pictures), squeeze=False)
    for axes in grid[:, 0]:
        show_tile(axes)
    show_tile(grid[0, 0], image)
    grid[0, 0].set_title("image")
    grid[-1, 0].set_xlabel("correlation of the classes", loc="right")
    scale = entry["scale"]
    tiles = {MAPS: evidence_over_image(image, pictures[MAPS], scale[MAPS])}
    tiles |= {rule: diverging_rgb(to_array(pictures[rule]), scale[rule]) for rule in RULES_SHOWN}
    captions = {
        name: [*[""] * (len(labels) - 1), style.format_two_digits(value)]
        for name, value in entry["correlation"].items()
    }
    draw_rows(grid[:, 1:], tiles, labels, captions)
    for axes, name in zip(grid[0, 1:], tiles, strict=True):
        axes.set_title(f"{name}\n±{style.format_short(scale[name])}", color=style.RULE_STYLE.get(name, ("black",))[0])
    return figure
