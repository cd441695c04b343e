"""Images in square blocks: their order of importance, images without some of them, and intervals of what is left."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS_ACROSS = 28  # 8x8 pixels each at 224
RESAMPLES = 2000
LEAST_VALUES = 5  # of fewer, a bootstrap interval is far too narrow


def block_side(pixels: int) -> int:
    """Side, in pixels, of the blocks that divide a square image of side `pixels` into about 28x28; at least 1."""
    return max(1, round(pixels / BLOCKS_ACROSS))


def block_means(maps: Tensor, side: int) -> Tensor:
    """(N, H, W) -> (N, n): the mean of every block, row by row; blocks at the lower and right border may be smaller."""
    return F.avg_pool2d(maps[:, None], side, ceil_mode=True).flatten(1)


def importance_ranks(importance: Tensor) -> Tensor:
    """(..., n) -> (..., n) int64: 0 for the most important block, n - 1 for the least.

    Equally important blocks are in a random order, which is always the same.
    """
    shuffled = torch.randperm(importance.shape[-1], generator=torch.Generator().manual_seed(0)).to(importance.device)
    order = shuffled[importance[..., shuffled].argsort(dim=-1, descending=True, stable=True)]
    ranks = torch.arange(importance.shape[-1], device=importance.device)
    return torch.empty_like(order).scatter_(-1, order, ranks.expand_as(order))


def remove_blocks(inputs: Tensor, removed: Tensor, side: int) -> Tensor:
    """Normalised images (N, 3, H, W) with these blocks, (N, n) bool, set to zero: the training data's mean color."""
    height, width = inputs.shape[-2:]
    columns = -(-width // side)
    mask = removed.unflatten(1, (-1, columns)).repeat_interleave(side, 1).repeat_interleave(side, 2)
    return inputs.masked_fill(mask[:, None, :height, :width], 0)


def estimate(values: Tensor) -> dict[str, float | None]:
    """The "mean" of values (n,), and "low" and "high" of its 95 % interval; None of fewer than LEAST_VALUES.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13); the same n always has the same resamples.
    """
    values = values.double().cpu().numpy()
    count = len(values)
    if count < LEAST_VALUES:
        return {"mean": float(values.mean()), "low": None, "high": None}
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # (RESAMPLES, n)
    low, high = np.quantile(drawn @ values / count, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
