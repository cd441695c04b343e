"""Does a channel respond to what its reconstructions mark? They and controls are scored on its strongest units."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from analysis.blocks import block_means
from analysis.channels import ChannelResult, reconstruct_top_images
from analysis.importance import random_maps, saliency, sobel_edges
from analysis.inspection import Inspection
from analysis.receptive_field import searched_units
from analysis.reconstruction import ALL_RULES
from analysis.settings import Settings
from analysis.unit_shares import (
    CHANGES,
    Units,
    crop_to_receptive_field,
    locate_units,
    square_importance,
    surviving_shares,
    turn_about_unit,
)
from network import ResNet18
from runtime.device import bf16_if_native

TURNED = {rule: f"{rule}, turned" for rule in ALL_RULES}
SQUARE = "square at the unit"
METHODS = (
    *(name for rule in ("guided", "gradient", "deconvnet") for name in (rule, TURNED[rule])),
    SQUARE,
    "the unit's map",
    "Sobel edges",
    "random",
)


@dataclass(frozen=True)
class ChannelShares:
    """What survives of the activations of some channels' strongest units.

    stage     of the channels
    channels  (C,) numbers
    block     side of a block in pixels
    shares    method -> (C, len(CHANGES)): of the activation in the whole image, means over each channel's units
    """

    stage: str
    channels: tuple[int, ...]
    block: int
    shares: dict[str, Tensor]


@torch.inference_mode()
def channel_shares(
    inspection: Inspection, settings: Settings, stage: str, channels: Sequence[int], count: int = 9
) -> ChannelShares | None:
    """The `count` strongest units of each of these channels, by every one of METHODS; None if no image excites any."""
    top = inspection.search.top[stage]
    top = replace(top, scores=top.scores[:, :count], indices=top.indices[:, :count], positions=top.positions[:, :count])
    inspection = replace(inspection, search=replace(inspection.search, top={stage: top}))
    alive = [channel for channel in channels if top.scores[channel, 0] > 0]
    if not alive:
        return None
    pictures = reconstruct_top_images(inspection, replace(settings, rules=ALL_RULES, units="peak"), stage, alive)
    owner, rank = (top.scores[alive] > 0).nonzero().cpu().T  # of each unit: its channel's place in `alive`, its image's
    images = torch.stack([inspection.top_images(top, channel) for channel in alive])[owner, rank]
    numbers, positions = torch.tensor(alive)[owner], top.positions[alive].cpu()[owner, rank]
    found: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    total = len(owner) * len(METHODS) * len(CHANGES)
    with tqdm(total=total, desc=f"faithfulness, {stage}", unit="images", leave=False, disable=None) as progress:
        for part in torch.arange(len(owner)).split(settings.batch_size):
            maps = {rule: saliency(each[owner[part], rank[part]]) for rule, each in pictures.items()}
            block, shares = unit_shares(
                inspection, settings, stage, images[part], numbers[part], positions[part], maps, part, progress.update
            )
            for name, each in shares.items():
                found[name].append(each)
    shares = {name: torch.cat(each) for name, each in found.items()}
    is_known = ~shares[SQUARE].isnan().any(1)  # NaN by every method or by none
    weights = F.one_hot(owner[is_known], len(alive)).T.float()  # (C, N)
    counts = weights.sum(1, keepdim=True)
    weights = (weights / counts)[counts[:, 0] > 0]
    scored = tuple(channel for channel, count in zip(alive, counts.tolist(), strict=True) if count[0])
    means = {name: weights @ each[is_known] for name, each in shares.items()}
    return ChannelShares(stage, scored, block, means) if scored else None


@torch.inference_mode()
def unit_shares(
    inspection: Inspection,
    settings: Settings,
    stage: str,
    images: Tensor,
    channels: Tensor,
    positions: Tensor,
    maps: dict[str, Tensor],
    seeds: Tensor,
    advance: Callable[[int], object] = lambda count: None,
    methods: Sequence[str] = METHODS,
    changes: Sequence[tuple[str, float]] = CHANGES,
) -> tuple[int, dict[str, Tensor]]:
    """The side of a block, and for units of the inspection's search, method -> `surviving_shares`, on the CPU.

    images, channels, positions  (N,) int64: index in the test split, and the unit at row * w + column
    maps                         rule -> (N, S, S): saliency of the units' reconstructions
    seeds                        (N,) int64, of the random map
    advance                      called with the number of images after each forward pass
    methods, changes             some of METHODS and of CHANGES
    """
    network, device = inspection.network, inspection.device
    stored = inspection.images[images]
    units = locate_units(network, stage, inspection.inputs(stored), channels.to(device), positions.to(device))
    maps = {
        **maps,
        "the unit's map": unit_maps(network, units),
        "Sobel edges": saliency(sobel_edges(inspection.resized(stored))),
        "random": random_maps(seeds, units.inputs.shape[-2:]),
    }
    maps = {name: each.to(device) for name, each in maps.items()}
    if searched_units(network, [stage], inspection.metadata.image_size, settings.border)[stage]:
        units, maps = crop_to_receptive_field(network, units, maps)
    maps |= {TURNED[rule]: turn_about_unit(maps[rule], units) for rule in maps if rule in ALL_RULES}
    importance = {name: block_means(each, units.block) for name, each in maps.items()}
    importance[SQUARE] = square_importance(units)
    importance = {name: importance[name] for name in methods}
    with bf16_if_native(device):
        shares = surviving_shares(network, units, importance, changes, settings.batch_size, advance)
    return units.block, {name: each.cpu() for name, each in shares.items()}


def kept_by_tenth(inspection: Inspection, settings: Settings, result: ChannelResult) -> dict[str, float]:
    """rule, or SQUARE -> the share of the activation that the most important tenth of the blocks seen keeps.

    Means over the channel's strongest units; empty if no image excites it, or only so weakly that rounding takes all.
    """
    ranks = [n for n, image in enumerate(result.images) if image.activation > 0]
    if not ranks:
        return {}
    images = [result.images[n] for n in ranks]
    columns = inspection.search.top[result.stage].map_size[1]
    _, shares = unit_shares(
        inspection,
        settings,
        result.stage,
        torch.tensor([image.index for image in images]),
        torch.full((len(images),), result.channel),
        torch.tensor([image.row * columns + image.column for image in images]),
        {rule: each[ranks] for rule, each in result.saliency.items()},
        torch.arange(len(images)),
        methods=[*result.saliency, SQUARE],
        changes=[("kept", 0.1)],
    )
    means = {name: each.nanmean().item() for name, each in shares.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def unit_maps(network: ResNet18, units: Units) -> Tensor:
    """(N, H, W): each unit's feature map, bilinear to the image."""
    features = network.trace(units.inputs, units.stage).features[units.stage]
    shown = features[torch.arange(len(features), device=features.device), units.channels]
    return F.interpolate(shown[:, None], units.inputs.shape[-2:], mode="bilinear")[:, 0]
