"""Which channels respond alike: correlation of their peaks over images, and groups of similar channels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.crops import standardize

SIMILAR = 0.5  # correlation of peaks above which two channels count as similar
FAINT = 0.01  # share of the strongest channel's highest activation up to which a channel is not shown for itself


@dataclass(frozen=True)
class ChannelGroups:
    """A partition of the channels of a stage by their representatives, in descending order of peak activation."""

    representatives: tuple[int, ...]  # no two of them have a correlation above SIMILAR
    members: tuple[tuple[int, ...], ...]  # the channels of each one's group, in ascending order


def peak_correlations(peaks: Tensor) -> Tensor:
    """Pearson correlation of channels over images: peaks (N, C) -> (C, C) float64; 0 for constant channels."""
    rows = standardize(peaks.T)
    return rows @ rows.T


def dissimilar_channels(peaks: Tensor, count: int | None = None, correlations: Tensor | None = None) -> list[int]:
    """The strongest channels that are not similar to a stronger one, in descending order of peak activation.

    peaks         (N, C): each channel's highest activation in each of N images
    count         stop after this many channels; if there are fewer, the strongest similar ones follow
    correlations  `peak_correlations` of these peaks, if known

    Channels without any activation, and those up to FAINT of the strongest one's, are left out.
    """
    correlations = peak_correlations(peaks) if correlations is None else correlations
    highest = peaks.amax(0)
    order = highest.sort(descending=True, stable=True).indices.tolist()
    order = [channel for channel in order if highest[channel] > FAINT * highest.max()]
    taken: list[int] = []
    for channel in order:
        if not taken or correlations[channel, taken].max() <= SIMILAR:
            taken.append(channel)
    if count is not None:
        taken = [*taken, *(channel for channel in order if channel not in taken)][:count]
    return taken


def group_channels(peaks: Tensor) -> ChannelGroups:
    """Each channel in the group of the representative that it correlates with most; peaks: (N, C).

    Channels without any activation correlate with none and join the first group. Raises ValueError if all are such.
    """
    correlations = peak_correlations(peaks)
    representatives = dissimilar_channels(peaks, None, correlations)
    if not representatives:
        raise ValueError("no channel has any activation")
    groups = correlations[:, representatives].argmax(1)
    members = (torch.where(groups == n)[0].tolist() for n in range(len(representatives)))
    return ChannelGroups(tuple(representatives), tuple(map(tuple, members)))
