"""The search: the images that excite each channel most, and which channels respond alike."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analysis.crops import standardize
from network import CHANNELS, STAGES, ResNet18
from runtime.checkpoint import CheckpointError

SIMILAR = 0.5  # correlation of peaks above which two channels count as similar
FAINT = 0.01  # share of the strongest channel's highest activation up to which a channel is not shown for itself


@dataclass(frozen=True)
class TopActivations:
    """The k images that excite each of the C channels of a stage most; fewer if fewer were searched. On the CPU."""

    scores: Tensor  # (C, k): highest activation in the image, in descending order; on ties the earlier image first
    indices: Tensor  # (C, k) int64: the image, in the order of the search
    positions: Tensor  # (C, k) int64: the strongest unit, row * w + column
    map_size: tuple[int, int]  # (h, w) of the stage's maps


@dataclass(frozen=True)
class SearchResult:
    """The outcome of one pass over N images, by stage, on the CPU."""

    top: dict[str, TopActivations]
    peaks: dict[str, Tensor]  # (N, C): each channel's highest activation in each image
    logits: Tensor | None  # (N, num_classes); None unless they were asked for
    positions: dict[str, Tensor] = field(default_factory=dict)  # (N, C) int32: the unit of each peak, row * w + column


@torch.inference_mode()
def search(
    network: ResNet18,
    batches: Iterable[Tensor],
    count: int,
    stages: Collection[str],
    k: int = 9,
    with_logits: bool = False,
    inside: Mapping[str, slice | None] | None = None,
) -> SearchResult:
    """Search several stages, and optionally compute the logits, in one pass over `count` normalised images.

    batches  (N, 3, H, W) each
    inside   the rows and columns of a stage that are searched, as `units_inside` returns them; default: all

    Raises RuntimeError when the network is in training mode, in which a forward pass would change it.
    """
    if network.training:
        raise RuntimeError("the search needs the network in evaluation mode: call network.eval() first")
    until = STAGES[-1] if with_logits else max(stages, key=STAGES.index)
    # filled row by row: small results, each allocated among large ones that are freed, would fragment the memory
    weights, map_sizes, done = network.fc.weight, {}, 0
    peaks = {stage: weights.new_empty(count, CHANNELS[stage]) for stage in stages}
    units = {stage: torch.empty_like(peaks[stage], dtype=torch.int32) for stage in stages}
    logits = weights.new_empty(count, len(weights)) if with_logits else None
    for batch in batches:
        rows = slice(done, done := done + len(batch))
        features = network.trace(batch, until).features
        for stage in stages:
            peaks[stage][rows], units[stage][rows] = _peaks(features[stage], (inside or {}).get(stage))
            map_sizes[stage] = tuple(features[stage].shape[2:])
        if with_logits:
            logits[rows] = network.classify(features[until])
    peaks, units = ({stage: values.cpu() for stage, values in kept.items()} for kept in (peaks, units))
    top = {}
    for stage in stages:
        best = peaks[stage].T.sort(dim=1, descending=True, stable=True)
        scores, indices = best.values[:, :k].clone(), best.indices[:, :k].clone()  # so that the rest is freed
        top[stage] = TopActivations(scores, indices, units[stage].T.gather(1, indices).long(), map_sizes[stage])
    return SearchResult(top, peaks, logits.cpu() if with_logits else None, units)


def _peaks(features: Tensor, inside: slice | None) -> tuple[Tensor, Tensor]:
    """(N, C, h, w) -> each map's highest activation and its position: (N, C), (N, C) int64."""
    first = 0 if inside is None else inside.start
    searched = features if inside is None else features[:, :, inside, inside]
    scores, positions = searched.flatten(2).max(2)
    row, column = positions // searched.shape[3] + first, positions % searched.shape[3] + first
    return scores, row * features.shape[3] + column


def strongest_channels(peaks: Tensor, count: int = 9) -> list[int]:
    """The `count` channels with the highest peaks (C,), in descending order; on ties the lower number first."""
    return peaks.sort(dim=0, descending=True, stable=True).indices[:count].tolist()


def split_dead_channels(top: TopActivations, channels: Iterable[int]) -> tuple[list[int], list[int]]:
    """The channels that some searched image excites, and the dead ones, which are zero in all of them."""
    alive = (top.scores[:, 0] > 0).tolist()
    channels = list(channels)
    return [channel for channel in channels if alive[channel]], [channel for channel in channels if not alive[channel]]


@torch.inference_mode()
def feature_maps(network: ResNet18, inputs: Tensor, stages: Collection[str]) -> dict[str, Tensor]:
    """stage -> features (N, C, h, w) on the CPU, of normalised images (N, 3, H, W)."""
    features = network.trace(inputs, max(stages, key=STAGES.index)).features
    return {stage: check_finite(features[stage].cpu(), f"activations of {stage}") for stage in stages}


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values. Raises CheckpointError if any is NaN or infinite, as broken weights make them."""
    if not values.isfinite().all():
        raise CheckpointError(f"{what} are not finite: pass a checkpoint with other weights")
    return values


def peak_correlations(peaks: Tensor) -> Tensor:
    """Pearson correlation of channels over images: peaks (N, C) -> (C, C) float64; 0 for constant channels."""
    rows = standardize(peaks.T)
    return rows @ rows.T


def dissimilar_channels(peaks: Tensor, count: int | None = None, correlations: Tensor | None = None) -> list[int]:
    """The strongest channels that are not similar to a stronger one, in descending order of peak activation.

    peaks: (N, C), each channel's highest activation in each image; correlations: their `peak_correlations`, if known;
    count: stop after this many channels; if there are fewer, the strongest similar ones follow.

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


def group_channels(peaks: Tensor) -> dict[int, list[int]]:
    """A partition of the channels: representative -> the channels that correlate with it most, in ascending order.

    peaks: (N, C). The representatives are the `dissimilar_channels`, in their order. Channels without any activation
    correlate with none and join the first group. Raises ValueError if all are such.
    """
    correlations = peak_correlations(peaks)
    representatives = dissimilar_channels(peaks, None, correlations)
    if not representatives:
        raise ValueError("no channel has any activation")
    groups = correlations[:, representatives].argmax(1)
    groups[representatives] = torch.arange(len(representatives), device=groups.device)  # constant ones, too
    return {channel: torch.where(groups == n)[0].tolist() for n, channel in enumerate(representatives)}
