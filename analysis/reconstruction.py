"""What a channel saw in an image: trace, isolate the channel, and go back through the mirror."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from network import ResNet18
from reverse_network import RULES, ReverseResNet18, isolate

ALL_RULES = RULES[::-1]  # from the exact gradient to the deconvnet


def mirrors_by_rule(network: ResNet18, rules: Iterable[str], unpool: str = "sum") -> dict[str, ReverseResNet18]:
    """rule -> the network's mirror under this rule, in the order given."""
    return {rule: ReverseResNet18(network, rule, unpool) for rule in rules}


@torch.inference_mode()
def reconstruct(
    network: ResNet18,
    mirrors: Mapping[str, ReverseResNet18],
    inputs: Tensor,
    stage: str,
    channels: int | Sequence[int],
    units: str | Tensor = "map",
    batch_size: int = 24,
    images: Tensor | None = None,
) -> dict[str, Tensor]:
    """name of the mirror -> pictures (n, 3, H, W) on the CPU, in units of the normalised image.

    mirrors     of the network, which is in evaluation mode, by any name
    inputs      (N, 3, H, W) normalised images, on the network's device; each is traced once
    channels    one per picture, or one for all
    units       "map": the whole channel; "peak": its strongest unit; a tensor (n,): the units at these flat positions
    batch_size  inputs per trace, and pictures per pass through a mirror
    images      (n,) int64 on the CPU: the input of each picture; by default one picture per input

    Raises CheckpointError when a picture is not finite, and whatever `isolate` and the mirror raise.
    """
    images = torch.arange(len(inputs)) if images is None else images
    channels = torch.as_tensor(channels).expand(len(images))
    pictures = {name: torch.empty(len(images), *inputs.shape[1:], dtype=inputs.dtype) for name in mirrors}
    progress = tqdm(total=len(images) * len(mirrors), desc="reconstructions", delay=2, leave=False, disable=None)
    for first in range(0, len(inputs), batch_size):
        batch = inputs[first : first + batch_size]
        trace = network.trace(batch, stage)
        for part in ((first <= images) & (images < first + len(batch))).nonzero().flatten().split(batch_size):
            rows = images[part] - first
            shared = trace if torch.equal(rows, torch.arange(len(batch))) else trace.select(rows)  # a copy
            signal = isolate(shared.features[stage], channels[part], units if isinstance(units, str) else units[part])
            for name, mirror in mirrors.items():
                pictures[name][part] = mirror(signal, stage, shared).cpu()
                progress.update(len(part))
    progress.close()
    return {name: check_finite(by_image, f"reconstructions by {name}") for name, by_image in pictures.items()}
