"""Which groups of similar channels decide between two classes, where in the image, and what else excites them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import ChannelGroups, group_channels
from analysis.inspection import Inspection, Picture, picture_of, pictures_asked_for
from analysis.scores import score
from analysis.settings import Settings
from figures.comparison import AGAINST, FOR, evidence_over_image, show_tile
from figures.image_grid import to_array
from figures.registry import NotDrawn, register
from figures.style import (
    WIDTH_INCHES,
    axes_at,
    bare_axes_at,
    format_percent,
    heading,
    heading_inches,
    plural,
    styled,
    text_at,
    truncate,
)  # fmt: skip
from network import STAGES, ResNet18

STAGE = STAGES[-1]  # the logits are linear in it
GROUPS_SHOWN = 8
EXAMPLES_SHOWN = 4
CLOSE = (0.7, 0.3)  # probabilities of two classes that are close: in words 70 and 30 %
HEADER, ROW, TILE = 1.5, 0.77, 0.73  # inches: image and sum above the rows; from row to row; the side of a tile


@torch.inference_mode()
def split_decision(
    network: ResNet18, features: Tensor, groups: ChannelGroups, classes: Sequence[int] | None = None
) -> dict:
    """The logit of class a minus that of class b, split over groups and positions; in float64, on the CPU.

    features  (1, 512, h, w) of conv5_x of one image
    groups    a partition of the channels
    classes   a and b; by default the two most probable classes

    Returns
    classes, logits, probabilities   of a and b; the logits' difference is `bias` plus all contributions
    bias                             of a minus that of b
    groups                           in descending order of absolute contribution, each with its `representative`,
                                     `channels`, `contribution` and `map`: the contribution by position, h lists of w
    """
    features = features[0].cpu().double()  # (512, h, w); MPS has no float64
    weights, biases = network.fc.weight.cpu().double(), network.fc.bias.cpu().double()
    logits = weights @ features.mean((1, 2)) + biases
    pair = list(classes or logits.sort(descending=True, stable=True).indices[:2].tolist())
    by_channel = (weights[pair[0]] - weights[pair[1]])[:, None, None] * features / features[0].numel()
    entries = []
    for representative, channels in zip(groups.representatives, groups.members, strict=True):
        total = by_channel[list(channels)].sum(0)
        entry = {"representative": representative, "channels": list(channels)}
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


def most_exciting(peaks: Tensor, channels: Sequence[int], count: int = EXAMPLES_SHOWN) -> list[int]:
    """The images whose mean peak in these channels is highest, in descending order; peaks: (N, C), on the CPU."""
    means = peaks[:, list(channels)].double().mean(1)
    return means.sort(descending=True, stable=True).indices[:count].tolist()


@torch.inference_mode()
def mask_examples(inspection: Inspection, channels: Sequence[int]) -> np.ndarray:
    """(m, S, S, 3) in 0..1: the searched images that excite these channels most, pale where they respond little.

    That is, where their mean activation is below half its maximum in that image.
    """
    rows = most_exciting(inspection.search.peaks[STAGE], channels)
    stored = inspection.images[inspection.searched[rows]]
    features = inspection.network.trace(inspection.inputs(stored), STAGE).features[STAGE]
    pictures = inspection.resized(stored)
    responses = features[:, list(channels)].mean(1, keepdim=True).cpu()  # (m, 1, h, w)
    responses = F.interpolate(responses, pictures.shape[2:], mode="bilinear")
    is_weak = responses < responses.amax((2, 3), keepdim=True) / 2
    return to_array(torch.where(is_weak, 0.75 + 0.25 * pictures, pictures))


def class_numbers(asked: Sequence[str], names: Sequence[str]) -> tuple[int, int]:
    """Two classes by name or number -> their numbers. Raises ValueError for an unknown or repeated class."""
    numbers = {str(n): n for n in range(len(names))} | {name: n for n, name in enumerate(names)}
    if unknown := [name for name in asked if name not in numbers]:
        known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{unknown[0]}: the network's classes are {known}, or 0 to {len(names) - 1}")
    a, b = (numbers[name] for name in asked)
    if a == b:
        raise ValueError(f"{' '.join(asked)}: pass two different classes")
    return a, b


def similar_channels(inspection: Inspection) -> ChannelGroups:
    """The groups of similar channels; raises NotDrawn when there are none."""
    if STAGE not in inspection.search.peaks:
        raise NotDrawn(f"it needs {STAGE} among the --stages")
    if len(inspection.metadata.classes) < 2:
        raise NotDrawn("it needs a network of two classes or more")
    try:
        return group_channels(inspection.search.peaks[STAGE])
    except ValueError as error:
        raise NotDrawn(f"{error} at {STAGE}") from error


def close_decision(inspection: Inspection, classes: tuple[int, int] | None = None) -> tuple[Picture, str]:
    """The searched image whose two probabilities are nearest to CLOSE, and in words how it was chosen.

    Of the two most probable classes, over the correctly classified images; or of `classes`, over those of these images
    that are predicted as one of them. If there are none, over all searched images.
    """
    logits = inspection.search.logits
    probabilities, predicted = logits.softmax(1), logits.argmax(1)
    pairs = (probabilities if classes is None else probabilities[:, list(classes)]).topk(2).values
    suits, kind = torch.ones(len(logits), dtype=torch.bool), "searched"
    if inspection.knows_labels:
        suits, kind = predicted == inspection.labels[inspection.searched], "correctly classified"
    if classes:
        suits &= torch.isin(predicted, torch.tensor(classes))
        kind += " as one of the two"
    if not suits.any():
        suits, kind = ~suits, "searched"
    distances = (pairs - torch.tensor(CLOSE)).abs().sum(1)
    row = int(torch.where(suits, distances, torch.inf).argmin())
    words = f"of {plural(int(suits.sum()), 'test image')} {kind}, that with probabilities nearest to 70 and 30 %"
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
    words = f"of {plural(int(wrong.sum()), 'mistake')} in {len(wrong):,} test images, the most confident one"
    return picture, words, (int(scores.predicted[row]), int(scores.labels[row]))


def decisions_in_words(entries: list[dict], largest: int = 10) -> str:
    """What why.json says of each image, a sentence each, for the report."""
    sentences = []
    for entry in entries:
        image = f"Test image {entry['image']}" if isinstance(entry["image"], int) else entry["image"]
        (first, second), contributions = entry["classes"], [group["contribution"] for group in entry["groups"]]
        sentences.append(
            f"{image}, {first} against {second}: logit difference {signed(entry['logits'][0] - entry['logits'][1])} = "
            f"bias {signed(entry['bias'])} plus {len(contributions)} groups {signed(sum(contributions))}, of which the "
            f"{min(largest, len(contributions))} largest sum to {signed(sum(contributions[:largest]))}."
        )
    return " ".join(sentences)


@register(
    "why",
    "Why this class and not that one",
    "Each bar is what a group of similar channels adds to the difference of two logits, and its map shows where; all "
    "groups and the bias add up to the difference exactly.",
    needs="both",
    stages=STAGES[-1:],
    words=decisions_in_words,
)
def draw_why(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """The user's pictures or a close decision, then the most confident mistake; at last the content of why.json."""
    groups = similar_channels(inspection)
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
            trace = inspection.network.trace(inspection.inputs(picture.image[None]), STAGE)
        decision = split_decision(inspection.network, trace.features[STAGE], groups, pair)
        names = [inspection.metadata.classes[number] for number in decision["classes"]]
        entries.append({"image": picture.origin, "chosen": chosen} | decision | {"classes": names})
        image = to_array(inspection.resized(picture.image[None]))[0]
        examples = [mask_examples(inspection, group["channels"]) for group in largest(decision)]
        yield path, why_figure(entries[-1], picture, image, examples)
    yield Path("why"), entries


@styled
def why_figure(entry: dict, picture: Picture, image: np.ndarray, examples: list[np.ndarray]) -> Figure:
    """The image and all evidence; below, each group's bar, where it comes from, and what excites the group most.

    entry     of why.json
    image     (S, S, 3) in 0..1
    examples  n times (m, S, S, 3) in 0..1: the test images that excite each of the groups shown most
    """
    shown, short = largest(entry), [truncate(name, 16) for name in entry["classes"]]
    maps = torch.tensor([group["map"] for group in shown], dtype=torch.float64)
    total = torch.tensor([group["map"] for group in entry["groups"]], dtype=torch.float64).sum(0)
    limits = [values.abs().max().item() for values in (maps, total)]
    first, second = (
        f"{text} ({format_percent(probability)}{', the true class' if name == picture.label else ''})"
        for text, name, probability in zip(short, entry["classes"], entry["probabilities"], strict=True)
    )
    title = f"Why {first} and not {second}?"
    caption = (
        "A bar is what a group of similar channels adds to the logit difference; its map is the same number by "
        f"position in {STAGE}: the values sum to the bar. Blue speaks for {short[0]}, red for {short[1]}: full color "
        f"is ±{limits[0]:.2g} in the maps of the groups, ±{limits[1]:.2g} in that of all channels.",
        "Right: the test images with the highest mean peak in the group, pale where its mean activation is below half "
        "its maximum in that image." + f" The image above: {entry['chosen']}." * bool(entry["chosen"]),
    )
    above, below = heading_inches(title, *caption)
    top, rows = above + HEADER + 0.45, len(shown) * ROW
    figure = Figure((WIDTH_INCHES, top + rows + 0.68 + below))
    heading(figure, title, *caption)
    side = HEADER - 0.2
    overlay = evidence_over_image(image, total[None], limits[1])[0]
    for column, (name, tile) in enumerate((("image", image), ("all channels", overlay))):
        show_tile(axes := axes_at(figure, 0.08 + column * (side + 0.08), above + 0.3, side, side), tile)
        axes.set_title(name, pad=3)
    for n, line in enumerate(sum_in_words(entry, picture)):
        text_at(figure, 2 * side + 0.35, above + 0.4 + 0.18 * n, line, ha="left")
    left = WIDTH_INCHES - (1 + EXAMPLES_SHOWN) * ROW - 0.07
    right = left + ROW + 0.04
    draw_bars(bare_axes_at(figure, 0.9, top, left - 1.0, rows + 0.55), entry)
    for row, (group, tile) in enumerate(zip(shown, evidence_over_image(image, maps, limits[0]), strict=True)):
        show_tile(axes := axes_at(figure, left, top + row * ROW, TILE, TILE), tile)
        axes.spines[:].set(visible=True, linewidth=1.5, color=FOR if group["contribution"] >= 0 else AGAINST)
        for column, example in enumerate(examples[row]):
            show_tile(axes_at(figure, right + column * ROW, top + row * ROW, TILE, TILE), example)
    text_at(figure, left, top - 0.05, "where", ha="left", va="bottom")
    text_at(figure, right, top - 0.05, "test images that excite the group most", ha="left", va="bottom")
    return figure


def sum_in_words(entry: dict, picture: Picture) -> Iterator[str]:
    """The image, and the sum that the bars split."""
    groups, shown = entry["groups"], largest(entry)
    total, largest_total = (signed(sum(group["contribution"] for group in part)) for part in (groups, shown))
    yield truncate(picture.title, 60)
    yield f"logit difference {signed(entry['logits'][0] - entry['logits'][1])}"
    yield f"= bias {signed(entry['bias'])} plus {plural(len(groups), 'group')} of similar channels {total}"
    yield f"The {len(shown)} largest groups, below, sum to {largest_total}."


def draw_bars(axes: Axes, entry: dict) -> None:
    """A bar for each group shown; below, the other groups together and the bias, so that all bars sum to the total."""
    shown, others = largest(entry), entry["groups"][GROUPS_SHOWN:]
    values = [group["contribution"] for group in shown]
    values += [sum(group["contribution"] for group in others), entry["bias"]]
    end = len(shown) * ROW
    y = [*(n * ROW + TILE / 2 for n in range(len(shown))), end + 0.13, end + 0.36]
    colors = [*(FOR if group["contribution"] >= 0 else AGAINST for group in shown), "0.55", "0.55"]
    bars = axes.barh(y, values, [*[0.42] * len(shown), 0.14, 0.14], color=colors)
    axes.bar_label(bars, [signed(value) for value in values], padding=2)
    axes.set_yticks(y, [*map(group_label, shown), f"{len(others)} other groups", "bias"])
    axes.set_ylim(end + 0.55, 0)
    low, high = min(0, *values), max(0, *values)
    room = 0.3 * (high - low or 1)  # for the numbers at the bars' ends, and for the words above
    axes.set_xlim(min(low - room * (low < 0), -0.75 * room), max(high + room * (high > 0), 0.75 * room))
    axes.axvline(0, color="black", linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    texts = (f"for {truncate(entry['classes'][0], 14)} →", f"← for {truncate(entry['classes'][1], 14)}")
    for text, x, color, side in zip(texts, (1, 0), (FOR, AGAINST), ("right", "left"), strict=True):
        above = {"xycoords": "axes fraction", "xytext": (0, 3.6), "textcoords": "offset points"}
        axes.annotate(text, (x, 1), color=color, ha=side, va="bottom", **above)


def group_label(group: dict) -> str:
    """How many channels the group has, and which one they resemble."""
    count, number = len(group["channels"]), group["representative"]
    return f"{count} channels\nlike {number}" if count > 1 else f"channel {number}"


def signed(value: float) -> str:
    """Two decimals with a sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
