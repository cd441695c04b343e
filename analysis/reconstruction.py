"""What a channel saw in an image: trace, isolate the channel, and go back through the mirror."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from network import ResNet18
from reverse_network import BRANCHES, RULES, ReverseResNet18, isolate

ALL_RULES = RULES[::-1]  # from the exact gradient to the deconvnet


def mirrors_by_rule(network: ResNet18, rules: Iterable[str], unpool: str = "sum") -> dict[str, ReverseResNet18]:
    """rule -> the network's mirror under this rule, in the order given."""
    return {rule: ReverseResNet18(network, rule, unpool) for rule in rules}


def mirrors_by_branches(network: ResNet18, rule: str, unpool: str = "sum") -> dict[str, ReverseResNet18]:
    """ "both", "residual" or "shortcut" -> the mirror that goes back through these branches of every block."""
    return {branches: ReverseResNet18(network, rule, unpool, branches) for branches in BRANCHES}


@torch.inference_mode()
def reconstruct(
    network: ResNet18,
    mirrors: Mapping[str, ReverseResNet18],
    inputs: Tensor,
    stage: str,
    channels: int | Sequence[int],
    units: str | Tensor = "map",
    batch_size: int = 24,
) -> dict[str, Tensor]:
    """name of the mirror -> pictures (N, 3, H, W) on the CPU, in units of the normalised image.

    network   in evaluation mode
    mirrors   of this network, by any name
    inputs    (N, 3, H, W) normalised images, on the network's device
    channels  one per image, or one for all
    units     "map": the whole channel; "peak": its strongest unit; a tensor (N,): the units at these flat positions

    Raises CheckpointError when a picture is not finite, and whatever `isolate` and the mirror raise.
    """
    channels = torch.as_tensor(channels).expand(len(inputs))
    parts: dict[str, list[Tensor]] = {name: [] for name in mirrors}
    for first in range(0, len(inputs), batch_size):
        part = slice(first, first + batch_size)
        trace = network.trace(inputs[part], stage)
        signal = isolate(trace.features[stage], channels[part], units if isinstance(units, str) else units[part])
        for name, mirror in tqdm(mirrors.items(), "mirrors", delay=2, leave=False, disable=None):
            parts[name].append(mirror(signal, stage, trace).cpu())
    return {name: check_finite(torch.cat(each), f"reconstructions by {name}") for name, each in parts.items()}
