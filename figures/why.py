"""Which groups of similar channels decide between two classes, what each saw, and what else excites it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.channel_groups import ChannelGroups, group_channels
from analysis.class_evidence import STAGE
from analysis.inspection import Inspection, Picture, picture_of
from analysis.reconstruction import mirrors_by_rule
from analysis.scores import score
from analysis.settings import Settings
from analysis.why import Decision, GroupShare, class_numbers, group_pictures, most_exciting, split_decision
from figures.image_grid import diverging_tiles, to_array
from figures.registry import NotDrawn, register
from figures.style import ERROR_COLOR, WIDTH_INCHES, bare_axes_at, format_percent, styled, truncate, unpooling_note
from network import STAGES

GROUPS_SHOWN = 8
EXAMPLES_SHOWN = 4
FOR_FIRST, FOR_SECOND = "#2166ac", ERROR_COLOR
REMAINDER = "0.55"
TOP, ROW, TILE = 1.68, 0.73, 0.68  # inches: where the rows begin, from row to row, and the side of a tile


@dataclass(frozen=True)
class ShownDecision:
    """A decision, and what is drawn of it.

    image     (S, S, 3) in 0..1
    title     what the image is
    names     of the classes a and b
    label     the image's class, if known
    shown     places in decision.groups, in descending order of contribution
    pictures  (n, S, S, 3): what each of these groups saw, by the guided rule
    examples  n times (m, S, S, 3) in 0..1: the test images that excite each of these groups most
    note      what the rule is, for the caption
    """

    decision: Decision
    image: np.ndarray
    title: str
    names: tuple[str, str]
    label: str | None
    shown: tuple[int, ...]
    pictures: torch.Tensor
    examples: tuple[np.ndarray, ...]
    note: str


def decisions_in_words(entries: list[dict], largest: int = 10) -> str:
    """What why.json says of each image, a sentence each, for the report."""
    sentences = []
    for entry in entries:
        image = f"Test image {entry['image']}" if isinstance(entry["image"], int) else entry["image"]
        (first, second), shares = entry["classes"], [group["contribution"] for group in entry["groups"]]
        sentences.append(
            f"{image}, {first} against {second}: logit difference {signed(entry['logits'][0] - entry['logits'][1])} = "
            f"bias {signed(entry['bias'])} plus {len(shares)} groups {signed(sum(shares))}, of which the "
            f"{min(largest, len(shares))} largest sum to {signed(sum(shares[:largest]))}."
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
        index, predicted, true = most_confident_mistake(inspection)
        jobs.append((Path("why_mistake"), picture_of(inspection, index), (predicted, true)))
    except NotDrawn as reason:
        print(f"why_mistake: left out, {reason}")
    entries = []
    for path, picture, pair in jobs:
        content = explain(inspection, settings, picture, groups, pair)
        entries.append(json_entry(content, picture.origin))
        yield path, why_figure(content)
    yield Path("why"), entries


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


def most_confident_mistake(inspection: Inspection) -> tuple[int, int, int]:
    """Index in the test split, predicted class and true class. Raises NotDrawn when there is no mistake."""
    if not (scores := score(inspection)):
        raise NotDrawn("it needs test images of the network's classes")
    wrong = scores.labels != scores.predicted
    if not wrong.any():
        raise NotDrawn(f"there are no mistakes in {len(wrong):,} test images")
    place = int(np.where(wrong, scores.confidence, -1).argmax())
    return int(inspection.searched[place]), int(scores.predicted[place]), int(scores.labels[place])


def explain(
    inspection: Inspection,
    settings: Settings,
    picture: Picture,
    groups: ChannelGroups,
    classes: tuple[int, int] | None,
) -> ShownDecision:
    """All that the figure of one picture shows."""
    network, inputs = inspection.network, inspection.inputs(picture.image[None])
    with torch.inference_mode():
        features = network.trace(inputs, STAGE).features[STAGE]
    decision = split_decision(network, features, groups, classes)
    shown = sorted(range(len(decision.groups))[:GROUPS_SHOWN], key=lambda n: -decision.groups[n].contribution)
    shares = [decision.groups[n] for n in shown]
    (mirror,) = mirrors_by_rule(network, ["guided"], settings.unpool).values()
    peaks = inspection.search.peaks[STAGE]
    best = [inspection.searched[most_exciting(peaks, share.channels, EXAMPLES_SHOWN)] for share in shares]
    return ShownDecision(
        decision,
        to_array(inspection.resized(picture.image[None])[0]),
        picture.title,
        tuple(inspection.metadata.classes[number] for number in decision.classes),
        picture.label,
        tuple(shown),
        group_pictures(network, mirror, inputs, decision.classes, shares),
        tuple(to_array(inspection.resized(inspection.images[images])) for images in best),
        f"guided{unpooling_note(settings.unpool)}",
    )


def json_entry(content: ShownDecision, image: int | str) -> dict:
    """The image's part of why.json."""
    decision = content.decision
    return {
        "image": image,
        "classes": list(content.names),
        "logits": list(decision.logits),
        "bias": decision.bias,
        "groups": [asdict(group) for group in decision.groups],
    }


@styled
def why_figure(content: ShownDecision) -> Figure:
    """The image and the answer; below, each group's bar, what the group saw in the image, and what excites it most."""
    count = len(content.shown)
    rows = count * ROW
    height = TOP + rows + 0.62
    figure = Figure((WIDTH_INCHES, height))
    bare_axes_at(figure, 0.08, 0.08, 1.15, 1.15).imshow(content.image, interpolation="antialiased")
    write_answer(figure, content)
    draw_bars(bare_axes_at(figure, 0.9, TOP, 2.15, rows + 0.57), content)
    left = WIDTH_INCHES - 0.06 - (1 + EXAMPLES_SHOWN) * ROW - 0.06
    others = left + ROW + 0.06
    tiles = diverging_tiles(content.pictures)
    for row, place in enumerate(content.shown):
        seen = bare_axes_at(figure, left, TOP + row * ROW, TILE, TILE)
        seen.imshow(tiles[row], interpolation="antialiased")
        seen.spines[:].set(visible=True, linewidth=1.5, color=side_color(content.decision.groups[place].contribution))
        for column, example in enumerate(content.examples[row]):
            axes = bare_axes_at(figure, others + column * ROW, TOP + row * ROW, TILE, TILE)
            axes.imshow(example, interpolation="antialiased")
    for middle, text in (
        (left + TILE / 2, "what it\nsaw here"),
        (others + (EXAMPLES_SHOWN * ROW - 0.05) / 2, "test images that excite it most"),
    ):
        figure.text(middle / WIDTH_INCHES, 1 - (TOP - 0.05) / height, text, ha="center", va="bottom")
    return figure


def write_answer(figure: Figure, content: ShownDecision) -> None:
    """The question, the sum that answers it, and what is drawn, beside the image."""
    decision = content.decision
    first, second = (
        f"{truncate(name, 16)} ({format_percent(chance)}{', the true class' if name == content.label else ''})"
        for name, chance in zip(content.names, decision.probabilities, strict=True)
    )
    groups = sum(group.contribution for group in decision.groups)
    shown = sum(decision.groups[n].contribution for n in content.shown)
    lines = (
        truncate(content.title, 92),
        f"Logit difference {signed(decision.difference)} = bias {signed(decision.bias)} plus {len(decision.groups)} "
        f"groups of similar channels {signed(groups)}.",
        f"The {len(content.shown)} largest groups, below, sum to {signed(shown)}.",
        f"What a group saw: its part of the difference, sent back to the pixels ({content.note}).",
        "In these pictures grey is zero, and each one has its own scale.",
    )
    height = figure.get_figheight()
    x = 1.38 / WIDTH_INCHES
    figure.text(x, 1 - 0.24 / height, f"Why {first} and not {second}?", va="center", fontsize=10)
    for n, line in enumerate(lines):
        figure.text(x, 1 - (0.5 + 0.17 * n) / height, truncate(line, 105), va="center", fontsize=7.5)


def draw_bars(axes: Axes, content: ShownDecision) -> None:
    """A bar for each group shown; below, the other groups together and the bias, so that all bars sum to the total."""
    decision, count = content.decision, len(content.shown)
    shares = [decision.groups[n] for n in content.shown]
    others = sum(group.contribution for n, group in enumerate(decision.groups) if n not in content.shown)
    values = [*(share.contribution for share in shares), others, decision.bias]
    end = count * ROW
    places = [*(n * ROW + TILE / 2 for n in range(count)), end + 0.13, end + 0.36]
    colors = [*(side_color(share.contribution) for share in shares), REMAINDER, REMAINDER]
    bars = axes.barh(places, values, [*[0.42] * count, 0.14, 0.14], color=colors)
    axes.bar_label(bars, [signed(value) for value in values], padding=2)
    labels = [group_label(share) for share in shares]
    axes.set_yticks(places, [*labels, f"{len(decision.groups) - count} other groups", "bias"])
    axes.set_ylim(end + 0.57, 0)
    low, high = min(0, *values), max(0, *values)
    room = 0.3 * (high - low or 1)  # for the numbers at the bars' ends, and for the words above
    axes.set_xlim(min(low - room * (low < 0), -0.75 * room), max(high + room * (high > 0), 0.75 * room))
    axes.axvline(0, color="black", linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    height, box = axes.figure.get_figheight(), axes.get_position()
    for name, color, side in zip(content.names, (FOR_FIRST, FOR_SECOND), ("right", "left"), strict=True):
        text = f"for {truncate(name, 14)} →" if side == "right" else f"← for {truncate(name, 14)}"
        x = box.x1 if side == "right" else box.x0
        axes.figure.text(x, 1 - (TOP - 0.05) / height, text, color=color, ha=side, va="bottom")


def group_label(share: GroupShare) -> str:
    """How many channels the group has, and which one they resemble."""
    count = len(share.channels)
    return f"{count} channels\nlike {share.representative}" if count > 1 else f"channel {share.representative}"


def side_color(contribution: float) -> str:
    """The color of the class that a contribution speaks for."""
    return FOR_FIRST if contribution >= 0 else FOR_SECOND


def signed(value: float) -> str:
    """Two decimals with a sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
