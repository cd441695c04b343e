"""Does a channel respond to what its reconstructions mark? The lower half of faithfulness.png.

Of the blocks that a channel's strongest units see, the most important ones by the units' own reconstructions are
removed, or all others are. The share of the activation that survives says whether a unit responds to what is marked.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.blocks import block_means, estimate, importance_ranks, remove_blocks
from analysis.channels import ChannelResult, reconstruct_top_images
from analysis.importance import random_maps, saliency, sobel_edges
from analysis.inspection import Inspection
from analysis.receptive_field import Units, blocks_seen, crop_to_receptive_field, locate_units
from analysis.reconstruction import ALL_RULES
from analysis.relevance import pixel_box, relevance_of_units
from analysis.settings import Settings
from figures.style import RULE_STYLE
from network import ResNet18
from reverse_network import isolate
from runtime.device import bf16_if_native

SHARES = (0.05, 0.1, 0.2)  # of the blocks in the receptive field
Change = tuple[str, float]
CHANGES: tuple[Change, ...] = tuple((kind, share) for kind in ("removed", "kept") for share in SHARES)
TURNED = {rule: f"{rule}, turned" for rule in (*ALL_RULES, "relevance")}
SQUARE = "square at the unit"
METHODS = (
    *(name for rule in ("relevance", "guided", "gradient", "deconvnet") for name in (rule, TURNED[rule])),
    SQUARE,
    "the unit's map",
    "Sobel edges",
    "random",
)
COLORS = {"relevance": "#2166ac"} | {rule: color for rule, (color, _) in RULE_STYLE.items()}


@torch.inference_mode()
def channel_shares(
    inspection: Inspection, settings: Settings, stage: str, channels: Sequence[int], count: int = 9
) -> tuple[list[int], dict[str, Tensor]]:
    """What survives of the activations of the `count` strongest units of each of these channels.

    Returns the channels that some image excites, and for every one of METHODS (C, len(CHANGES)): the share of the
    activation in the whole image, means over each channel's units. No channel and no method if no image excites any.
    """
    top = inspection.search.top[stage]
    top = replace(top, scores=top.scores[:, :count], indices=top.indices[:, :count], positions=top.positions[:, :count])
    inspection = replace(inspection, search=replace(inspection.search, top={stage: top}))
    alive = [channel for channel in channels if top.scores[channel, 0] > 0]
    if not alive:
        return [], {}
    pictures = reconstruct_top_images(inspection, replace(settings, rules=ALL_RULES, units="peak"), stage, alive)
    scored, shares = [], {name: [] for name in METHODS}
    for n, channel in enumerate(tqdm(alive, f"faithfulness, {stage}", unit="channels", leave=False, disable=None)):
        ranks, stored, units = live_units(inspection, stage, channel)
        maps = {rule: saliency(by_channel[n, ranks]).to(inspection.device) for rule, by_channel in pictures.items()}
        maps |= other_maps(inspection, stored, units, seeds=n * count + ranks)
        maps |= {turned: turn_about_unit(maps[rule], units) for rule, turned in TURNED.items()}
        left = unit_shares(inspection.network, units, maps, CHANGES, settings.batch_size)
        if not left[SQUARE].isnan().all():  # NaN by every method or by none
            scored.append(channel)
            for name in METHODS:
                shares[name].append(left[name].nanmean(0))
    return scored, {name: torch.stack(by_channel) for name, by_channel in shares.items()} if scored else {}


def live_units(inspection: Inspection, stage: str, channel: int) -> tuple[Tensor, Tensor, Units]:
    """Of a channel's strongest units that are on: their ranks (N,) int64, their stored images, and the units."""
    top = inspection.search.top[stage]
    ranks = (top.scores[channel] > 0).nonzero().flatten()
    stored = inspection.images[inspection.top_images(top, channel)[ranks]]
    positions = top.positions[channel][ranks].to(inspection.device)
    channels = torch.full_like(positions, channel)
    return ranks, stored, locate_units(inspection.network, stage, inspection.inputs(stored), channels, positions)


def other_maps(inspection: Inspection, stored: Tensor, units: Units, seeds: Tensor) -> dict[str, Tensor]:
    """method -> (N, H, W), for the methods that are no rule; seeds: (N,) int64 of the random maps."""
    network, size = inspection.network, units.inputs.shape[-2:]
    trace = network.trace(units.inputs, units.stage)
    features = trace.features[units.stage]
    signal = isolate(features, units.channels, units.cells[:, 0] * features.shape[-1] + units.cells[:, 1])
    box = pixel_box(inspection.metadata.mean, inspection.metadata.std)
    own = features[torch.arange(len(features), device=features.device), units.channels]
    return {
        "relevance": relevance_of_units(network, units.inputs, trace, signal, units.stage, box).sum(1),
        "the unit's map": F.interpolate(own[:, None], size, mode="bilinear")[:, 0],
        "Sobel edges": saliency(sobel_edges(inspection.resized(stored))),
        "random": random_maps(seeds, size),
    }


@torch.inference_mode()
def unit_shares(
    network: ResNet18, units: Units, maps: Mapping[str, Tensor], changes: Sequence[Change], batch_size: int
) -> dict[str, Tensor]:
    """`surviving_shares` in crops to what the units see, by maps (N, H, W) and SQUARE, on the CPU."""
    device = units.inputs.device
    shares = {name: torch.empty(len(units.cells), len(changes), dtype=units.inputs.dtype) for name in (*maps, SQUARE)}
    maps = {name: by_unit.to(device) for name, by_unit in maps.items()}
    for members, cropped, crops in crop_to_receptive_field(network, units, maps):
        importance = {name: block_means(crop, cropped.block) for name, crop in crops.items()}
        importance[SQUARE] = square_importance(cropped)
        with bf16_if_native(device):
            left = surviving_shares(network, cropped, importance, changes, batch_size)
        for name in shares:
            shares[name][members.cpu()] = left[name].cpu()
    return shares


def kept_by_tenth(inspection: Inspection, settings: Settings, result: ChannelResult) -> dict[str, float]:
    """rule, or SQUARE -> the share of the activation that the most important tenth of the blocks seen keeps.

    Means over the channel's strongest units; empty if no image excites it, or only so weakly that rounding takes all.
    """
    if result.images[0].activation <= 0:
        return {}
    ranks, _, units = live_units(inspection, result.stage, result.channel)
    maps = {rule: by_rank[ranks] for rule, by_rank in result.saliency.items()}
    shares = unit_shares(inspection.network, units, maps, [("kept", 0.1)], settings.batch_size)
    means = {name: by_unit.nanmean().item() for name, by_unit in shares.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def surviving_shares(
    network: ResNet18, units: Units, importance: Mapping[str, Tensor], changes: Sequence[Change], batch_size: int = 24
) -> dict[str, Tensor]:
    """What is left of each unit's activation: method -> (N, len(changes)), relative to that in the whole image.

    importance  method -> (N, n) of the blocks
    changes     of CHANGES: the most important share of the blocks seen, at least one, is removed, or it alone is kept

    NaN where the whole image does not activate the unit: rounding can take all of a weak activation. Raises
    CheckpointError when an activation is not finite.
    """
    seen = blocks_seen(units)
    ranks = torch.stack([importance_ranks(blocks.masked_fill(~seen, -torch.inf)) for blocks in importance.values()], 1)
    shares = torch.tensor([share for _, share in changes], device=seen.device)
    is_kept = torch.tensor([kind == "kept" for kind, _ in changes], device=seen.device)
    counts = (shares * seen.sum(1, keepdim=True)).round().clamp(min=1)  # (N, len(changes))
    whole = unit_activations(network, units, units.inputs, torch.arange(len(seen), device=seen.device))
    left = units.inputs.new_empty(len(seen), len(importance), len(changes))
    for cases in torch.cartesian_prod(*map(torch.arange, left.shape)).to(seen.device).split(batch_size):
        image, method, change = cases.T
        is_important = ranks[image, method] < counts[image, change, None]
        changed = remove_blocks(units.inputs[image], is_important != is_kept[change, None], units.block)
        left[image, method, change] = unit_activations(network, units, changed, image)
    check_finite(torch.cat([whole, left.flatten()]), "activations")
    left = (left / whole[:, None, None]).masked_fill((whole <= 0)[:, None, None], torch.nan)
    return {name: left[:, n] for n, name in enumerate(importance)}


def unit_activations(network: ResNet18, units: Units, inputs: Tensor, which: Tensor) -> Tensor:
    """(n,): the activations of these units, (n,) int64, in other images (n, 3, H, W)."""
    features = network.trace(inputs, units.stage).features[units.stage]
    row, column = units.cells[which].T
    return features[torch.arange(len(which), device=which.device), units.channels[which], row, column].to(inputs.dtype)


def turn_about_unit(maps: Tensor, units: Units) -> Tensor:
    """Maps (N, H, W), each turned by 180 degrees about its unit's center; 0 where that brings in what is outside.

    Same values, same distances from the unit: only the shape is another.
    """
    sources = []
    for axis, length in enumerate(maps.shape[-2:]):
        source = 2 * units.corners[:, axis, None] + units.size - 1 - torch.arange(length, device=maps.device)
        sources.append((source.clamp(0, length - 1), (0 <= source) & (source < length)))
    (rows, has_row), (columns, has_column) = sources
    number = torch.arange(len(maps), device=maps.device)[:, None, None]
    turned = maps[number, rows[:, :, None], columns[:, None, :]]
    return turned * (has_row[:, :, None] & has_column[:, None, :])


def square_importance(units: Units) -> Tensor:
    """(N, n): the closer a block to its unit's center, the higher; the first ones form a square."""
    offsets = []
    for axis, length in enumerate(units.inputs.shape[-2:]):
        first = torch.arange(0, length, units.block, device=units.corners.device)
        middle = (first + (first + units.block).clamp(max=length) - 1) / 2
        offsets.append((middle - units.centers[:, axis, None]).abs())
    down, across = offsets[0][:, :, None], offsets[1][:, None, :]
    larger, smaller = torch.maximum(down, across), torch.minimum(down, across)
    return -(larger + smaller * 1e-3).flatten(1)  # of equally distant rings, the sides before the corners


def stage_content(channels: Sequence[int], shares: Mapping[str, Tensor]) -> dict[str, dict]:
    """A stage's part of faithfulness.json: method -> numbers over the channels, and those of each channel."""
    content = {}
    for name, by_channel in shares.items():
        content[name] = by_change(map(estimate, by_channel.T))
        if name in TURNED:
            differences = by_channel - shares[TURNED[name]]
            content[name]["minus_turned"] = by_change(map(estimate, differences.T))
        by_number = zip(map(str, channels), map(by_change, by_channel.tolist()), strict=True)
        content[name]["by_channel"] = dict(by_number)
    return content


def by_change(values: Iterable) -> dict[str, dict]:
    """A value for each of CHANGES -> "removed" or "kept" -> share of the blocks, as text -> value."""
    by_pair = dict(zip(CHANGES, values, strict=True))
    return {kind: {str(share): by_pair[kind, share] for share in SHARES} for kind in ("removed", "kept")}


def color_of(method: str) -> str:
    """A rule's color for its picture and for what is made of it, such as "CAM + guided"; grey for all else."""
    words = method.replace(",", "").split()
    return next((color for rule, color in COLORS.items() if rule in words), "0.25")


def draw_dots(axes: Axes, content: dict[str, dict]) -> None:
    """A row per method: what is left without the most important tenth (hollow), and with nothing else (filled).

    content: of a stage, by `stage_content`
    """
    for row, name in enumerate(METHODS):
        color = color_of(name)
        for kind, face in (("removed", "white"), ("kept", color)):
            left = content[name][kind]["0.1"]
            axes.plot([left["low"], left["high"]], [row, row], color=color, linewidth=0.8, solid_capstyle="butt")
            axes.plot(left["mean"], row, "o", color=color, markerfacecolor=face, markersize=4, markeredgewidth=0.8,
                      clip_on=False)  # fmt: skip
    axes.set_yticks(range(len(METHODS)), METHODS)
    for label, name in zip(axes.get_yticklabels(), METHODS, strict=False):  # none but in the first panel
        label.set_color(color_of(name))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_ylim(len(METHODS) - 0.5, -0.5)
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("activation left", labelpad=1)
