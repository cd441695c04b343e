"""How alike two pictures are: Pearson's and Spearman's correlation, of many pairs at once."""

import torch
from torch import Tensor


def correlations(first: Tensor, second: Tensor) -> list[float | None]:
    """Pearson's correlation of first[n] and second[n], over all values of (n, ...); None where one is constant."""
    centred = []
    for each in (first, second):
        flat = each.double().flatten(1)
        is_constant = flat.amax(1, keepdim=True) == flat.amin(1, keepdim=True)
        centred.append(torch.where(is_constant, 0, flat - flat.mean(1, keepdim=True)))
    norms = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return ratios((centred[0] * centred[1]).sum(1), norms)


def ratios(values: Tensor, by: Tensor) -> list[float | None]:
    """values / by, (n,) each; None where `by` is zero."""
    return [value / divisor if divisor else None for value, divisor in zip(values.tolist(), by.tolist(), strict=True)]


def ranks(values: Tensor) -> Tensor:
    """The ranks of each row's values, (n, ...) -> (n, m) float64, from 1; equal values share their mean rank.

    Spearman's correlation is Pearson's of the ranks.
    """
    ordered, places = values.flatten(1).sort(dim=1)
    position = torch.arange(ordered.shape[1], device=values.device).expand_as(ordered)
    changes = ordered[:, 1:] != ordered[:, :-1]
    first = torch.zeros_like(position)  # of the equal values at each position
    first[:, 1:] = torch.where(changes, position[:, 1:], 0)
    first = first.cummax(1).values
    last = torch.full_like(position, ordered.shape[1] - 1)
    last[:, :-1] = torch.where(changes, position[:, :-1], last[:, :-1])
    last = last.flip(1).cummin(1).values.flip(1)
    mean = (first + last).double() / 2 + 1
    return torch.zeros_like(mean).scatter(1, places, mean)
