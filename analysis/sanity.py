"""Sanity check: how much of a picture survives random weights (Adebayo et al., arXiv:1810.03292)."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from network import STAGES, ResNet18

MODULES = dict(zip(STAGES, (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), strict=True))


def randomized_networks(network: ResNet18, stage: str) -> Iterator[tuple[str, ResNet18]]:
    """(name, network): as trained, then with the weights of `stage` and, one by one, of all stages below at random.

    The random weights are a fixed initialisation. All names but the first share one copy of the network, which changes
    from step to step; the network itself does not.
    """
    yield "trained", network
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = ResNet18(network.fc.out_features)
    network = copy.deepcopy(network)
    for below in reversed(STAGES[: STAGES.index(stage) + 1]):
        for name in MODULES[below]:
            getattr(network, name).load_state_dict(getattr(fresh, name).state_dict())
        yield f"{below} random" if below == stage else f"+ {below}", network


def sobel_edges(images: Tensor) -> Tensor:
    """Sobel edges of the grey image: (N, 3, H, W) in 0..1 -> the same shape, three equal channels."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, kernels).norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def saliency(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W): the sum of absolute values over the colors."""
    return np.abs(picture).sum(-1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays of equal size; ties share their mean rank. None if one is constant."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[place.reshape(-1)])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])
