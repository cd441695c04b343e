"""How far the network agrees with importance maps: of a class, and of the strongest units of channels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.bootstrap import Estimate, estimate
from analysis.channels import chosen_channels
from analysis.faithfulness import STEPS, class_curves, spread_images
from analysis.faithfulness_table import ClassScore, class_scores, json_content
from analysis.inspection import Inspection
from analysis.settings import Settings
from analysis.unit_faithfulness import METHODS, TURNED, ChannelShares, channel_shares
from analysis.unit_shares import CHANGES
from figures.registry import register
from figures.style import RULE_STYLE, WIDTH_INCHES, axes_at, format_two_digits, styled, text_at, unpooling_note
from network import STAGES

BASELINES = ("Sobel edges", "random")  # do not use the network
MOST_CHANNELS = 9  # per stage
TENTH_REMOVED, TENTH_KEPT = CHANGES.index(("removed", 0.1)), CHANGES.index(("kept", 0.1))
COLUMNS = 4
# In inches: above the curves; left of them; a panel; between panels
TOP, LEFT, WIDTH, HEIGHT, GAP_ACROSS, GAP_DOWN = 0.84, 0.46, 1.52, 0.95, 0.12, 0.36
# In inches: from the curves to the dots; left of these; from row to row of dots; between panels; ticks below them
DOTS_TOP, DOTS_LEFT, DOTS_ROW, DOTS_GAP, TICKS = 1.2, 1.0, 0.14, 0.16, 0.38
MOST_COLOR, LEAST_COLOR = "#b2182b", "#2166ac"


def scores_in_words(content: dict) -> str:
    """The scores of faithfulness.json, a sentence for the report."""
    scores = (
        f"{name} {format_estimate(Estimate(found['score'], found['low'], found['high']))}"
        for name, found in content["methods"].items()
    )
    return f"Score by class, with its 95 % interval: {'; '.join(scores)}."


@register(
    "faithfulness",
    "Do removed blocks matter as the picture says?",
    "The wider the gap between the curves, the better a map tells the blocks that the network needs from those "
    "that it does not; below, only what exceeds the square at the unit says more than where to look.",
    stages=STAGES,
    section="belief",
    words=scores_in_words,
)
def draw_faithfulness(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of faithfulness.json."""
    images = spread_images(inspection, settings.score_images)
    curves = class_curves(inspection, images, settings.unpool, settings.batch_size)
    scores = class_scores(curves)
    stages = []
    for stage in (stage for stage in STAGES if stage in inspection.search.top):
        channels = chosen_channels(settings, inspection.search, stage)[:MOST_CHANNELS]
        if found := channel_shares(inspection, settings, stage, channels, max(1, len(images) // MOST_CHANNELS)):
            stages.append(found)
    note = f"blocks of {curves.block}x{curves.block} px{unpooling_note(settings.unpool)}"
    title = f"What removing blocks does to the predicted class: {len(images):,} test images, {note}"
    yield Path("faithfulness"), faithfulness_figure(scores, title, stages)
    yield Path("faithfulness"), json_content(curves, scores, stages)


def format_estimate(found: Estimate) -> str:
    """0.34 (0.30 to 0.38)."""
    mean, low, high = map(format_two_digits, (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


@styled
def faithfulness_figure(scores: dict[str, ClassScore], title: str, stages: Sequence[ChannelShares]) -> Figure:
    """Above, a panel of curves per method for the class; below, a panel of dots per stage for the channels."""
    rows = -(-len(scores) // COLUMNS)
    curves = TOP + rows * (HEIGHT + GAP_DOWN) - GAP_DOWN
    dots = len(METHODS) * DOTS_ROW
    figure = Figure((WIDTH_INCHES, curves + DOTS_TOP + dots + TICKS))
    text_at(figure, WIDTH_INCHES / 2, 0.13, title, fontsize=8)
    note = (
        "Probability relative to the whole image's. Score: blue minus red, mean over the steps "
        "(95 % interval over the images); 0: chance."
    )
    text_at(figure, WIDTH_INCHES / 2, 0.31, note, fontsize=7)
    draw_classes(figure, scores, rows)
    title = "What removing blocks does to a channel's strongest units: share of the activation that is left"
    text_at(figure, WIDTH_INCHES / 2, curves + 0.55, title, fontsize=8)
    note = (
        "● only the most important tenth of the blocks in the receptive field kept   ○ this tenth removed   "
        "bar: 95 % interval over the channels\nturned: the same picture turned by 180° about the unit; the difference "
        "is what its shape adds to its place"
    )
    text_at(figure, WIDTH_INCHES / 2, curves + 0.77, note, fontsize=7)
    width = (WIDTH_INCHES - DOTS_LEFT - 0.08) / len(stages) - DOTS_GAP if stages else 0
    tenths = [TENTH_REMOVED, TENTH_KEPT]
    shares = [each[:, tenth] for found in stages for each in found.shares.values() for tenth in tenths]
    highest = max([1, *(estimate(each).high for each in shares)])
    for n, found in enumerate(stages):
        axes = axes_at(figure, DOTS_LEFT + n * (width + DOTS_GAP), curves + DOTS_TOP, width, dots)
        draw_dots(axes, found, highest)
        axes.tick_params(labelleft=n == 0)
    return figure


def draw_classes(figure: Figure, scores: dict[str, ClassScore], rows: int) -> None:
    """A panel per method: the probability left, most and least important blocks first, and the score between them."""
    highest = max([1.05, *(value for found in scores.values() for value in (*found.most, *found.least))])
    for n, (name, found) in enumerate(scores.items()):
        row, column = divmod(n, COLUMNS)
        left, top = LEFT + column * (WIDTH + GAP_ACROSS), TOP + row * (HEIGHT + GAP_DOWN)
        axes = axes_at(figure, left, top, WIDTH, HEIGHT)
        draw_curves(axes, found, highest)
        baseline = " (baseline)" if name in BASELINES else ""
        axes.set_title(f"{name}{baseline}\n{format_estimate(found.score)}", fontsize=7, pad=3)
        axes.tick_params(labelleft=column == 0, labelbottom=row == rows - 1)
        if column == 0:
            axes.set_ylabel("relative probability")
        if row == rows - 1:
            axes.set_xlabel("blocks removed (%)", labelpad=1)
    if scores:
        middle = 0.5, 1 - 0.47 / figure.get_size_inches()[1]
        lines = axes.get_lines()
        figure.legend(lines, [each.get_label() for each in lines], loc="center", bbox_to_anchor=middle, ncols=2,
                      frameon=False, borderpad=0, fontsize=7)  # fmt: skip


def draw_curves(axes: Axes, found: ClassScore, highest: float) -> None:
    """Both curves from the whole image on, with the area between them."""
    removed = np.arange(STEPS + 1) * 100 / STEPS
    most, least = [1, *found.most], [1, *found.least]
    axes.fill_between(removed, most, least, color="0.9", linewidth=0)
    axes.plot(removed, least, color=LEAST_COLOR, marker="s", markersize=2, linewidth=1, label="least important first")
    axes.plot(removed, most, color=MOST_COLOR, marker="o", markersize=2, linewidth=1, label="most important first")
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 100, 20))
    axes.set_ylim(0, highest)
    axes.spines[["top", "right"]].set_visible(False)


def draw_dots(axes: Axes, found: ChannelShares, highest: float) -> None:
    """A row per method: what is left without the most important tenth (hollow), and with nothing else (filled)."""
    rule_of = dict.fromkeys(TURNED) | {turned: rule for rule, turned in TURNED.items()}
    for row, name in enumerate(METHODS):
        rule = name if name in TURNED else rule_of.get(name)
        color = RULE_STYLE[rule][0] if rule else "0.25"
        for change, face in ((TENTH_REMOVED, "white"), (TENTH_KEPT, color)):
            left = estimate(found.shares[name][:, change])
            axes.plot([left.low, left.high], [row, row], color=color, linewidth=0.8, solid_capstyle="butt")
            axes.plot(left.mean, row, "o", color=color, markerfacecolor=face, markersize=3.5, markeredgewidth=0.8,
                      clip_on=False)  # fmt: skip
    axes.set_yticks(range(len(METHODS)), METHODS)
    axes.set_ylim(len(METHODS) - 0.5, -0.5)
    axes.set_xlim(0, highest * 1.03)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("activation left", labelpad=1)
    count = len(found.channels)
    axes.set_title(f"{found.stage}, {count} channels\n{found.block}x{found.block} px a block", fontsize=7, pad=3)
