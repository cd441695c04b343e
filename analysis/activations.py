"""Top-k search: the images that excite each channel most."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from network import STAGES, ResNet18
from runtime.checkpoint import CheckpointError


@dataclass(frozen=True)
class TopActivations:
    """The k images that excite each of the C channels of a stage most.

    scores     (C, k)  the channel's highest activation in the image, in descending order; on ties the earlier image
    indices    (C, k)  int64, the image, in the order of the search
    positions  (C, k)  int64, the strongest unit: row * w + column
    map_size   (h, w) of the stage's maps

    A search of fewer than k images gives fewer columns.
    """

    scores: Tensor
    indices: Tensor
    positions: Tensor
    map_size: tuple[int, int]


@dataclass(frozen=True)
class SearchResult:
    """The outcome of one pass over N images.

    top        stage -> TopActivations
    peaks      stage -> (N, C) on the CPU: each channel's highest activation in each image
    logits     (N, num_classes) on the CPU; None unless they were asked for
    positions  stage -> (N, C) int32 on the CPU: the unit of each peak, row * w + column
    """

    top: dict[str, TopActivations]
    peaks: dict[str, Tensor]
    logits: Tensor | None
    positions: dict[str, Tensor] = field(default_factory=dict)


class RowBuffer:
    """Rows appended to one tensor that doubles when it is full.

    A list of small tensors, each allocated among large ones that are freed, would fragment the heap by gigabytes.
    """

    def __init__(self):
        self.buffer, self.count = torch.empty(0), 0

    def append(self, rows: Tensor) -> None:
        """Adds rows (n, ...) of equal shape, dtype and device."""
        needed = self.count + len(rows)
        if needed > len(self.buffer):
            larger = rows.new_empty(max(2 * len(self.buffer), needed, 1024), *rows.shape[1:])
            larger[: self.count] = self.buffer[: self.count] if self.count else 0
            self.buffer = larger
        self.buffer[self.count : needed] = rows
        self.count = needed

    def rows(self) -> Tensor:
        """All rows so far, as a tensor of its own."""
        return self.buffer[: self.count].clone()


@torch.inference_mode()
def search(
    network: ResNet18,
    batches: Iterable[Tensor],
    stages: Iterable[str],
    k: int = 9,
    with_logits: bool = False,
    inside: Mapping[str, slice | None] | None = None,
) -> SearchResult:
    """Search several stages, and optionally compute the logits, in one pass over normalised batches (N, 3, H, W).

    inside: the rows and columns of a stage that are searched, as `units_inside` returns them; default: all

    Raises RuntimeError when the network is in training mode, in which a forward pass would change it.
    """
    if network.training:
        raise RuntimeError("the search needs the network in evaluation mode: call network.eval() first")
    stages = list(stages)
    until = STAGES[-1] if with_logits else max(stages, key=STAGES.index)
    top: dict[str, TopActivations] = {}
    peaks, positions = ({stage: RowBuffer() for stage in stages} for _ in range(2))
    logits, seen = RowBuffer(), 0
    for batch in batches:
        features = network.trace(batch, until).features
        for stage in stages:
            strongest = _peaks(features[stage], seen, (inside or {}).get(stage))
            peaks[stage].append(strongest.scores.T)
            positions[stage].append(strongest.positions.T.int())
            top[stage] = _best(_concatenate(top[stage], strongest) if stage in top else strongest, k)
        if with_logits:
            logits.append(network.classify(features[until]))
        seen += len(batch)
    all_peaks, units = ({stage: buffer.rows().cpu() for stage, buffer in kept.items()} for kept in (peaks, positions))
    return SearchResult(top, all_peaks, logits.rows().cpu() if with_logits else None, units)


def strongest_channels(peaks: Tensor, count: int = 9) -> list[int]:
    """The `count` channels with the highest peaks (C,), in descending order; on ties the lower number first."""
    return peaks.sort(dim=0, descending=True, stable=True).indices[:count].tolist()


def split_dead_channels(top: TopActivations, channels: Iterable[int]) -> tuple[list[int], list[int]]:
    """The channels that some searched image excites, and the dead ones, which are zero in all of them."""
    alive = (top.scores[:, 0] > 0).tolist()
    channels = list(channels)
    return [channel for channel in channels if alive[channel]], [channel for channel in channels if not alive[channel]]


@torch.inference_mode()
def feature_maps(network: ResNet18, inputs: Tensor, stages: Iterable[str]) -> dict[str, Tensor]:
    """stage -> features (N, C, h, w) on the CPU, of normalised images (N, 3, H, W)."""
    stages = list(stages)
    features = network.trace(inputs, max(stages, key=STAGES.index)).features
    return {stage: check_finite(features[stage].cpu(), f"activations of {stage}") for stage in stages}


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values. Raises CheckpointError if any is NaN or infinite, as broken weights make them."""
    if not values.isfinite().all():
        raise CheckpointError(f"{what} are not finite: pass a checkpoint with other weights")
    return values


def _peaks(features: Tensor, first_index: int, inside: slice | None) -> TopActivations:
    """Each image's strongest unit per channel: N columns, not sorted. features: (N, C, h, w)."""
    searched = features if inside is None else features[:, :, inside, inside]
    scores, positions = searched.flatten(2).max(2)  # (N, C)
    if inside is not None:  # positions in the whole map
        row, column = positions // searched.shape[3], positions % searched.shape[3]
        positions = (row + inside.start) * features.shape[3] + column + inside.start
    indices = torch.arange(first_index, first_index + len(features), device=features.device)
    return TopActivations(scores.T, indices.expand(scores.T.shape), positions.T, tuple(features.shape[2:]))


def _concatenate(a: TopActivations, b: TopActivations) -> TopActivations:
    pairs = (a.scores, b.scores), (a.indices, b.indices), (a.positions, b.positions)
    return TopActivations(*(torch.cat(pair, 1) for pair in pairs), a.map_size)


def _best(candidates: TopActivations, k: int) -> TopActivations:
    """The k columns with the highest scores, channel by channel; the sort is stable, so earlier images win ties."""
    best = candidates.scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = (values.gather(1, best) for values in (candidates.scores, candidates.indices, candidates.positions))
    return TopActivations(*columns, candidates.map_size)
