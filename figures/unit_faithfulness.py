"""Does a channel respond to what its reconstructions mark? The lower half of faithfulness.png.

Of the blocks that a channel's strongest units see, the most important ones by the units' own reconstructions are
removed, or all others are. The share of the activation that survives says whether a unit responds to what is marked.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from analysis.settings import Settings
from figures.style import RULE_STYLE
from network import ResNet18
from runtime.device import bf16_if_native

SHARES = (0.05, 0.1, 0.2)  # of the blocks in the receptive field
CHANGES = tuple((kind, share) for kind in ("removed", "kept") for share in SHARES)
TURNED = {rule: f"{rule}, turned" for rule in ALL_RULES}
SQUARE = "square at the unit"
METHODS = (
    *(name for rule in ("guided", "gradient", "deconvnet") for name in (rule, TURNED[rule])),
    SQUARE,
    "the unit's map",
    "Sobel edges",
    "random",
)


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
    is_on = top.scores[alive].cpu() > 0  # (C, count), the first ones of each row
    scored, shares, seed = [], {name: [] for name in METHODS}, 0
    total = int(is_on.sum()) * len(METHODS) * len(CHANGES)
    with tqdm(total=total, desc=f"faithfulness, {stage}", unit="images", leave=False, disable=None) as progress:
        for n, channel in enumerate(alive):
            images, positions = inspection.top_images(top, channel), top.positions[channel].cpu()
            parts = []
            for ranks in is_on[n].nonzero().flatten().split(settings.batch_size):
                maps = {rule: saliency(by_channel[n, ranks]) for rule, by_channel in pictures.items()}
                units = images[ranks], positions[ranks], maps, torch.arange(seed, seed := seed + len(ranks))
                parts.append(unit_shares(inspection, settings, stage, channel, *units, progress.update))
            if not torch.cat([part[SQUARE] for part in parts]).isnan().all():  # NaN by every method or by none
                scored.append(channel)
                for name in METHODS:
                    shares[name].append(torch.cat([part[name] for part in parts]).nanmean(0))
    return scored, {name: torch.stack(by_channel) for name, by_channel in shares.items()} if scored else {}


@torch.inference_mode()
def unit_shares(
    inspection: Inspection,
    settings: Settings,
    stage: str,
    channel: int,
    images: Tensor,
    positions: Tensor,
    maps: Mapping[str, Tensor],
    seeds: Tensor,
    advance: Callable[[int], object] = lambda count: None,
    methods: Sequence[str] = METHODS,
    changes: Sequence[tuple[str, float]] = CHANGES,
) -> dict[str, Tensor]:
    """For units of a channel, method -> `surviving_shares`, (N, len(changes)) on the CPU.

    images, positions  (N,) int64: index in the test split, and the unit at row * w + column
    maps               rule -> (N, S, S): saliency of the units' reconstructions
    seeds              (N,) int64, of the random map
    advance            called with the number of images after each forward pass
    methods, changes   some of METHODS and of CHANGES
    """
    network, device = inspection.network, inspection.device
    stored = inspection.images[images]
    channels = torch.full_like(positions, channel)
    units = locate_units(network, stage, inspection.inputs(stored), channels.to(device), positions.to(device))
    others: dict[str, Callable[[], Tensor]] = {
        "the unit's map": lambda: unit_maps(network, units),
        "Sobel edges": lambda: saliency(sobel_edges(inspection.resized(stored))),
        "random": lambda: random_maps(seeds, units.inputs.shape[-2:]),
    }
    maps = {**maps, **{name: compute() for name, compute in others.items() if name in methods}}
    maps = {name: pixels.to(device) for name, pixels in maps.items()}
    shares = {name: units.inputs.new_empty(len(images), len(changes), device="cpu") for name in methods}
    for members, cropped, crops in crop_to_receptive_field(network, units, maps):
        crops |= {turned: turn_about_unit(crops[rule], cropped) for rule, turned in TURNED.items() if turned in methods}
        importance = {
            name: square_importance(cropped) if name == SQUARE else block_means(crops[name], cropped.block)
            for name in methods
        }
        with bf16_if_native(device):
            left = surviving_shares(network, cropped, importance, changes, settings.batch_size, advance)
        for name in methods:
            shares[name][members.cpu()] = left[name].cpu()
    return shares


def kept_by_tenth(inspection: Inspection, settings: Settings, result: ChannelResult) -> dict[str, float]:
    """rule, or SQUARE -> the share of the activation that the most important tenth of the blocks seen keeps.

    Means over the channel's strongest units; empty if no image excites it, or only so weakly that rounding takes all.
    """
    ranks = [n for n, image in enumerate(result.images) if image.activation > 0]
    if not ranks:
        return {}
    top = inspection.search.top[result.stage]
    shares = unit_shares(
        inspection,
        settings,
        result.stage,
        result.channel,
        inspection.top_images(top, result.channel)[ranks],
        top.positions[result.channel].cpu()[ranks],
        {rule: maps[ranks] for rule, maps in result.saliency.items()},
        seeds=torch.arange(len(ranks)),
        methods=[*result.saliency, SQUARE],
        changes=[("kept", 0.1)],
    )
    means = {name: by_unit.nanmean().item() for name, by_unit in shares.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def surviving_shares(
    network: ResNet18,
    units: Units,
    importance: Mapping[str, Tensor],
    changes: Sequence[tuple[str, float]] = CHANGES,
    batch_size: int = 24,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Tensor]:
    """What is left of each unit's activation: method -> (N, len(changes)), relative to that in the whole image.

    importance  method -> (N, n) of the blocks
    changes     of CHANGES: the most important share of the blocks seen, at least one, is removed, or it alone is kept
    advance     called with the number of images after each forward pass

    NaN where the whole image does not activate the unit: rounding can take all of a weak activation.

    Raises CheckpointError when an activation is not finite.
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
        advance(len(cases))
    check_finite(torch.cat([whole, left.flatten()]), "activations")
    left = (left / whole[:, None, None]).masked_fill((whole <= 0)[:, None, None], torch.nan)
    return {name: left[:, n] for n, name in enumerate(importance)}


def unit_activations(network: ResNet18, units: Units, inputs: Tensor, which: Tensor) -> Tensor:
    """(n,): the activations of these units, (n,) int64, in other images (n, 3, H, W)."""
    features = network.trace(inputs, units.stage).features[units.stage]
    row, column = units.cells[which].T
    return features[torch.arange(len(which), device=which.device), units.channels[which], row, column].to(inputs.dtype)


def unit_maps(network: ResNet18, units: Units) -> Tensor:
    """(N, H, W): each unit's feature map, bilinear to the image."""
    features = network.trace(units.inputs, units.stage).features[units.stage]
    maps = features[torch.arange(len(features), device=features.device), units.channels]
    return F.interpolate(maps[:, None], units.inputs.shape[-2:], mode="bilinear")[:, 0]


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
        content[name] = estimates(by_channel)
        if name in TURNED:
            content[name]["minus_turned"] = estimates(by_channel - shares[TURNED[name]])
        content[name]["by_channel"] = {
            str(channel): by_change(values) for channel, values in zip(channels, by_channel.tolist(), strict=True)
        }
    return content


def estimates(shares: Tensor) -> dict[str, dict]:
    """(C, len(CHANGES)) -> "removed" or "kept" -> share of the blocks -> mean over the channels, with its interval."""
    return by_change(estimate(over_channels)._asdict() for over_channels in shares.T)


def by_change(values: Iterable) -> dict[str, dict]:
    """A value for each of CHANGES -> "removed" or "kept" -> share of the blocks, as text -> value."""
    content: dict[str, dict] = {}
    for (kind, share), value in zip(CHANGES, values, strict=True):
        content.setdefault(kind, {})[str(share)] = value
    return content


def draw_dots(axes: Axes, content: dict[str, dict], title: str, highest: float) -> None:
    """A row per method: what is left without the most important tenth (hollow), and with nothing else (filled).

    content  of a stage, as `stage_content` returns it
    highest  share of the activation that the axis reaches
    """
    rule_of = dict.fromkeys(TURNED) | {turned: rule for rule, turned in TURNED.items()}
    for row, name in enumerate(METHODS):
        rule = name if name in TURNED else rule_of.get(name)
        color = RULE_STYLE[rule][0] if rule else "0.25"
        for kind, face in (("removed", "white"), ("kept", color)):
            left = content[name][kind]["0.1"]
            axes.plot([left["low"], left["high"]], [row, row], color=color, linewidth=0.8, solid_capstyle="butt")
            axes.plot(left["mean"], row, "o", color=color, markerfacecolor=face, markersize=3.5, markeredgewidth=0.8,
                      clip_on=False)  # fmt: skip
    axes.set_yticks(range(len(METHODS)), METHODS)
    axes.set_ylim(len(METHODS) - 0.5, -0.5)
    axes.set_xlim(0, highest * 1.03)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("activation left", labelpad=1)
    axes.set_title(title, fontsize=7, pad=3)
