"""Means with confidence intervals that assume no distribution."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate(values: Tensor) -> Estimate:
    """The mean of values (n,) and its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    The same n always has the same resamples.
    """
    values = values.double().cpu().numpy()
    count = len(values)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # (RESAMPLES, n)
    low, high = np.quantile(drawn @ values / count, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values.mean()), float(low), float(high))
