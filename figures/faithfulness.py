"""How far the network agrees with importance maps of a class, and with reconstructions of channels' strongest units.

By class, the deletion test of Samek et al. 2017 (arXiv:1509.06321), in both orders: the most important blocks first,
and the least important ones first. A removed block has the training data's mean color. By channel: unit_faithfulness.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.blocks import block_means, block_side, estimate, importance_ranks, remove_blocks
from analysis.channels import chosen_channels
from analysis.importance import METHODS, ImportanceBatch
from analysis.inspection import Inspection, PictureInspection, spread
from analysis.receptive_field import receptive_field
from analysis.relevance import pixel_box
from analysis.settings import Settings
from figures import style, unit_faithfulness
from figures.registry import register
from network import STAGES, ResNet18
from runtime.device import bf16_if_native

STEPS = 10
BASELINES = ("Sobel edges", "random")  # do not use the network
RIVALS = ("random", "class activation map", "guided")  # every method's score is compared with theirs
MOST_CHANNELS = 9  # per stage
COLUMNS = 4
ALL = tuple(METHODS)


def spread_images(inspection: Inspection, count: int | None = None) -> Tensor:
    """(n,) int64: `count` images, evenly spread over the test split.

    By default as many as are searched, up to 1,000; on a CPU a twentieth of these, from 2 to 8.
    """
    total, searched = len(inspection.images), len(inspection.searched)
    default = min(8, max(2, searched // 20)) if inspection.device.type == "cpu" else min(1000, searched)
    return spread(min(count or default, total), total)


@torch.inference_mode()
def class_curves(
    inspection: Inspection, images: Tensor, unpool: str = "sum", batch_size: int = 24, methods: Sequence[str] = ALL
) -> Tensor:
    """`remaining_probability` for test images (N,) int64: (N, len(methods), 2, STEPS), on the CPU.

    batch_size: images per forward pass. Raises CheckpointError when a result is not finite.
    """
    side, curves = block_side(inspection.metadata.image_size), []
    for batch_images in images.split(batch_size):
        inputs, classes, ranks = block_ranks(inspection, batch_images, unpool, methods)
        with bf16_if_native(inspection.device):
            left = remaining_probability(inspection.network, inputs, classes, ranks, side, batch_size)
        curves.append(check_finite(left.cpu(), "probabilities"))
    return torch.cat(curves)


@torch.inference_mode()
def block_ranks(
    inspection: Inspection, images: Tensor, unpool: str = "sum", methods: Sequence[str] = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """For images of the test split, (N,) int64: the network's input, the predicted classes, and the blocks' ranks.

    Returns (N, 3, H, W), (N,) and (N, len(methods), n) as of `importance_ranks`, on the network's device.
    """
    side, stored = block_side(inspection.metadata.image_size), inspection.images[images]
    batch = importance_batch(inspection, stored, images, unpool)
    maps = (batch.map(name).to(batch.inputs.device) for name in methods)
    return batch.inputs, batch.classes, torch.stack([importance_ranks(block_means(each, side)) for each in maps], 1)


def importance_batch(inspection: PictureInspection, stored: Tensor, seeds: Tensor, unpool: str) -> ImportanceBatch:
    """Of stored images (N, 3, H, W) uint8, to explain the predicted classes; seeds: (N,) int64."""
    box = pixel_box(inspection.metadata.mean, inspection.metadata.std)
    inputs = inspection.inputs(stored)
    return ImportanceBatch(inspection.network, inspection.resized(stored), inputs, seeds, box, unpool)


def remaining_probability(
    network: ResNet18, inputs: Tensor, classes: Tensor, ranks: Tensor, side: int, batch_size: int = 24
) -> Tensor:
    """The probability of classes[n] as blocks are removed, relative to the whole image's: (N, M, 2, STEPS).

    inputs  (N, 3, H, W) normalised images
    ranks   (N, M, n) int64: of the blocks by M methods, as `importance_ranks` returns them
    side    of a block in pixels

    The third axis: most important blocks first, least important ones first. After step k of STEPS, k * n // STEPS of
    the n blocks are removed. All methods and steps share the batches.
    """

    def probability(images: Tensor) -> Tensor:
        return network(images).to(inputs.dtype).softmax(1)

    count, methods, blocks = ranks.shape
    left = inputs.new_empty(count, methods, 2, STEPS)
    cases = torch.cartesian_prod(*map(torch.arange, (count, methods, 2, STEPS - 1))).to(inputs.device)
    for batch in tqdm(cases.split(batch_size), "faithfulness", unit="batches", leave=False, disable=None):
        image, method, order, step = batch.T
        removed = ((step + 1) * blocks // STEPS)[:, None]
        rank = ranks[image, method]
        is_removed = torch.where(order[:, None] == 0, rank < removed, rank >= blocks - removed)
        probabilities = probability(remove_blocks(inputs[image], is_removed, side))
        left[image, method, order, step] = probabilities.gather(1, classes[image, None])[:, 0]
    nothing = probability(torch.zeros_like(inputs[:1]))  # the last step removes every block
    left[..., -1] = nothing[0, classes][:, None, None]
    whole = probability(inputs).gather(1, classes[:, None])
    return left / whole[:, :, None, None]


def class_scores(curves: Tensor, methods: Sequence[str] = ALL) -> dict[str, dict]:
    """method -> its part of faithfulness.json, the highest score first. curves: as of `class_curves`.

    The score is the mean over the steps of the two curves' difference, least minus most important blocks first: 0 for
    chance, higher is better; with the mean and the interval over the images. `minus`: its difference to that of each
    of RIVALS that was scored, image by image.
    """
    scores = (curves[:, :, 1] - curves[:, :, 0]).mean(2)  # (N, M)
    rivals = {name: scores[:, methods.index(name)] for name in RIVALS if name in methods}
    content = {}
    for n, (name, means) in enumerate(zip(methods, curves.double().mean(0).tolist(), strict=True)):
        score = estimate(scores[:, n])
        minus = {rival: estimate(scores[:, n] - theirs) for rival, theirs in rivals.items()}
        content[name] = {"score": score["mean"], "low": score["low"], "high": score["high"]}
        content[name] |= {"minus": minus, "most": means[0], "least": means[1]}
    return dict(sorted(content.items(), key=lambda item: -item[1]["score"]))


@lru_cache(maxsize=1)  # faithfulness.png and attributions.png share them
def class_content(inspection: Inspection, settings: Settings) -> dict:
    """The part of faithfulness.json by class, which nobody changes."""
    images = spread_images(inspection, settings.score_images)
    curves = class_curves(inspection, images, settings.unpool, settings.batch_size, settings.methods)
    return {
        "images": images.tolist(),
        "block": block_side(inspection.metadata.image_size),
        "steps": STEPS,
        "methods": class_scores(curves, settings.methods),
    }


@register(
    "faithfulness",
    "Do removed blocks matter as the picture says?",
    "The wider the gap between the curves, the better a map tells the blocks that the network needs from those "
    "that it does not; below, a map says more than where the unit is if it keeps more of the activation than the "
    "square at the unit.",
    stages=STAGES,
    section="belief",
    passes=3900,
)
def draw_faithfulness(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure, then the content of faithfulness.json."""
    by_class, stages, titles = class_content(inspection, settings), {}, {}
    for stage in (stage for stage in STAGES if stage in inspection.search.top):
        asked = chosen_channels(settings, inspection.search, stage)[:MOST_CHANNELS]
        units = max(1, len(by_class["images"]) // MOST_CHANNELS)
        channels, shares = unit_faithfulness.channel_shares(inspection, settings, stage, asked, units)
        if channels:
            side = block_side(min(receptive_field(inspection.network, stage).size, inspection.metadata.image_size))
            stages[stage] = unit_faithfulness.stage_content(channels, shares)
            titles[stage] = f"{stage}, {len(channels)} channels\n{side}x{side} px a block"
    content = {**by_class, "channels": stages}
    yield Path("faithfulness"), faithfulness_figure(content, titles, style.unpooling_note(settings.unpool))
    yield Path("faithfulness"), content


def format_score(numbers: dict) -> str:
    """0.34 (0.30 to 0.38); without the interval if there is none."""
    mean, low, high = (style.format_two_digits(numbers[name]) for name in ("score", "low", "high"))
    return mean if numbers["low"] is None else f"{mean} ({low} to {high})"


@style.styled
def faithfulness_figure(content: dict, stage_titles: dict[str, str], note: str = "") -> Figure:
    """Above, a panel of curves per method for the class; below, a panel of dots per stage. note: on unpooling."""
    scores, stages, side = content["methods"], content["channels"], content["block"]
    rows = math.ceil(len(scores) / COLUMNS)
    text = (
        f"Do removed blocks matter as the picture says{note}?",
        "Above: the wider the gap between the curves, the better a map ranks the blocks. Score: solid minus dashed, "
        "mean over the steps, with its 95 % interval over the images; 0: chance. Baselines do not use the network.",
        "Below: share of the activation that is left when the most important tenth of the blocks in the receptive "
        "field is removed (○) or alone is kept (●); bar: 95 % interval over the channels. Turned: the same picture "
        "turned by 180° about the unit; the difference is what its shape adds to its place. Color: the rule whose "
        "picture a map is made of, or grey.",
    )
    heights = 0.5 + 1.25 * rows, 0.75 + 0.15 * len(unit_faithfulness.METHODS)
    figure = style.new_figure(sum(heights), *text)
    above, below = figure.subfigures(2, height_ratios=heights)
    images = f"{len(content['images']):,} test images, blocks of {side}x{side} px"
    style.label_part(above, f"Probability of the predicted class: {images}")
    style.label_part(below, "Activation of channels' strongest units")
    grid = above.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    draw_classes(grid, scores)
    curves = grid[0, 0].get_legend_handles_labels()
    legend = above.legend(*curves, loc="upper right", ncols=2, frameon=False, borderaxespad=0, handlelength=1.6)
    for line in legend.get_lines():
        line.set_color("black")  # of any method
    panels = below.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0] if stages else ()
    for axes, (stage, numbers) in zip(panels, stages.items(), strict=True):
        unit_faithfulness.draw_dots(axes, numbers)
        axes.set_title(stage_titles[stage], loc="left")
        axes.set_xlim(left=0, auto=None)
    return figure


def draw_classes(grid: np.ndarray, scores: dict[str, dict]) -> None:
    """A panel per method: the probability left, most and least important blocks first, and the score between them."""
    removed = np.arange(STEPS + 1) * 100 / STEPS
    for axes, (name, numbers) in zip(grid.flat, scores.items(), strict=False):
        color = unit_faithfulness.color_of(name)
        most, least = [1, *numbers["most"]], [1, *numbers["least"]]
        axes.fill_between(removed, most, least, color=color, alpha=0.15, linewidth=0)
        axes.plot(removed, least, color=color, linewidth=1.2, label="least important first")
        axes.plot(removed, most, "--", color=color, linewidth=1.2, label="most important first")
        axes.set_title(f"{name}{' (baseline)' * (name in BASELINES)}\n{format_score(numbers)}", loc="left", color=color)
        axes.set(xlim=(0, 100), xticks=range(0, 101, 25))
        axes.set_ylim(bottom=0, auto=None)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(scores) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("blocks removed (%)", labelpad=1)
    for axes in grid[:, 0]:
        axes.set_ylabel("relative probability")
