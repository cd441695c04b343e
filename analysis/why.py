"""Why one class and not another: the exact share of each group of similar channels in the difference of two logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.channel_groups import ChannelGroups
from analysis.class_evidence import STAGE, most_probable, project
from network import ResNet18
from reverse_network import ReverseResNet18, class_signal


@dataclass(frozen=True)
class GroupShare:
    """What a group of similar channels adds to the difference of two logits.

    representative  the channel that the others of the group resemble
    channels        all channels of the group, in ascending order
    contribution    to logit a minus logit b
    """

    representative: int
    channels: tuple[int, ...]
    contribution: float


@dataclass(frozen=True)
class Decision:
    """The difference of two logits, split over all channels of conv5_x.

    classes        numbers of the classes a and b
    logits         of a and b; their difference is `bias` plus the contributions of all groups
    probabilities  of a and b, in 0..1
    bias           of a minus that of b
    groups         every group of channels, in descending order of absolute contribution
    """

    classes: tuple[int, int]
    logits: tuple[float, float]
    probabilities: tuple[float, float]
    bias: float
    groups: tuple[GroupShare, ...]

    @property
    def difference(self) -> float:
        """Logit a minus logit b."""
        return self.logits[0] - self.logits[1]


@torch.inference_mode()
def split_decision(
    network: ResNet18, features: Tensor, groups: ChannelGroups, classes: Sequence[int] | None = None
) -> Decision:
    """The logit of a class minus that of another, split over the groups; all sums are taken in float64.

    features  (1, 512, h, w) of conv5_x of one image
    groups    a partition of the channels
    classes   a and b; by default the two most probable classes
    """
    means = features[0].double().mean((1, 2))  # (512,)
    weights, biases = network.fc.weight.double(), network.fc.bias.double()
    logits = (weights @ means + biases).cpu()
    a, b = classes or most_probable(logits, 2)
    contributions = ((weights[a] - weights[b]) * means).cpu()
    shares = [
        GroupShare(representative, channels, contributions[list(channels)].sum().item())
        for representative, channels in zip(groups.representatives, groups.members, strict=True)
    ]
    probabilities = logits.softmax(0)
    return Decision(
        (a, b),
        (logits[a].item(), logits[b].item()),
        (probabilities[a].item(), probabilities[b].item()),
        (biases[a] - biases[b]).item(),
        tuple(sorted(shares, key=lambda share: -abs(share.contribution))),
    )


@torch.inference_mode()
def group_pictures(
    network: ResNet18, mirror: ReverseResNet18, inputs: Tensor, classes: tuple[int, int], shares: Sequence[GroupShare]
) -> Tensor:
    """What each group saw in a normalised image (1, 3, S, S): (n, 3, S, S) on the CPU.

    The starting signal is the group's contribution at every unit of conv5_x, with the sign that makes evidence for the
    group's own side positive: the class that the group as a whole speaks for.
    """
    trace = network.trace(inputs, STAGE)
    return project({"mirror": mirror}, group_signals(network, trace.features[STAGE], classes, shares), trace)["mirror"]


def group_signals(
    network: ResNet18, features: Tensor, classes: tuple[int, int], shares: Sequence[GroupShare]
) -> Tensor:
    """The starting signals of `group_pictures`, (n, 512, h, w), zero outside the group's channels.

    features: (1, 512, h, w)
    """
    first, second = (class_signal(network, features, number, weighted=True) for number in classes)
    signals = torch.zeros_like(features).repeat(len(shares), 1, 1, 1)
    for signal, share in zip(signals, shares, strict=True):
        channels = list(share.channels)
        signal[channels] = (first - second)[0, channels] * (1 if share.contribution >= 0 else -1)
    return signals


def most_exciting(peaks: Tensor, channels: Sequence[int], count: int = 4) -> list[int]:
    """The images whose mean peak in these channels is highest, in descending order; peaks: (N, C)."""
    means = peaks[:, list(channels)].double().mean(1)
    return means.sort(descending=True, stable=True).indices[:count].tolist()


def class_numbers(asked: Sequence[str], names: Sequence[str]) -> tuple[int, int]:
    """Two classes by name or number -> their numbers. Raises ValueError for an unknown or repeated class."""
    numbers: Mapping[str, int] = {str(n): n for n in range(len(names))} | {name: n for n, name in enumerate(names)}
    if unknown := [name for name in asked if name not in numbers]:
        known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{unknown[0]}: the network's classes are {known}, or 0 to {len(names) - 1}")
    a, b = (numbers[name] for name in asked)
    if a == b:
        raise ValueError(f"{' '.join(asked)}: pass two different classes")
    return a, b
