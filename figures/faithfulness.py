"""How far the network agrees with importance maps: curves of a class's probability as blocks are removed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.bootstrap import Estimate, estimate
from analysis.faithfulness import METHODS, STEPS, ClassCurves, class_curves, spread_images
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures.style import WIDTH_INCHES, format_two_digits, styled, text_at, unpooling_note

BASELINES = ("Sobel edges", "random")  # do not use the network
COLUMNS = 4
# In inches: above the panels; below them; left of the first; a panel; between panels
TOP, BOTTOM, LEFT, WIDTH, HEIGHT, GAP_ACROSS, GAP_DOWN = 0.68, 0.36, 0.42, 1.53, 0.95, 0.12, 0.36
MOST_COLOR, LEAST_COLOR = "#b2182b", "#2166ac"


@dataclass(frozen=True)
class ClassScore:
    """One method's numbers over the images.

    score        mean over the images and steps of `least` - `most`
    over_random  mean over the images of the score's difference to that of the random map
    most, least  (STEPS,): the curves, means over the images
    """

    score: Estimate
    over_random: Estimate
    most: list[float]
    least: list[float]


def draw_faithfulness(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of faithfulness.json."""
    images = spread_images(inspection, settings.score_images)
    curves = class_curves(inspection, images, settings.unpool, settings.batch_size)
    scores = class_scores(curves)
    title = f"{len(images):,} test images, blocks of {curves.block}x{curves.block} px{unpooling_note(settings.unpool)}"
    yield Path("faithfulness"), faithfulness_figure(scores, title)
    yield Path("faithfulness"), json_content(curves, scores)


def class_scores(curves: ClassCurves) -> dict[str, ClassScore]:
    """method -> its numbers, the highest score first."""
    random = curves.scores("random")
    found = {
        name: ClassScore(
            estimate(curves.scores(name)),
            estimate(curves.scores(name) - random),
            curves.most[name].double().mean(0).tolist(),
            curves.least[name].double().mean(0).tolist(),
        )
        for name in METHODS
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].score.mean))


def json_content(curves: ClassCurves, scores: dict[str, ClassScore]) -> dict:
    """The content of faithfulness.json."""
    methods = {
        name: {
            "score": found.score.mean,
            "low": found.score.low,
            "high": found.score.high,
            "over_random": asdict(found.over_random),
            "most": found.most,
            "least": found.least,
        }
        for name, found in scores.items()
    }
    return {"images": curves.images.tolist(), "block": curves.block, "steps": STEPS, "methods": methods}


def scores_in_words(content: dict) -> str:
    """The scores of faithfulness.json, a sentence for the report."""
    scores = (
        f"{name} {format_estimate(Estimate(found['score'], found['low'], found['high']))}"
        for name, found in content["methods"].items()
    )
    return f"Score by class, with its 95 % interval: {'; '.join(scores)}."


def format_estimate(found: Estimate) -> str:
    """0.34 (0.30 to 0.38)."""
    mean, low, high = map(format_two_digits, (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


@styled
def faithfulness_figure(scores: dict[str, ClassScore], title: str) -> Figure:
    """A panel per method: the probability left, most and least important blocks first, and the score between them."""
    rows = -(-len(scores) // COLUMNS)
    figure = Figure((WIDTH_INCHES, TOP + rows * (HEIGHT + GAP_DOWN) - GAP_DOWN + BOTTOM))
    text_at(figure, WIDTH_INCHES / 2, 0.13, f"What removing blocks does to the predicted class: {title}", fontsize=8)
    note = (
        "Probability relative to the whole image's. Score: blue minus red, mean over the steps "
        "(95 % interval over the images); 0: chance."
    )
    text_at(figure, WIDTH_INCHES / 2, 0.31, note, fontsize=7)
    highest = max(1.05, *(value for found in scores.values() for value in (*found.most, *found.least)))
    for n, (name, found) in enumerate(scores.items()):
        row, column = divmod(n, COLUMNS)
        left, top = LEFT + column * (WIDTH + GAP_ACROSS), TOP + row * (HEIGHT + GAP_DOWN)
        axes = axes_in_inches(figure, left, top, WIDTH, HEIGHT)
        draw_curves(axes, found, highest)
        baseline = " (baseline)" if name in BASELINES else ""
        axes.set_title(f"{name}{baseline}\n{format_estimate(found.score)}", fontsize=7, pad=3)
        axes.tick_params(labelleft=column == 0, labelbottom=row == rows - 1)
        if column == 0:
            axes.set_ylabel("relative probability")
        if row == rows - 1:
            axes.set_xlabel("blocks removed (%)", labelpad=1)
        if n == 0:
            axes.legend(frameon=False, loc="upper right", borderpad=0, labelspacing=0.2, handlelength=1.2, fontsize=6)
    return figure


def draw_curves(axes: Axes, found: ClassScore, top: float) -> None:
    """Both curves from the whole image on, with the area between them, up to `top`."""
    removed = np.arange(STEPS + 1) * 100 / STEPS
    most, least = [1, *found.most], [1, *found.least]
    axes.fill_between(removed, most, least, color="0.9", linewidth=0)
    axes.plot(removed, least, color=LEAST_COLOR, marker="s", markersize=2, linewidth=1, label="least important first")
    axes.plot(removed, most, color=MOST_COLOR, marker="o", markersize=2, linewidth=1, label="most important first")
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 100, 20))
    axes.set_ylim(0, top)
    axes.spines[["top", "right"]].set_visible(False)


def axes_in_inches(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
