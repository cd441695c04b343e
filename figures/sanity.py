"""What remains of a picture as weights become random (Adebayo et al., arXiv:1810.03292).

Weights become random from the top down, as in that paper, or from the bottom up. From the top down, the activations
below keep their scales, so that the result cannot rank methods (Binder et al., arXiv:2211.12486).
"""

import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.crops import correlations, crop, crop_boxes
from analysis.importance import saliency, sobel_edges
from analysis.inspection import Inspection, spread
from analysis.reconstruction import ALL_RULES, mirrors_by_rule
from analysis.settings import Settings
from figures import style
from figures.comparison import draw_rows, select_units_above_pooling
from figures.image_grid import diverging_tiles, to_array
from figures.registry import register
from network import BLOCKS_PER_STAGE, STAGES, ResNet18, Trace
from reverse_network import isolate

MODULES = dict(zip(STAGES, (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), strict=True))
DIRECTIONS = {
    "top-down": "Below the random layers, activations keep their scales: this direction cannot rank methods (Binder et "
    "al., arXiv:2211.12486).",
    "bottom-up": "Above the random layers, weights stay as trained, but get inputs that they have never seen.",
}
MOST_IMAGES = 50  # of the curves
PIXELS_ON_CPU = 20 * 224**2  # of all these images: about 20 s on two cores
NOTE = (
    "Numbers: Spearman's rank correlation of absolute values with the trained network's picture, of the example below "
    "its tiles, of all images as median and quartiles. Tiles have a scale each; grey is zero, and with – the random "
    "network does not activate the channel."
)


def randomization_steps(stage: str) -> dict[str, dict[str, frozenset[str]]]:
    """direction -> name of the step -> the stages that are random: none, then one more at a time, up to `stage`."""
    upwards, steps = STAGES[: STAGES.index(stage) + 1], {}
    for direction, order in zip(DIRECTIONS, (upwards[::-1], upwards), strict=True):
        names = ["trained", f"{order[0]} random", *(f"+ {later}" for later in order[1:])]
        steps[direction] = {name: frozenset(order[:count]) for count, name in enumerate(names)}
    return steps


def mix(trained: ResNet18, fresh: ResNet18, random: frozenset[str]) -> ResNet18:
    """A network of both networks' modules, not copied: those of `fresh` in the random stages."""
    with torch.device("meta"):
        network = ResNet18(trained.fc.out_features)
    names = {name for stage in random for name in MODULES[stage]}
    for name, module in trained.named_children():
        setattr(network, name, getattr(fresh, name) if name in names else module)
    return network.eval()


def trace_above(network: ResNet18, below: Trace, depth: int, until: str) -> Trace:
    """The network's trace; its first `depth` stages, one at least, are taken over from another trace."""
    features = dict(list(below.features.items())[:depth])
    blocks = below.blocks[: (depth - 1) * BLOCKS_PER_STAGE]
    x = blocks[-1][1] if blocks else network.maxpool(features[STAGES[0]])
    for n in range(depth, STAGES.index(until) + 1):
        for block in network.layers[n - 1]:
            blocks.append(block.trace(x))
            x = blocks[-1][1]
        features[STAGES[n]] = x
    return replace(below, features=features, blocks=blocks)


@torch.inference_mode()
def pictures_by_random_stages(
    network: ResNet18, inputs: Tensor, stage: str, channels: Sequence[int], settings: Settings
) -> dict[frozenset[str], dict[str, Tensor]]:
    """random stages -> rule -> pictures (n, 3, H, W) on the CPU: whole maps, for all of `randomization_steps`.

    inputs    (n, 3, H, W) normalised images, on the network's device
    channels  of `stage`, one per image

    The random weights are the same every time. Raises CheckpointError when a picture is not finite.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = ResNet18(network.fc.out_features).to(inputs.device, memory_format=torch.channels_last)
    steps = [random for names in randomization_steps(stage).values() for random in names.values()]
    networks = {random: mix(network, fresh, random) for random in steps}
    pictures = {random: {rule: [] for rule in ALL_RULES} for random in networks}
    for rows in torch.arange(len(inputs)).split(settings.batch_size):
        trace, before = None, frozenset(STAGES)
        for random, mixed in tqdm(networks.items(), "sanity", unit="networks", leave=False, disable=None):
            # a trace takes over the stages that it shares with the one before
            depth = [(below in random) == (below in before) for below in STAGES].index(False)
            trace = trace_above(mixed, trace, depth, stage) if depth else mixed.trace(inputs[rows], stage)
            before, signal = random, isolate(trace.features[stage], torch.tensor(channels)[rows])
            for rule, mirror in mirrors_by_rule(mixed, ALL_RULES, settings.unpool).items():
                pictures[random][rule].append(mirror(signal, stage, trace).cpu())
    return {
        random: {rule: check_finite(torch.cat(parts), f"reconstructions by {rule}") for rule, parts in rules.items()}
        for random, rules in pictures.items()
    }


def ranks(values: Tensor) -> Tensor:
    """The ranks of each row's values, (n, ...) -> (n, m) float64, from 1; equal values share their mean rank."""
    sort = partial(np.unique, return_inverse=True, return_counts=True)  # faster than PyTorch's, and without the GIL
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = [*pool.map(sort, values.flatten(1).numpy())]
    return torch.from_numpy(np.stack([(counts.cumsum() - (counts - 1) / 2)[inverse] for _, inverse, counts in rows]))


def rank_correlations(trained: dict[str, Tensor], pictures: dict[str, Tensor]) -> dict[str, dict]:
    """rule -> Spearman's correlation of the `saliency` of pictures (n, 3, H, W), as in sanity.json.

    With `trained`: rule -> `ranks` of the trained network's. "values" has one per image, None where a picture is zero
    everywhere; "low", "median" and "high" are the quartiles of the others, None if there are none.
    """
    numbers = {}
    for rule in ALL_RULES:
        values = correlations(trained[rule], ranks(saliency(pictures[rule])))
        known = [value for value in values if value is not None]
        quartiles = np.quantile(known, [0.25, 0.5, 0.75]).tolist() if known else [None] * 3
        numbers[rule] = dict(zip(("low", "median", "high"), quartiles, strict=True)) | {"values": values}
    return numbers


def median_image(directions: dict[str, dict[str, dict[str, dict]]]) -> int:
    """The image whose mean correlation over all random networks and rules is the median of all images.

    Among the images with the fewest pictures that are zero everywhere. directions: of sanity.json
    """
    random = [rules for steps in directions.values() for name, rules in steps.items() if name != "trained"]
    values = np.array([numbers["values"] for rules in random for numbers in rules.values()], float)  # None: nan
    zeros = np.isnan(values).sum(0)
    fewest = np.flatnonzero(zeros == zeros.min())
    means = np.nan_to_num(values[:, fewest]).mean(0)
    return int(fewest[np.argsort(means, kind="stable")[(len(fewest) - 1) // 2]])


def strongest_channels_of_images(inspection: Inspection, stage: str) -> tuple[Tensor, list[int]]:
    """Searched images, evenly spread, as indices in the test split; and the channel that each excites most."""
    peaks = inspection.search.peaks[stage]
    most = PIXELS_ON_CPU // inspection.metadata.image_size**2 if inspection.device.type == "cpu" else MOST_IMAGES
    rows = spread(min(max(most, 1), MOST_IMAGES, len(peaks)), len(peaks))
    return inspection.searched[rows], peaks[rows].argmax(1).tolist()


@register(
    "sanity",
    "Pictures from random weights",
    "A picture that stays the same, with a correlation near 1, as weights become random does not explain what the "
    "network learned.",
    section="belief",
    passes=950,
)
def draw_sanity(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """One channel under every rule, and curves over several images; at last the content of sanity.json."""
    stage = select_units_above_pooling(inspection, settings).stage
    indices, channels = strongest_channels_of_images(inspection, stage)
    stored, steps = inspection.images[indices], randomization_steps(stage)
    images, inputs = inspection.resized(stored), inspection.inputs(stored)
    by_stages = pictures_by_random_stages(inspection.network, inputs, stage, channels, settings)
    trained = {rule: ranks(saliency(pictures)) for rule, pictures in by_stages[frozenset()].items()}
    numbers = {random: rank_correlations(trained, pictures) for random, pictures in by_stages.items()}
    edges = dict.fromkeys(ALL_RULES, sobel_edges(images))
    directions, pictures = (
        {direction: {name: values[random] for name, random in names.items()} for direction, names in steps.items()}
        for values in (numbers, by_stages)
    )
    content = {"stage": stage, "images": indices.tolist(), "channels": channels}
    content |= {"example": indices[median_image(directions)].item(), "directions": directions}
    content |= {"edges": rank_correlations(trained, edges)}
    pictures = {direction: by_name | {"edges": edges} for direction, by_name in pictures.items()}
    title = f"What random weights leave of a picture ({stage}, whole maps{style.unpooling_note(settings.unpool)})"
    yield Path("sanity"), sanity_figure(title, content, images, pictures)
    yield Path("sanity"), content


@style.styled
def sanity_figure(
    title: str, content: dict, images: Tensor, pictures: dict[str, dict[str, dict[str, Tensor]]]
) -> Figure:
    """For each direction a row per rule: the example by ever more random networks; beside them, the curves.

    content   of sanity.json
    images    (n, 3, H, W) in 0..1: all of them
    pictures  direction -> step, the last one "edges" -> rule -> (n, 3, H, W)
    """
    number = content["images"].index(content["example"])
    example = f"The example, image {content['example']} by channel {content['channels'][number]}, is the one whose "
    example += "mean correlation over all random networks and rules is the median of the images."
    figure = style.new_figure(2.7 * len(DIRECTIONS), title, NOTE, example, **style.TIGHT)
    for block, (direction, note) in zip(figure.subfigures(len(DIRECTIONS)), DIRECTIONS.items(), strict=True):
        style.label_part(block, f"Random from the {direction.replace('-', ' ')}")
        block.supxlabel(note, x=0.007, ha="left", fontsize=7, color=style.CAPTION_COLOR)
        steps = content["directions"][direction] | {"edges": content["edges"]}
        tiles, curves = block.subfigures(1, 2, width_ratios=(len(steps) + 2, 3))
        draw_example(tiles.subplots(len(ALL_RULES), 1 + len(steps)), images, pictures[direction], steps, number)
        draw_curves(curves.subplots(), steps)
    return figure


def draw_example(
    grid: np.ndarray, images: Tensor, pictures: dict[str, dict[str, Tensor]], steps: dict[str, dict], number: int
) -> None:
    """An image, then a column for each step, with a row for each rule; all cropped like the trained network's."""
    side, corners = crop_boxes([by_rule[[number]] for by_rule in pictures["trained"].values()])
    columns = {"image": to_array(crop(images[[number]], side, corners)).repeat(len(ALL_RULES), 0)}
    for name, by_rule in pictures.items():
        example = torch.stack([by_rule[rule][number] for rule in ALL_RULES])
        columns[name] = diverging_tiles(crop(example, side, corners * len(ALL_RULES)))
    captions = {
        name: [style.format_two_digits(rules[rule]["values"][number]) for rule in ALL_RULES]
        for name, rules in steps.items()
    }
    draw_rows(grid, columns, ALL_RULES, captions)
    for axes, rule in zip(grid[:, 0], ALL_RULES, strict=True):
        axes.yaxis.label.set(color=style.RULE_STYLE[rule][0], weight="bold")


def draw_curves(axes: Axes, steps: dict[str, dict[str, dict]]) -> None:
    """Median and quartiles over the images, for each rule; the edges, the last step, apart from the networks."""
    x = [*range(len(steps) - 1), len(steps) - 0.7]
    for n, rule in enumerate(ALL_RULES):
        color, marker = style.RULE_STYLE[rule]
        look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1}
        numbers = [rules[rule] for rules in steps.values()]
        # None becomes nan
        low, median, high = (np.array([entry[key] for entry in numbers], float) for key in ("low", "median", "high"))
        axes.fill_between(x[:-1], low[:-1], high[:-1], color=color, alpha=0.2, linewidth=0)
        axes.plot(x[:-1], median[:-1], label=rule, **look)
        spans = [[median[-1] - low[-1]], [high[-1] - median[-1]]]
        axes.errorbar(x[-1] + 0.12 * (n - 1), median[-1], spans, **look)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(x, [textwrap.fill(name, 9) for name in steps], rotation=90)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(top=1.03)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(frameon=False, borderpad=0, labelspacing=0.2)
    axes.set_title(f"rank correlation,\n{len(numbers[0]['values'])} images", loc="left")
