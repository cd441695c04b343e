"""What a channel's peaks over all searched images say about it: how often, how strongly, for which classes it responds.

A peak is a channel's highest activation in an image. The nine strongest images alone flatter a channel (Borowski et
al. 2021, arXiv:2010.12606, show them beside others). Results are the content of atlas.json.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.activations import group_channels, peak_correlations, split_dead_channels
from analysis.crops import corner_inside, crop
from analysis.inspection import Inspection
from analysis.receptive_field import receptive_field
from network import CHANNELS, STAGES

STRIP_PERCENTS = (99, 95, 75, 50, 25)  # quantiles of the peaks above zero
DENSITY_BINS = 24
NEIGHBOURS = 5


def profile_stage(inspection: Inspection, stage: str) -> dict:
    """A searched stage's `dead` channels, `groups` of similar living ones, and `channels`: number -> its profile.

    A profile is a dict, of N searched images:

    stage, channel
    peak            highest of all
    exciting        number of images with a peak above 0
    density         counts of these peaks in DENSITY_BINS equal bins from 0 to the highest
    class_means     mean peak over the images of each of the data set's classes; None without images
    best_class      number of the class with the highest mean; None if no image has a class
    selectivity     0..1: see `class_selectivity`; None with less than two classes
    class_weights   conv5_x: fc.weight of each of the network's classes; None at other stages
    neighbours      `nearest_channels`
    representative  of the channel's group, which ChannelGroups explains

    All sums are taken in float64.
    """
    search = inspection.search
    peaks = search.peaks[stage].double()
    alive, dead = split_dead_channels(search.top[stage], range(CHANNELS[stage]))
    if not alive:
        return {"dead": dead, "groups": [], "channels": {}}
    found = group_channels(peaks[:, alive])  # numbers among the living
    members = {alive[first]: [alive[n] for n in rest]
               for first, rest in zip(found.representatives, found.members, strict=True)}  # fmt: skip
    representatives = {channel: first for first, channels in members.items() for channel in channels}
    neighbours = nearest_channels(peaks, alive)
    means = class_means(peaks, inspection.labels[inspection.searched], len(inspection.label_names))
    selectivity = class_selectivity(means)
    weights = inspection.network.fc.weight.double().cpu().T.tolist() if stage == STAGES[-1] else None
    profiles = {}
    for channel in alive:
        above_zero = peaks[:, channel][peaks[:, channel] > 0].numpy()
        known = [None if mean != mean else mean for mean in means[:, channel].tolist()]
        best = means[:, channel].nan_to_num(-1).argmax().item()
        profiles[channel] = {
            "stage": stage,
            "channel": channel,
            "peak": above_zero.max().item(),
            "exciting": len(above_zero),
            "density": np.histogram(above_zero, DENSITY_BINS, (0, above_zero.max()))[0].tolist(),
            "class_means": known,
            "best_class": None if known[best] is None else best,
            "selectivity": None if selectivity is None else selectivity[channel].item(),
            "class_weights": weights and weights[channel],
            "neighbours": neighbours[channel],
            "representative": representatives[channel],
        }
    groups = [{"representative": first, "channels": channels} for first, channels in members.items()]
    return {"dead": dead, "groups": groups, "channels": profiles}


def nearest_channels(peaks: Tensor, alive: Sequence[int], count: int = NEIGHBOURS) -> dict[int, list[dict]]:
    """Each living channel's `count` most similar other ones, as `channel` and `correlation`, in descending order.

    The correlation is Pearson's of their peaks (N, C).
    """
    correlations = peak_correlations(peaks[:, alive])
    correlations.fill_diagonal_(-torch.inf)
    nearest = correlations.sort(dim=1, descending=True, stable=True)
    count = min(count, len(alive) - 1)
    return {
        channel: [{"channel": alive[n], "correlation": value} for n, value in zip(others, values, strict=True)]
        for channel, others, values in zip(
            alive, nearest.indices[:, :count].tolist(), nearest.values[:, :count].tolist(), strict=True
        )
    }


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


def strip(inspection: Inspection, stage: str, channel: int, side: int) -> tuple[list[dict], Tensor]:
    """The images at the quantiles of a channel's peaks, and their patches (n, 3, side, side) in 0..1.

    Each patch is centred on the strongest unit's receptive field and shifted into the image. Of each image:

    percent     of the peaks above zero, as many are at most as high
    index       in the test split
    activation  of the unit at (row, column)
    label       name of the image's class; `predicted`: of the class the network predicts
    correct     whether they agree; None if the network does not know the label
    crop        (top, left, bottom, right) of the patch, in pixels of the network's input
    """
    search = inspection.search
    rows = quantile_images(search.peaks[stage][:, channel])
    indices = inspection.searched[rows]
    field = receptive_field(inspection.network, stage)
    size, width = (inspection.metadata.image_size,) * 2, search.top[stage].map_size[1]
    images, corners = [], []
    for percent, searched, index in zip(STRIP_PERCENTS, rows, indices.tolist(), strict=True):
        row, column = divmod(search.positions[stage][searched, channel].item(), width)
        center = tuple(unit * field.stride - field.offset + field.size // 2 for unit in (row, column))
        top, left = corner_inside(center, side, size)
        label, predicted, correct = inspection.verdict(index, search.logits[searched].argmax())
        activation = search.peaks[stage][searched, channel].item()
        unit = {"percent": percent, "index": index, "activation": activation, "row": row, "column": column}
        verdict = {"label": label, "predicted": predicted, "correct": correct}
        images.append(unit | verdict | {"crop": [top, left, top + side, left + side]})
        corners.append((top, left))
    return images, crop(inspection.resized(inspection.images[indices]), side, corners)
