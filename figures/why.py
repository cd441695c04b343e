"""Which groups of similar channels decide between two classes, where in the image, and what else excites them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import group_channels
from analysis.inspection import Inspection, Picture, picture_of, pictures_asked_for, score
from analysis.settings import Settings
from figures import style
from figures.comparison import AGAINST, FOR, evidence_over_image, show_tile
from figures.image_grid import to_array
from figures.registry import NotDrawn, register
from network import STAGES, ResNet18

GROUPS_SHOWN = 8
EXAMPLES_SHOWN = 4


@torch.inference_mode()
def split_decision(
    network: ResNet18, features: Tensor, groups: dict[int, list[int]], classes: Sequence[int] | None = None
) -> dict:
    """The logit of class a minus that of class b, split over groups and positions; in float64, on the CPU.

    features  (1, 512, h, w) of conv5_x of one image
    groups    a partition of the channels, as of `group_channels`
    classes   a and b; by default the two most probable classes

    Returns the numbers of why.json; `classes` are numbers of classes.
    """
    features = features[0].cpu().double()  # (512, h, w); MPS has no float64
    weights, biases = network.fc.weight.cpu().double(), network.fc.bias.cpu().double()
    logits = weights @ features.mean((1, 2)) + biases
    pair = list(classes or logits.sort(descending=True, stable=True).indices[:2].tolist())
    by_channel = (weights[pair[0]] - weights[pair[1]])[:, None, None] * features / features[0].numel()
    entries = []
    for representative, channels in groups.items():
        total = by_channel[channels].sum(0)
        entry = {"representative": representative, "channels": channels}
        entries.append(entry | {"contribution": total.sum().item(), "map": total.tolist()})
    return {
        "classes": pair,
        "logits": logits[pair].tolist(),
        "probabilities": logits.softmax(0)[pair].tolist(),
        "bias": (biases[pair[0]] - biases[pair[1]]).item(),
        "groups": sorted(entries, key=lambda group: -abs(group["contribution"])),
    }


def largest(decision: dict) -> list[dict]:
    """The groups that the figure shows, in descending order of contribution."""
    return sorted(decision["groups"][:GROUPS_SHOWN], key=lambda group: -group["contribution"])


@torch.inference_mode()
def mask_examples(inspection: Inspection, channels: list[int]) -> np.ndarray:
    """(m, S, S, 3) in 0..1: the searched images with the highest mean peak in these channels, in descending order.

    They are pale where the channels' mean activation is below half its maximum in that image.
    """
    means = inspection.search.peaks[STAGES[-1]][:, channels].double().mean(1)
    rows = means.sort(descending=True, stable=True).indices[:EXAMPLES_SHOWN]
    stored = inspection.images[inspection.searched[rows]]
    features = inspection.network.trace(inspection.inputs(stored), STAGES[-1]).features[STAGES[-1]]
    pictures = inspection.resized(stored)
    responses = features[:, channels].mean(1, keepdim=True).cpu()  # (m, 1, h, w)
    responses = F.interpolate(responses, pictures.shape[2:], mode="bilinear")
    is_weak = responses < responses.amax((2, 3), keepdim=True) / 2
    return to_array(torch.where(is_weak, 0.75 + 0.25 * pictures, pictures))


def class_numbers(asked: Sequence[str], names: Sequence[str]) -> tuple[int, int]:
    """Two classes by name or number -> their numbers. Raises ValueError for an unknown or repeated class."""
    numbers = {str(n): n for n in range(len(names))} | {name: n for n, name in enumerate(names)}
    for name in asked:
        if name not in numbers:
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ValueError(f"{name}: the network's classes are {known}, or 0 to {len(names) - 1}")
    a, b = (numbers[name] for name in asked)
    if a == b:
        raise ValueError(f"{' '.join(asked)}: pass two different classes")
    return a, b


def close_decision(inspection: Inspection, classes: tuple[int, int] | None = None) -> tuple[Picture, str]:
    """The searched image whose two probabilities are nearest to 70 and 30 %, and in words how it was chosen.

    Of the two most probable classes, over the correctly classified images; or of `classes`, over those of these images
    that are predicted as one of them. If there are none, over all searched images.
    """
    logits = inspection.search.logits
    probabilities, predicted = logits.softmax(1), logits.argmax(1)
    pairs = (probabilities if classes is None else probabilities[:, list(classes)]).topk(2).values
    suits, kind = torch.ones(len(logits), dtype=torch.bool), "predicted" if classes else "searched"
    if inspection.knows_labels:
        suits, kind = predicted == inspection.labels[inspection.searched], "correctly classified"
    if classes:
        suits &= torch.isin(predicted, torch.tensor(classes))
        kind += " as one of the two"
    if not suits.any():
        suits, kind = ~suits, "searched"
    distances = (pairs - torch.tensor((0.7, 0.3))).abs().sum(1)
    row = int(torch.where(suits, distances, torch.inf).argmin())
    words = f"of {style.plural(int(suits.sum()), 'test image')} {kind}, that with probabilities nearest to 70 and 30 %"
    return picture_of(inspection, int(inspection.searched[row])), words


def most_confident_mistake(inspection: Inspection) -> tuple[Picture, str, tuple[int, int]]:
    """A test image, how it was chosen, and its predicted and true class. Raises NotDrawn when there is no mistake."""
    if not (scores := score(inspection)):
        raise NotDrawn("it needs test images of the network's classes")
    wrong = scores.labels != scores.predicted
    if not wrong.any():
        raise NotDrawn(f"there are no mistakes in {len(wrong):,} test images")
    row = int(np.where(wrong, scores.confidence, -1).argmax())
    picture = picture_of(inspection, int(inspection.searched[row]))
    words = f"of {style.plural(int(wrong.sum()), 'mistake')} in {len(wrong):,} test images, the most confident one"
    return picture, words, (int(scores.predicted[row]), int(scores.labels[row]))


@register(
    "why",
    "Why this class and not that one",
    "Each bar is what a group of similar channels adds to the difference of two logits, and its map shows where; all "
    "groups and the bias add up to the difference exactly.",
    needs="both",
    stages=STAGES[-1:],
)
def draw_why(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """The user's pictures or a close decision, then the most confident mistake; at last the content of why.json."""
    if STAGES[-1] not in inspection.search.peaks:
        raise NotDrawn(f"it needs {STAGES[-1]} among the --stages")
    try:
        groups = group_channels(inspection.search.peaks[STAGES[-1]])
    except ValueError as error:
        raise NotDrawn(f"{error} at {STAGES[-1]}") from error
    classes = class_numbers(settings.classes, inspection.metadata.classes) if settings.classes else None
    jobs = [(Path(picture.folder, "why"), picture, "", classes) for picture in inspection.pictures]
    if inspection.pictures and not pictures_asked_for(inspection, settings):
        jobs = [(Path("why"), *close_decision(inspection, classes), classes)]
    try:
        jobs.append((Path("why_mistake"), *most_confident_mistake(inspection)))
    except NotDrawn as reason:
        print(f"why_mistake: left out, {reason}")
    entries = []
    for path, picture, chosen, pair in jobs:
        with torch.inference_mode():
            trace = inspection.network.trace(inspection.inputs(picture.image[None]), STAGES[-1])
        decision = split_decision(inspection.network, trace.features[STAGES[-1]], groups, pair)
        names = [inspection.metadata.classes[number] for number in decision["classes"]]
        entries.append({"image": picture.origin, "chosen": chosen} | decision | {"classes": names})
        image = to_array(inspection.resized(picture.image[None]))[0]
        examples = [mask_examples(inspection, group["channels"]) for group in largest(decision)]
        yield path, why_figure(entries[-1], picture, image, examples)
    yield Path("why"), entries


@style.styled
def why_figure(entry: dict, picture: Picture, image: np.ndarray, examples: list[np.ndarray]) -> Figure:
    """The image and all evidence; below, each group's bar, where it comes from, and what excites the group most.

    entry     of why.json
    image     (S, S, 3) in 0..1
    examples  n times (m, S, S, 3) in 0..1: the test images that excite each of the groups shown most
    """
    shown, names = largest(entry), [style.truncate(name, 16) for name in entry["classes"]]
    maps = torch.tensor([group["map"] for group in shown], dtype=torch.float64)
    total = torch.tensor([group["map"] for group in entry["groups"]], dtype=torch.float64).sum(0, keepdim=True)
    limits = [values.abs().max().item() for values in (maps, total)]
    first, second = (
        f"{text} ({style.format_percent(probability)}{', the true class' if name == picture.label else ''})"
        for text, name, probability in zip(names, entry["classes"], entry["probabilities"], strict=True)
    )
    figure = style.new_figure(
        1.85 + 0.8 * len(shown),
        f"Why {first} and not {second}?",
        "A bar is what a group of similar channels adds to the logit difference; its map is the same number by "
        f"position in {STAGES[-1]}: the values sum to the bar. Red speaks for {names[0]}, blue for {names[1]}: full "
        f"color is ±{style.format_short(limits[0])} for groups, ±{style.format_short(limits[1])} for all channels.",
        "Right: the test images with the highest mean peak in the group, pale where its mean activation is below half "
        "its maximum in that image." + f" The image, {picture.title}: {entry['chosen']}." * bool(entry["chosen"]),
        **style.TIGHT | {"h_pad": 0.03},
    )
    above, below = figure.subfigures(2, height_ratios=(1.25, 0.8 * len(shown) + 0.6))
    header = above.subplots(1, 3, width_ratios=(1, 1, 2.5))
    tiles = (image, *evidence_over_image(image, total, limits[1]), None)
    for axes, name, tile in zip(header, ("image", "all channels", ""), tiles, strict=True):
        show_tile(axes, tile)
        axes.set_title(name)
    contributions = [group["contribution"] for group in entry["groups"]]
    text = (
        f"Logit difference {signed(entry['logits'][0] - entry['logits'][1])} = bias {signed(entry['bias'])} plus "
        f"{style.plural(len(contributions), 'group')} {signed(sum(contributions))}, of which those below sum to "
        f"{signed(sum(contributions[:GROUPS_SHOWN]))}."
    )
    header[2].text(0, 0.95, "\n".join(style.wrap([text], 3.2)), va="top", linespacing=1.6)
    widths, heights = (3, *[1] * (1 + EXAMPLES_SHOWN)), (*[1] * len(shown), 0.7)
    grid = below.add_gridspec(len(heights), len(widths), width_ratios=widths, height_ratios=heights)
    draw_bars(below.add_subplot(grid[:, 0]), entry)
    for row, (group, tile) in enumerate(zip(shown, evidence_over_image(image, maps, limits[0]), strict=True)):
        axes = [below.add_subplot(grid[row, column]) for column in range(1, 2 + len(examples[row]))]
        for tile_axes, picture in zip(axes, (tile, *examples[row]), strict=True):
            show_tile(tile_axes, picture)
        axes[0].spines[:].set(visible=True, linewidth=1.5, color=FOR if group["contribution"] >= 0 else AGAINST)
        if row == 0:
            axes[0].set_title("where")
            axes[1].set_title("test images that excite it most", loc="left")
    return figure


def draw_bars(axes: Axes, entry: dict) -> None:
    """A bar for each group shown; below, the other groups together and the bias, so that all bars sum to the total."""
    shown, others = largest(entry), entry["groups"][GROUPS_SHOWN:]
    values = [group["contribution"] for group in shown]
    values += [sum(group["contribution"] for group in others), entry["bias"]]
    count = len(shown)
    y = [*(n + 0.5 for n in range(count)), count + 0.2, count + 0.5]
    colors = [*(FOR if value >= 0 else AGAINST for value in values[:count]), "0.55", "0.55"]
    bars = axes.barh(y, values, [*[0.55] * count, 0.18, 0.18], color=colors)
    axes.bar_label(bars, [signed(value) for value in values], padding=2)
    labels = []
    for group in shown:
        others_like_it = len(group["channels"]) - 1
        labels.append(f"channel {group['representative']}" + f"\nand {others_like_it} like it" * (others_like_it > 0))
    axes.set_yticks(y, [*labels, f"{len(others)} other groups", "bias"])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_ylim(count + 0.7, 0)
    ends = np.array([min(0, *values), max(0, *values)])
    room = 0.3 * (np.ptp(ends) or 1)  # for the numbers at the bars' ends, and for the titles
    axes.set_xlim(*(ends + np.where(ends == 0, 0.75, 1) * [-room, room]))
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_title(f"← for {style.truncate(entry['classes'][1], 14)}", loc="left", color=AGAINST)
    axes.set_title(f"for {style.truncate(entry['classes'][0], 14)} →", loc="right", color=FOR)


def signed(value: float) -> str:
    """Two decimals with a sign."""
    return style.format_number(round(value, 2) + 0.0, "+.2f")
