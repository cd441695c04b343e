"""What a channel's peaks over all searched images say about it: how often, how strongly, for which classes it responds.

The nine strongest images alone flatter a channel (Borowski et al. 2021, arXiv:2010.12606, show them beside others).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.activations import split_dead_channels
from analysis.channel_groups import ChannelGroups, group_channels, peak_correlations
from analysis.crops import corner_inside, crop
from analysis.inspection import Inspection
from analysis.receptive_field import receptive_field
from network import CHANNELS, STAGES

STRIP_PERCENTS = (99, 95, 75, 50, 25)  # quantiles of the peaks above zero
DENSITY_BINS = 24
NEIGHBOURS = 5


@dataclass(frozen=True)
class Neighbour:
    """Another channel of the stage, and the correlation of its peaks with this one's."""

    channel: int
    correlation: float


@dataclass(frozen=True)
class ChannelProfile:
    """A living channel of a stage, over N searched images. A peak is the highest activation in an image.

    peak            highest of all
    exciting        number of images with a peak above 0
    density         counts of these peaks in DENSITY_BINS equal bins from 0 to the highest
    class_means     mean peak over the images of each of the data set's classes; None without images
    best_class      number of the class with the highest mean; None if no image has a class
    selectivity     0..1: see `class_selectivity`; None with less than two classes
    class_weights   conv5_x: fc.weight of each of the network's classes; None at other stages
    neighbours      the NEIGHBOURS living channels with the highest correlation, in descending order
    representative  of the channel's group, which ChannelGroups explains
    """

    stage: str
    channel: int
    peak: float
    exciting: int
    density: tuple[int, ...]
    class_means: tuple[float | None, ...]
    best_class: int | None
    selectivity: float | None
    class_weights: tuple[float, ...] | None
    neighbours: tuple[Neighbour, ...]
    representative: int


@dataclass(frozen=True)
class StageProfile:
    """The living channels of a stage, by number, with the groups that they form, and the dead ones."""

    stage: str
    channels: dict[int, ChannelProfile]
    groups: ChannelGroups
    dead: tuple[int, ...]


@dataclass(frozen=True)
class StripImage:
    """The image at a quantile of the peaks above zero.

    percent     of these peaks, as many are at most as high
    index       in the test split
    activation  of the unit at (row, column)
    label       name of the image's class; `predicted`: of the class the network predicts
    correct     whether they agree; None if the network does not know the label
    crop        (top, left, bottom, right) of the tile, in pixels of the network's input
    """

    percent: int
    index: int
    activation: float
    row: int
    column: int
    label: str
    predicted: str
    correct: bool | None
    crop: tuple[int, int, int, int]


def profile_stage(inspection: Inspection, stage: str) -> StageProfile:
    """Every living channel of a searched stage; all sums are taken in float64."""
    search = inspection.search
    peaks = search.peaks[stage].double()
    alive, dead = split_dead_channels(search.top[stage], range(CHANNELS[stage]))
    if not alive:
        return StageProfile(stage, {}, ChannelGroups((), ()), tuple(dead))
    groups = living_groups(peaks, alive)
    representatives = {
        channel: first for first, members in zip(groups.representatives, groups.members, strict=True)
        for channel in members
    }  # fmt: skip
    neighbours = nearest_channels(peaks, alive)
    densities = peak_densities(peaks)
    means = class_means(peaks, inspection.labels[inspection.searched], len(inspection.label_names))
    selectivity = class_selectivity(means)
    weights = inspection.network.fc.weight.double().cpu().T.tolist() if stage == STAGES[-1] else None
    channels = {}
    for channel in alive:
        known = [None if mean != mean else mean for mean in means[:, channel].tolist()]
        best = means[:, channel].nan_to_num(-1).argmax().item()
        channels[channel] = ChannelProfile(
            stage,
            channel,
            peak=peaks[:, channel].max().item(),
            exciting=int((peaks[:, channel] > 0).sum()),
            density=tuple(densities[:, channel].tolist()),
            class_means=tuple(known),
            best_class=None if known[best] is None else best,
            selectivity=None if selectivity is None else selectivity[channel].item(),
            class_weights=None if weights is None else tuple(weights[channel]),
            neighbours=neighbours[channel],
            representative=representatives[channel],
        )
    return StageProfile(stage, channels, groups, tuple(dead))


def living_groups(peaks: Tensor, alive: Sequence[int]) -> ChannelGroups:
    """`group_channels` among the channels `alive`, by their numbers in the stage; peaks: (N, C)."""
    found = group_channels(peaks[:, alive])
    return ChannelGroups(
        tuple(alive[n] for n in found.representatives),
        tuple(tuple(alive[n] for n in members) for members in found.members),
    )


def nearest_channels(peaks: Tensor, alive: Sequence[int], count: int = NEIGHBOURS) -> dict[int, tuple[Neighbour, ...]]:
    """Each living channel's `count` most similar other ones, by Pearson's correlation of their peaks (N, C)."""
    correlations = peak_correlations(peaks[:, alive])
    correlations.fill_diagonal_(-torch.inf)
    found = correlations.sort(dim=1, descending=True, stable=True)
    count = min(count, len(alive) - 1)
    return {
        channel: tuple(
            Neighbour(alive[other], correlation)
            for other, correlation in zip(others[:count].tolist(), values[:count].tolist(), strict=True)
        )
        for channel, values, others in zip(alive, found.values, found.indices, strict=True)
    }


def peak_densities(peaks: Tensor, bins: int = DENSITY_BINS) -> Tensor:
    """How many of a channel's peaks above zero are in each of `bins` equal bins from 0 to the highest.

    peaks (N, C) -> (bins, C) int64. The highest belongs to the last bin.
    """
    highest = peaks.amax(0)
    places = (peaks / torch.where(highest > 0, highest, 1) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(bins, peaks.shape[1], dtype=torch.int64)
    return counts.scatter_add_(0, places, (peaks > 0).long())


def class_means(peaks: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean peak of each channel over the images of each class: peaks (N, C), labels (N,) -> (num_classes, C).

    NaN for a class without images.
    """
    sums = torch.zeros(num_classes, peaks.shape[1], dtype=torch.float64).index_add_(0, labels, peaks.double())
    return sums / labels.bincount(minlength=num_classes)[:, None]


def class_selectivity(means: Tensor) -> Tensor | None:
    """(best - rest) / (best + rest): 0 for a channel that responds to all classes alike, 1 to one class alone.

    means  (num_classes, C), not negative; NaN for a class without images
    best   the highest mean; rest: the mean of the other classes' means

    Returns (C,); 0 for dead channels; None with less than two classes. Morcos et al. 2018, arXiv:1803.06959, section
    2.3, with peaks in the place of activations.
    """
    known = means[~means.isnan().any(1)]
    if len(known) < 2:
        return None
    best = known.amax(0)
    rest = (known.sum(0) - best) / (len(known) - 1)
    return torch.where(best > 0, (best - rest) / (best + rest), 0.0)


def quantile_images(peaks: Tensor, percents: Sequence[int] = STRIP_PERCENTS) -> list[int]:
    """The image at each quantile of the peaks above zero of one channel, (N,): indices into them.

    The quantile is the lowest peak that `percent` of the peaks above zero do not exceed (the inverse of the
    distribution function). Of equal peaks, later images count as higher. Empty if no peak is above zero.
    """
    ascending = peaks.sort(stable=True).indices[int((peaks <= 0).sum()) :].tolist()
    count = len(ascending)
    return [ascending[-(-percent * count // 100) - 1] for percent in percents] if count else []


def strip(inspection: Inspection, stage: str, channel: int, side: int) -> tuple[tuple[StripImage, ...], Tensor]:
    """The images at the quantiles of a channel's peaks, and their patches (n, 3, side, side) in 0..1.

    Each patch is centred on the strongest unit's receptive field and shifted into the image.
    """
    search = inspection.search
    rows = quantile_images(search.peaks[stage][:, channel])
    indices = inspection.searched[rows]
    field = receptive_field(inspection.network, stage)
    size, width = (inspection.metadata.image_size,) * 2, search.top[stage].map_size[1]
    images, corners = [], []
    for percent, found, index in zip(STRIP_PERCENTS, rows, indices.tolist(), strict=True):
        row, column = divmod(search.positions[stage][found, channel].item(), width)
        middle = tuple(unit * field.stride - field.offset + field.size // 2 for unit in (row, column))
        top, left = corner_inside(middle, side, size)
        label, predicted, correct = inspection.verdict(index, search.logits[found].argmax())
        images.append(
            StripImage(
                percent,
                index,
                search.peaks[stage][found, channel].item(),
                row,
                column,
                label,
                predicted,
                correct=correct,
                crop=(top, left, top + side, left + side),
            )
        )
        corners.append((top, left))
    return tuple(images), crop(inspection.resized(inspection.images[indices]), side, corners)
