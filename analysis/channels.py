"""Which channels to show, their strongest units, and one channel's top images with their reconstructions."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from analysis import activations
from analysis.activations import SearchResult, TopActivations
from analysis.crops import crop, crop_boxes, mean_correlation
from analysis.importance import saliency
from analysis.inspection import Inspection
from analysis.receptive_field import units_inside
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from network import CHANNELS
from reverse_network import ReverseResNet18

GROUP_BYTES = 2**27  # of uncropped reconstructions at a time: at 224x224, 12 channels with 9 images and 2 rules


@dataclass(frozen=True)
class TopImage:
    """One of the images that excite a channel most."""

    rank: int  # from 1
    index: int  # in the test split
    activation: float  # of the channel's strongest unit
    row: int  # of this unit in the map
    column: int
    label: str  # name of the image's class
    predicted: str  # name of the class that the network predicts
    correct: bool | None  # whether they agree; None if the network does not know the label
    file: str | None  # where the image comes from; None for named data sets
    border: bool  # whether the unit sees the padding
    crop: tuple[int, int, int, int]  # (top, left, bottom, right) of the tile, in pixels of the network's input
    scale: dict[str, float]  # rule -> half-width of the tile's color scale


@dataclass(frozen=True)
class ChannelResult:
    """A channel's top images and what it saw in them."""

    stage: str
    channel: int
    images: tuple[TopImage, ...]  # in descending order of activation
    patches: Tensor  # (n, 3, s, s) in 0..1: the images, cropped to the reconstructions' energy
    reconstructions: dict[str, Tensor]  # rule -> (n, 3, s, s), cropped alike
    correlation: dict[str, float | None]  # rule -> mean over all pairs of reconstructions; None if undefined
    saliency: dict[str, Tensor] = field(default_factory=dict)  # rule -> (n, S, S), of the whole reconstructions

    def entries(self) -> list[dict]:
        """The lines of top9.json, one per image."""
        channel = {"stage": self.stage, "channel": self.channel}
        return [channel | asdict(image) | {"correlation": self.correlation} for image in self.images]


@dataclass(frozen=True)
class StrongestUnits:
    """The strongest unit of each of n channels, over all searched images."""

    stage: str
    channels: list[int]
    images: Tensor  # (n,) int64: the images they are in, indices in the test split
    positions: Tensor  # (n,) int64: row * w + column in the map
    scores: Tensor  # (n,) activations


def chosen_channels(settings: Settings, search: SearchResult, stage: str, count: int = 9) -> list[int]:
    """The channels asked for by number, or `count` channels by settings.channels ("all": as "different").

    A stage that has none of the numbers gets `count` "different" channels.
    """
    peaks = search.peaks[stage]
    if numbers := [number for number in settings.channel_numbers or () if number < CHANNELS[stage]]:
        return numbers
    if settings.channels == "strongest":
        return activations.strongest_channels(peaks.amax(0), count)
    if settings.channels == "random":
        return random_channels(peaks, settings.seed, count)
    return activations.dissimilar_channels(peaks, count)


def random_channels(peaks: Tensor, seed: int, count: int) -> list[int]:
    """`count` channels that some image excites, drawn from a seed, in ascending order. peaks: (N, C)."""
    alive = (peaks.amax(0) > 0).nonzero().flatten().numpy()
    return sorted(np.random.default_rng(seed).permutation(alive)[:count].tolist())


def channels_to_draw(settings: Settings, search: SearchResult, stage: str) -> tuple[list[int], list[int]]:
    """The living and the dead channels of a stage that have figures of their own."""
    channels = range(CHANNELS[stage]) if settings.channels == "all" else chosen_channels(settings, search, stage)
    return activations.split_dead_channels(search.top[stage], channels)


def strongest_units(inspection: Inspection, stage: str, channels: list[int], top: TopActivations) -> StrongestUnits:
    """The units at the head of a search of the inspection's images, by its network or by another."""
    images = inspection.searched[top.indices[channels, 0]]
    return StrongestUnits(stage, channels, images, top.positions[channels, 0], top.scores[channels, 0])


def reconstruct_units(
    inspection: Inspection, mirrors: dict[str, ReverseResNet18], units: StrongestUnits
) -> dict[str, Tensor]:
    """name of the mirror -> (n, 3, S, S): what each of these units of the inspection's network saw."""
    inputs = inspection.inputs(inspection.images[units.images])
    return reconstruct(inspection.network, mirrors, inputs, units.stage, units.channels, units.positions)


def reconstruct_top_images(
    inspection: Inspection, settings: Settings, stage: str, channels: Sequence[int]
) -> dict[str, Tensor]:
    """rule -> (n, k, 3, S, S): what each of n channels saw in each of its top images.

    An image that several channels need is traced once.
    """
    top = inspection.search.top[stage]
    chosen = inspection.top_images(top, channels)  # (n, k)
    distinct, images = chosen.flatten().unique(return_inverse=True)
    mirrors = mirrors_by_rule(inspection.network, settings.rules, settings.unpool)
    inputs = inspection.inputs(inspection.images[distinct])
    repeated = torch.as_tensor(channels).repeat_interleave(chosen.shape[1])
    units = top.positions[channels].flatten() if settings.units == "peak" else "map"
    pictures = reconstruct(inspection.network, mirrors, inputs, stage, repeated, units, settings.batch_size, images)
    return {rule: by_image.unflatten(0, chosen.shape) for rule, by_image in pictures.items()}


def inspect_channels(
    inspection: Inspection, settings: Settings, stage: str, channels: Sequence[int]
) -> Iterator[ChannelResult]:
    """Each channel's top images and their reconstructions by every chosen rule.

    Channels are reconstructed in groups, as large as GROUP_BYTES allows, which share the traces of their images.
    """
    channel_bytes = settings.top * len(settings.rules) * 3 * inspection.metadata.image_size**2 * 4
    size = max(1, GROUP_BYTES // channel_bytes)
    for first in range(0, len(channels), size):
        group = channels[first : first + size]
        whole = reconstruct_top_images(inspection, settings, stage, group)
        for n, channel in enumerate(group):
            yield crop_channel(inspection, settings, stage, channel, {rule: whole[rule][n] for rule in whole})


def crop_channel(
    inspection: Inspection, settings: Settings, stage: str, channel: int, whole: dict[str, Tensor]
) -> ChannelResult:
    """A channel's result, from its reconstructions: rule -> (k, 3, S, S).

    A tile's color scale is its `robust_limit`, or for all tiles of a channel their largest absolute value, as
    settings.scale says. Each rule's correlation is measured in crops around its own energy.
    """
    side, corners = crop_boxes(list(whole.values()))
    tiles = {rule: crop(pictures, side, corners) for rule, pictures in whole.items()}
    scales = {rule: robust_limit(cropped) for rule, cropped in tiles.items()}
    if settings.scale == "channel":
        scales = {rule: [cropped.abs().max().item()] * len(cropped) for rule, cropped in tiles.items()}
    images = top_images(inspection, stage, channel, side, corners, scales)
    patches = crop(inspection.resized(inspection.images[[image.index for image in images]]), side, corners)
    correlation = {rule: mean_correlation(crop(own, *crop_boxes([own]))) for rule, own in whole.items()}
    maps = {rule: saliency(pictures) for rule, pictures in whole.items()}
    return ChannelResult(stage, channel, images, patches, tiles, correlation, maps)


def top_images(
    inspection: Inspection, stage: str, channel: int, side: int, corners: list[tuple[int, int]], scales: dict
) -> tuple[TopImage, ...]:
    """What is known of a channel's top images, whose tiles of this side have these (top, left) corners."""
    top = inspection.search.top[stage]
    predictions = inspection.search.logits[top.indices[channel]].argmax(1)
    inside = units_inside(inspection.network, stage, inspection.metadata.image_size, least=0.0)
    images = []
    for n, index in enumerate(inspection.top_images(top, channel).tolist()):
        row, column = divmod(top.positions[channel, n].item(), top.map_size[1])
        unit = top.scores[channel, n].item(), row, column
        verdict = inspection.verdict(index, predictions[n])
        file = str(inspection.files[index]) if inspection.files else None
        sees_padding = not all(inside.start <= at < inside.stop for at in (row, column))
        box = (*corners[n], corners[n][0] + side, corners[n][1] + side)
        scale = {rule: limits[n] for rule, limits in scales.items()}
        images.append(TopImage(n + 1, index, *unit, *verdict, file, sees_padding, box, scale))
    return tuple(images)


def robust_limit(tiles: Tensor) -> list[float]:
    """The 99 % quantile, over the pixels of each tile (n, 3, s, s), of the largest absolute value of the three colors.

    The maximum where the quantile is 0 or, as some GPU convolutions leave it, a rounding error of it.
    """
    strongest = tiles.abs().amax(1).flatten(1)
    limits, maxima = strongest.quantile(0.99, dim=1), strongest.amax(1)
    return torch.where(limits > 1e-6 * maxima, limits, maxima).tolist()
