"""The strongest activations of a channel over a set of images, and the windows to show them in."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from network import STAGES, ResNet18

ENERGY = 0.95  # share of a reconstruction's energy that its window holds
SMALLEST_WINDOW = 32  # pixels


class TopActivations:
    """The k strongest images of every channel of a stage, found in one pass, batch by batch.

    scores     (C, k)  strongest unit of the channel in the image, highest first; of equals the earlier image first
    indices    (C, k)  int64, which image
    positions  (C, k)  int64, which unit: row * w + column of a map of `map_size` (h, w)

    Fewer than k images leave fewer columns. Memory grows with C and k, not with the number of images.
    """

    def __init__(self, k: int = 9):
        self.k, self.seen = k, 0
        self.scores = self.indices = self.positions = self.map_size = None

    def update(self, features: Tensor) -> None:
        """Takes the features (N, C, h, w) of the next N images."""
        self.map_size = tuple(features.shape[2:])
        scores, positions = features.flatten(2).max(2)  # (N, C)
        indices = torch.arange(self.seen, self.seen + len(features), device=features.device)[:, None].expand_as(scores)
        found = [scores.T, indices.T, positions.T]
        if self.scores is not None:
            found = [
                torch.cat(pair, 1) for pair in zip((self.scores, self.indices, self.positions), found, strict=True)
            ]
        best = found[0].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.scores, self.indices, self.positions = (values.gather(1, best) for values in found)
        self.seen += len(features)


@torch.inference_mode()
def search(
    network: ResNet18, batches: Iterable[Tensor], stages: Iterable[str], k: int = 9
) -> tuple[dict[str, TopActivations], Tensor | None]:
    """`TopActivations` of several stages in one pass over normalised batches (N, 3, H, W).

    And the logits of every image, (all N, classes), if one of the stages is the last; otherwise None.

    Raises RuntimeError when the network is in training mode, in which looking at images would change it.
    """
    if network.training:
        raise RuntimeError("the search needs the network in evaluation mode: call network.eval() first")
    top = {stage: TopActivations(k) for stage in stages}
    until, logits = max(top, key=STAGES.index), []
    for batch in batches:
        features = network.trace(batch, until).features
        for stage in top:
            top[stage].update(features[stage])
        if until == STAGES[-1]:
            logits.append(network.classify(features[until]))
    return top, torch.cat(logits) if logits else None


def top_activations(
    network: ResNet18, batches: Iterable[Tensor], stage: str, k: int = 9
) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's k best images at a stage: scores, indices and positions, (C, k) each, as in `TopActivations`."""
    top = search(network, batches, [stage], k)[0][stage]
    return top.scores, top.indices, top.positions


def strongest(peaks: Tensor, count: int = 9) -> list[int]:
    """The `count` channels with the highest peaks, (C,), in this order; of equals the lower number first."""
    return peaks.sort(dim=0, descending=True, stable=True).indices[:count].tolist()


def supports(pictures: Tensor) -> list[tuple[int, int, int, int] | None]:
    """The box (top, left, bottom, right) that holds ENERGY of each picture (N, 3, H, W); None of one that is all zero.

    At most a quarter of what is left out lies beyond each side.
    """
    energy = pictures.square().sum(1)  # (N, H, W)
    beyond = (1 - ENERGY) / 4
    ends = []
    for across in (2, 1):
        share = energy.sum(across, dtype=torch.float64).cumsum(1)
        share = share / share[:, -1:]
        ends += [(share > beyond).int().argmax(1), (share >= 1 - beyond).int().argmax(1) + 1]
    top, bottom, left, right = (values.tolist() for values in ends)
    empty = (energy.flatten(1).amax(1) == 0).tolist()
    boxes = zip(top, left, bottom, right, strict=True)
    return [None if nothing else box for nothing, box in zip(empty, boxes, strict=True)]


def windows(pictures: list[Tensor]) -> tuple[int, list[tuple[int, int]]]:
    """A square for each image around the support of all its reconstructions: their common side, and each (top, left).

    pictures: (N, 3, H, W) a rule. The side is that of the largest support, SMALLEST_WINDOW at the least and the image's
    at most, which is then shown as it is; a smaller square has the support in its middle, even at a border, beyond
    which it then reaches.
    """
    height, width = pictures[0].shape[-2:]
    boxes = []
    for of_rules in zip(*map(supports, pictures), strict=True):
        found = [box for box in of_rules if box]
        tops, lefts, bottoms, rights = zip(*found or [(height // 2, width // 2) * 2], strict=True)
        boxes.append((min(tops), min(lefts), max(bottoms), max(rights)))
    side = max(max(bottom - top, right - left) for top, left, bottom, right in boxes)
    side = min(max(side, SMALLEST_WINDOW), height, width)
    if side == height == width:
        return side, [(0, 0)] * len(boxes)
    return side, [((top + bottom - side) // 2, (left + right - side) // 2) for top, left, bottom, right in boxes]


def cut(pictures: Tensor, side: int, corners: list[tuple[int, int]], outside: float) -> Tensor:
    """The windows of pictures (N, 3, H, W) as (N, 3, side, side), filled with `outside` beyond a picture's border."""
    height, width = pictures.shape[-2:]
    tiles = pictures.new_full((len(pictures), 3, side, side), outside)
    for tile, picture, (top, left) in zip(tiles, pictures, corners, strict=True):
        rows = slice(max(top, 0), min(top + side, height))
        columns = slice(max(left, 0), min(left + side, width))
        tile[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = picture[
            :, rows, columns
        ]
    return tiles


def mean_correlation(pictures: np.ndarray | Tensor) -> float | None:
    """The mean correlation of all pairs of pictures (n, ...): how much they resemble each other.

    Pictures without any structure are passed over; None when fewer than two are left.
    """
    flat = np.asarray(pictures, np.float64).reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1)
    flat = flat[norms > 0] / norms[norms > 0, None]
    if len(flat) < 2:
        return None
    return float((flat @ flat.T)[np.triu_indices(len(flat), 1)].mean())
