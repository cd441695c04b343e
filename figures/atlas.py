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

    The comments below explain a profile. All sums are taken in float64.
    """
    search = inspection.search
    peaks = search.peaks[stage].double()
    alive, dead = split_dead_channels(search.top[stage], range(CHANNELS[stage]))
    if not alive:
        return {"dead": dead, "groups": [], "channels": {}}
    groups = [
        {"representative": alive[first], "channels": [alive[n] for n in members]}
        for first, members in group_channels(peaks[:, alive]).items()  # numbers among the living
    ]
    representatives = {channel: group["representative"] for group in groups for channel in group["channels"]}
    neighbours = nearest_channels(peaks, alive)
    labels = inspection.labels[inspection.searched]
    means = torch.stack([peaks[labels == n].mean(0) for n in range(len(inspection.label_names))])  # NaN: no image
    selectivity = class_selectivity(means)
    weights = inspection.network.fc.weight.cpu().double().T.tolist() if stage == STAGES[-1] else None
    profiles = {}
    for channel in alive:
        above_zero = peaks[:, channel][peaks[:, channel] > 0].numpy()
        highest = above_zero.max().item()
        by_class = [None if mean != mean else mean for mean in means[:, channel].tolist()]
        best = means[:, channel].nan_to_num(-1).argmax().item()
        profiles[channel] = {
            "stage": stage,
            "channel": channel,
            "peak": highest,
            "exciting": len(above_zero),  # images with a peak above 0; density: how many of them in each equal bin
            "density": np.histogram(above_zero, DENSITY_BINS, (0, highest))[0].tolist(),
            "class_means": by_class,  # mean peak over the images of each of the data set's classes; None without images
            "best_class": None if by_class[best] is None else best,  # number of the one with the highest mean
            "selectivity": None if selectivity is None else selectivity[channel].item(),  # None below two classes
            "class_weights": weights and weights[channel],  # conv5_x: fc.weight of each of the network's classes
            "neighbours": neighbours[channel],
            "representative": representatives[channel],  # of its group, which `group_channels` explains
        }
    return {"dead": dead, "groups": groups, "channels": profiles}


def nearest_channels(peaks: Tensor, alive: Sequence[int], count: int = NEIGHBOURS) -> dict[int, list[dict]]:
    """The `count` other living channels with the highest Pearson correlation of peaks (N, C), in descending order."""
    correlations = peak_correlations(peaks[:, alive]).fill_diagonal_(-torch.inf)
    values, others = (kept[:, :-1][:, :count].tolist() for kept in correlations.sort(descending=True, stable=True))
    return {
        channel: [{"channel": alive[n], "correlation": value} for n, value in zip(*nearest, strict=True)]
        for channel, *nearest in zip(alive, others, values, strict=True)
    }


def class_selectivity(means: Tensor) -> Tensor | None:
    """(best - rest) / (best + rest): 0 for a channel that responds to all classes alike, 1 to one class alone.

    best is the highest of the means (num_classes, C), not negative, NaN for a class without images; rest is the mean of
    the others. Returns (C,); 0 for dead channels; None with less than two classes. Morcos et al. 2018,
    arXiv:1803.06959, section 2.3, with peaks in the place of activations.
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

    Each patch is centred on the strongest unit's receptive field and shifted into the image. Of each image: its index
    in the test split, `Inspection.verdict`, the unit's activation and place in the map, and the patch as (top, left,
    bottom, right) in pixels of the network's input. `percent` of the peaks above zero are at most as high.
    """
    search, field = inspection.search, receptive_field(inspection.network, stage)
    rows = quantile_images(search.peaks[stage][:, channel])
    images, corners = [], []
    for percent, searched, index in zip(STRIP_PERCENTS, rows, inspection.searched[rows].tolist(), strict=True):
        unit = divmod(search.positions[stage][searched, channel].item(), search.top[stage].map_size[1])
        row, column = (position * field.stride - field.offset + field.size // 2 for position in unit)
        top, left = corner_inside((row, column), side, (inspection.metadata.image_size,) * 2)
        verdict = inspection.verdict(index, search.logits[searched].argmax())
        activation = search.peaks[stage][searched, channel].item()
        image = {"percent": percent, "index": index, "activation": activation, "row": unit[0], "column": unit[1]}
        image |= dict(zip(("label", "predicted", "correct"), verdict, strict=True))
        images.append(image | {"crop": [top, left, top + side, left + side]})
        corners.append((top, left))
    return images, crop(inspection.resized(inspection.images[inspection.searched[rows]]), side, corners)
