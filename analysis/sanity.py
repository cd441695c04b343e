"""Sanity check: how much of a picture survives random weights (Adebayo et al., arXiv:1810.03292).

Weights become random from the top down, as in that paper, or from the bottom up. From the top down, the activations
below keep their scales, so that the result cannot rank methods (Binder et al., arXiv:2211.12486).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.correlation import correlations, ranks
from analysis.importance import saliency, sobel_edges
from analysis.reconstruction import ALL_RULES, mirrors_by_rule, reconstruct
from network import STAGES, ResNet18

MODULES = dict(zip(STAGES, (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), strict=True))
DIRECTIONS = ("top-down", "bottom-up")


def randomized_networks(network: ResNet18, stage: str, direction: str = "top-down") -> Iterator[tuple[str, ResNet18]]:
    """(name, network) for each stage up to `stage`, from the top down or from the bottom up: it and those before.

    The weights of these stages are a fixed random initialisation. All names share one copy of the network, which
    changes from step to step; the network itself does not.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = ResNet18(network.fc.out_features)
    network = copy.deepcopy(network)
    stages = STAGES[: STAGES.index(stage) + 1]
    for n, random in enumerate(stages[::-1] if direction == "top-down" else stages):
        for name in MODULES[random]:
            getattr(network, name).load_state_dict(getattr(fresh, name).state_dict())
        yield f"+ {random}" if n else f"{random} random", network


@dataclass(frozen=True)
class Step:
    """The pictures by one network, or of the edges, compared with those by the trained network.

    name         of the network, or "edges"
    example      rule -> (3, H, W): the first picture
    correlation  rule -> one value per picture: Spearman's rank correlation of `saliency` with the trained network's;
                 None if a picture is zero everywhere
    """

    name: str
    example: dict[str, Tensor]
    correlation: dict[str, list[float | None]]


@dataclass(frozen=True)
class SanityCheck:
    """What is left of the trained network's pictures.

    directions  of DIRECTIONS -> its steps; the first is the trained network
    edges       Sobel edges of the images: what would be left by a picture that does not depend on the network
    """

    directions: dict[str, list[Step]]
    edges: Step


def check_sanity(
    network: ResNet18,
    inputs: Tensor,
    images: Tensor,
    stage: str,
    channels: Sequence[int],
    unpool: str = "sum",
    batch_size: int = 24,
) -> SanityCheck:
    """Reconstruct whole maps by every rule while the network's weights become random, in both directions.

    inputs    (n, 3, H, W) normalised images, on the network's device
    images    (n, 3, H, W) the same in 0..1, on the CPU
    channels  of `stage`, one per image
    """

    def draw(network: ResNet18) -> dict[str, Tensor]:
        mirrors = mirrors_by_rule(network, ALL_RULES, unpool)
        return reconstruct(network, mirrors, inputs, stage, channels, batch_size=batch_size)

    trained = draw(network)
    expected = {rule: ranks(saliency(each)) for rule, each in trained.items()}

    def compare(name: str, pictures: dict[str, Tensor]) -> Step:
        found = {rule: correlations(expected[rule], ranks(saliency(each))) for rule, each in pictures.items()}
        return Step(name, {rule: each[0].clone() for rule, each in pictures.items()}, found)

    count = len(DIRECTIONS) * (STAGES.index(stage) + 1)
    directions = {}
    with tqdm(total=count, desc="sanity", unit="networks", leave=False, disable=None) as progress:
        for direction in DIRECTIONS:
            directions[direction] = [compare("trained", trained)]
            for name, random in randomized_networks(network, stage, direction):
                directions[direction].append(compare(name, draw(random)))
                progress.update()
    return SanityCheck(directions, compare("edges", dict.fromkeys(ALL_RULES, sobel_edges(images))))
