"""Which groups of similar channels decide between two classes, what each saw, and what else excites it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channel_groups import ChannelGroups, group_channels
from analysis.inspection import Inspection, Picture, picture_of
from analysis.reconstruction import mirrors_by_rule, project
from analysis.scores import score
from analysis.settings import Settings
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, bare_axes_at, format_percent, styled, truncate, unpooling_note
from network import STAGES, ResNet18
from reverse_network import class_signal

STAGE = STAGES[-1]  # the logits are linear in it
GROUPS_SHOWN = 8
EXAMPLES_SHOWN = 4
COLORS = ("#2166ac", ERROR_COLOR)  # of what speaks for class a, and for class b
REMAINDER = "0.55"
JSON_FIELDS = ("logits", "bias", "groups")  # of Decision, in why.json
TOP, ROW, TILE = 1.68, 0.73, 0.68  # inches: where the rows begin, from row to row, and the side of a tile


@dataclass(frozen=True)
class Group:
    """What a group of similar channels adds to the difference of two logits.

    representative  the channel that the others of the group resemble
    channels        all channels of the group, in ascending order
    contribution    to logit a minus logit b
    """

    representative: int
    channels: tuple[int, ...]
    contribution: float


@dataclass(frozen=True)
class Decision:
    """The difference of two logits, split over all channels of conv5_x.

    classes        numbers of the classes a and b
    logits         of a and b; their difference is `bias` plus the contributions of all groups
    probabilities  of a and b, in 0..1
    bias           of a minus that of b
    groups         every group of channels, in descending order of absolute contribution
    """

    classes: tuple[int, int]
    logits: tuple[float, float]
    probabilities: tuple[float, float]
    bias: float
    groups: tuple[Group, ...]

    def largest(self) -> list[Group]:
        """The groups that the figure shows, in descending order of contribution."""
        return sorted(self.groups[:GROUPS_SHOWN], key=lambda group: -group.contribution)


@torch.inference_mode()
def split_decision(
    network: ResNet18, features: Tensor, groups: ChannelGroups, classes: Sequence[int] | None = None
) -> Decision:
    """The logit of a class minus that of another, split over the groups; all sums are taken in float64, on the CPU.

    features  (1, 512, h, w) of conv5_x of one image
    groups    a partition of the channels
    classes   a and b; by default the two most probable classes
    """
    means = features[0].cpu().double().mean((1, 2))  # (512,); MPS has no float64
    weights, biases = network.fc.weight.cpu().double(), network.fc.bias.cpu().double()
    logits = weights @ means + biases
    a, b = classes or logits.sort(descending=True, stable=True).indices[:2].tolist()
    contributions = (weights[a] - weights[b]) * means
    split = [
        Group(representative, channels, contributions[list(channels)].sum().item())
        for representative, channels in zip(groups.representatives, groups.members, strict=True)
    ]
    return Decision(
        (a, b),
        tuple(logits[[a, b]].tolist()),
        tuple(logits.softmax(0)[[a, b]].tolist()),
        (biases[a] - biases[b]).item(),
        tuple(sorted(split, key=lambda group: -abs(group.contribution))),
    )


@torch.inference_mode()
def group_signals(network: ResNet18, features: Tensor, classes: tuple[int, int], groups: Sequence[Group]) -> Tensor:
    """What each group adds to the difference at every unit of conv5_x: (n, 512, h, w), zero outside its channels.

    With the sign that makes evidence for the group's own side positive: the class that the group as a whole speaks for.

    features: (1, 512, h, w) of conv5_x of one image
    """
    first, second = (class_signal(network, features, number, weighted=True) for number in classes)
    signals = torch.zeros_like(features).repeat(len(groups), 1, 1, 1)
    for signal, group in zip(signals, groups, strict=True):
        channels = list(group.channels)
        signal[channels] = (first - second)[0, channels] * (1 if group.contribution >= 0 else -1)
    return signals


def most_exciting(peaks: Tensor, channels: Sequence[int], count: int = EXAMPLES_SHOWN) -> list[int]:
    """The images whose mean peak in these channels is highest, in descending order; peaks: (N, C), on the CPU."""
    means = peaks[:, list(channels)].double().mean(1)
    return means.sort(descending=True, stable=True).indices[:count].tolist()


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


def most_confident_mistake(inspection: Inspection) -> tuple[Picture, tuple[int, int]]:
    """A test image, and its predicted class and true class. Raises NotDrawn when there is no mistake."""
    if not (scores := score(inspection)):
        raise NotDrawn("it needs test images of the network's classes")
    wrong = scores.labels != scores.predicted
    if not wrong.any():
        raise NotDrawn(f"there are no mistakes in {len(wrong):,} test images")
    row = int(np.where(wrong, scores.confidence, -1).argmax())
    picture = picture_of(inspection, int(inspection.searched[row]))
    return picture, (int(scores.predicted[row]), int(scores.labels[row]))


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
    "Each bar is what a group of similar channels adds to the difference of two logits; all groups and the bias "
    "add up to it exactly.",
    needs="both",
    stages=STAGES[-1:],
    words=decisions_in_words,
)
def draw_why(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Each picture, then the most confident mistake among the searched images; at last the content of why.json."""
    groups = similar_channels(inspection)
    classes = class_numbers(settings.classes, inspection.metadata.classes) if settings.classes else None
    jobs = [(Path(picture.folder, "why"), picture, classes) for picture in inspection.pictures]
    try:
        jobs.append((Path("why_mistake"), *most_confident_mistake(inspection)))
    except NotDrawn as reason:
        print(f"why_mistake: left out, {reason}")
    (mirror,) = mirrors_by_rule(inspection.network, ["guided"], settings.unpool).values()
    note = f"guided{unpooling_note(settings.unpool)}"
    entries = []
    for path, picture, pair in jobs:
        with torch.inference_mode():
            trace = inspection.network.trace(inspection.inputs(picture.image[None]), STAGE)
        decision = split_decision(inspection.network, trace.features[STAGE], groups, pair)
        names = [inspection.metadata.classes[number] for number in decision.classes]
        parts = asdict(decision)
        entries.append({"image": picture.origin, "classes": names} | {key: parts[key] for key in JSON_FIELDS})
        signals = group_signals(inspection.network, trace.features[STAGE], decision.classes, decision.largest())
        seen = project(mirror, signals, STAGE, trace)
        best = [most_exciting(inspection.search.peaks[STAGE], group.channels) for group in decision.largest()]
        images = [inspection.images[inspection.searched[rows]] for rows in best]
        image, *examples = (to_array(inspection.resized(stored)) for stored in (picture.image[None], *images))
        yield path, why_figure(decision, names, picture, image[0], seen, examples, note)
    yield Path("why"), entries


@styled
def why_figure(
    decision: Decision,
    names: Sequence[str],
    picture: Picture,
    image: np.ndarray,
    seen: Tensor,
    examples: Sequence[np.ndarray],
    note: str,
) -> Figure:
    """The image and the answer; below, each group's bar, what the group saw in the image, and what excites it most.

    names     of the classes a and b
    image     (S, S, 3) in 0..1: the picture
    seen      (n, 3, S, S): what each of `decision.largest()` saw
    examples  n times (m, S, S, 3) in 0..1: the test images that excite each of these groups most
    note      on the rule, for the caption
    """
    shown = decision.largest()
    rows = len(shown) * ROW
    height = TOP + rows + 0.62
    figure = Figure((WIDTH_INCHES, height))
    bare_axes_at(figure, 0.08, 0.08, 1.15, 1.15).imshow(image, interpolation="antialiased")
    write_answer(figure, decision, names, picture, note)
    draw_bars(bare_axes_at(figure, 0.9, TOP, 2.15, rows + 0.57), decision, names)
    left = WIDTH_INCHES - 0.06 - (1 + EXAMPLES_SHOWN) * ROW - 0.06
    right = left + ROW + 0.06
    tiles = diverging_tiles(seen)
    for row, group in enumerate(shown):
        axes = bare_axes_at(figure, left, TOP + row * ROW, TILE, TILE)
        axes.imshow(tiles[row], interpolation="antialiased")
        axes.spines[:].set(visible=True, linewidth=1.5, color=COLORS[group.contribution < 0])
        for column, example in enumerate(examples[row]):
            axes = bare_axes_at(figure, right + column * ROW, TOP + row * ROW, TILE, TILE)
            axes.imshow(example, interpolation="antialiased")
    y, middle = 1 - (TOP - 0.05) / height, right + (EXAMPLES_SHOWN * ROW - 0.05) / 2
    for x, text in ((left + TILE / 2, "what it\nsaw here"), (middle, "test images that excite it most")):
        figure.text(x / WIDTH_INCHES, y, text, ha="center", va="bottom")
    return figure


def write_answer(figure: Figure, decision: Decision, names: Sequence[str], picture: Picture, note: str) -> None:
    """The question, the sum that answers it, and what is drawn, beside the image."""
    first, second = (
        f"{truncate(name, 16)} ({format_percent(probability)}{', the true class' if name == picture.label else ''})"
        for name, probability in zip(names, decision.probabilities, strict=True)
    )
    sums = (sum(group.contribution for group in groups) for groups in (decision.groups, decision.largest()))
    total, shown = map(signed, sums)
    lines = (
        truncate(picture.title, 92),
        f"Logit difference {signed(decision.logits[0] - decision.logits[1])} = bias {signed(decision.bias)} plus "
        f"{len(decision.groups)} groups of similar channels {total}.",
        f"The {len(decision.largest())} largest groups, below, sum to {shown}.",
        f"What a group saw: its part of the difference, sent back to the pixels ({note}).",
        "In these pictures grey is zero, and each one has its own scale.",
    )
    x, height = 1.38 / WIDTH_INCHES, figure.get_figheight()
    figure.text(x, 1 - 0.24 / height, f"Why {first} and not {second}?", va="center", fontsize=10)
    for n, line in enumerate(lines):
        figure.text(x, 1 - (0.5 + 0.17 * n) / height, truncate(line, 105), va="center", fontsize=7.5)


def draw_bars(axes: Axes, decision: Decision, names: Sequence[str]) -> None:
    """A bar for each group shown; below, the other groups together and the bias, so that all bars sum to the total."""
    shown, others = decision.largest(), decision.groups[GROUPS_SHOWN:]
    values = [group.contribution for group in shown]
    values += [sum(group.contribution for group in others), decision.bias]
    end = len(shown) * ROW
    y = [*(n * ROW + TILE / 2 for n in range(len(shown))), end + 0.13, end + 0.36]
    colors = [*(COLORS[group.contribution < 0] for group in shown), REMAINDER, REMAINDER]
    bars = axes.barh(y, values, [*[0.42] * len(shown), 0.14, 0.14], color=colors)
    axes.bar_label(bars, [signed(value) for value in values], padding=2)
    axes.set_yticks(y, [*map(group_label, shown), f"{len(others)} other groups", "bias"])
    axes.set_ylim(end + 0.57, 0)
    low, high = min(0, *values), max(0, *values)
    room = 0.3 * (high - low or 1)  # for the numbers at the bars' ends, and for the words above
    axes.set_xlim(min(low - room * (low < 0), -0.75 * room), max(high + room * (high > 0), 0.75 * room))
    axes.axvline(0, color="black", linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    texts = (f"for {truncate(names[0], 14)} →", f"← for {truncate(names[1], 14)}")
    for text, x, color, side in zip(texts, (1, 0), COLORS, ("right", "left"), strict=True):
        above = {"xycoords": "axes fraction", "xytext": (0, 3.6), "textcoords": "offset points"}
        axes.annotate(text, (x, 1), color=color, ha=side, va="bottom", **above)


def group_label(group: Group) -> str:
    """How many channels the group has, and which one they resemble."""
    count = len(group.channels)
    return f"{count} channels\nlike {group.representative}" if count > 1 else f"channel {group.representative}"


def signed(value: float) -> str:
    """Two decimals with a sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
