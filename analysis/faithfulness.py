"""How well the importance maps of a class predict what happens to its probability as blocks are removed.

The deletion test of Samek et al. 2017 (arXiv:1509.06321), in both orders: the most important blocks first, and the
least important ones first. A removed block has the training data's mean color.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from analysis.activations import check_finite
from analysis.blocks import block_means, block_side, importance_ranks, remove_blocks
from analysis.importance import random_maps, saliency, sobel_edges
from analysis.inspection import Inspection, spread
from analysis.reconstruction import ALL_RULES, mirrors_by_rule
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18, class_signal
from runtime.device import bf16_if_native

STAGE = STAGES[-1]  # the logits are linear in it
STEPS = 10
METHODS = (
    "class activation map",
    "guided x input",
    "gradient x input",
    "guided",
    "gradient",
    "deconvnet",
    "Sobel edges",
    "random",
)


@dataclass(frozen=True)
class ClassCurves:
    """What is left of the predicted class's probability after each of STEPS steps, relative to the whole image's.

    images   (N,) int64: indices in the test split
    classes  (N,) int64: the predicted classes
    block    side of a block in pixels
    most     method -> (N, STEPS): the most important blocks removed first
    least    method -> (N, STEPS): the least important blocks removed first
    """

    images: Tensor
    classes: Tensor
    block: int
    most: dict[str, Tensor]
    least: dict[str, Tensor]

    def scores(self, method: str) -> Tensor:
        """(N,): the mean over the steps of `least` - `most`. 0 for chance, higher is better."""
        return (self.least[method] - self.most[method]).mean(1)


def spread_images(inspection: Inspection, count: int | None = None) -> Tensor:
    """(n,) int64: `count` images, evenly spread over the test split.

    By default 1,000 on a GPU; on a CPU, a twentieth of the searched images, from 2 to 100.
    """
    total = len(inspection.images)
    searched = total if inspection.searched is None else len(inspection.searched)
    default = min(100, max(2, searched // 20)) if inspection.device.type == "cpu" else 1000
    count = min(count or default, total)
    return spread(count, total)


@torch.inference_mode()
def class_curves(
    inspection: Inspection,
    images: Tensor,
    unpool: str = "sum",
    batch_size: int = 24,
    methods: Sequence[str] = METHODS,
) -> ClassCurves:
    """The curves of these images of the test split, (N,) int64, by each of these METHODS.

    batch_size: images per forward pass. Raises CheckpointError when a result is not finite.
    """
    classes, curves = [], []
    side = block_side(inspection.metadata.image_size)
    total = len(images) * len(methods) * 2 * (STEPS - 1)
    with tqdm(total=total, desc="faithfulness", unit="images", leave=False, disable=None) as progress:
        for part in images.split(batch_size):
            inputs, predicted, ranks = block_ranks(inspection, part, unpool, methods)
            with bf16_if_native(inspection.device):
                left = remaining_probability(
                    inspection.network, inputs, predicted, ranks, side, batch_size, progress.update
                )
            curves.append(check_finite(left.cpu(), "probabilities"))
            classes.append(predicted.cpu())
    most, least = (
        {name: orders[:, method] for method, name in enumerate(methods)} for orders in torch.cat(curves).unbind(2)
    )
    return ClassCurves(images, torch.cat(classes), side, most, least)


@torch.inference_mode()
def block_ranks(
    inspection: Inspection, images: Tensor, unpool: str = "sum", methods: Sequence[str] = METHODS
) -> tuple[Tensor, Tensor, Tensor]:
    """For images of the test split, (N,) int64: the network's input, the predicted classes, and the blocks' ranks.

    Returns (N, 3, H, W), (N,) and (N, len(methods), n) as of `importance_ranks`, on the network's device.
    """
    side, mirrors = block_side(inspection.metadata.image_size), mirrors_by_rule(inspection.network, ALL_RULES, unpool)
    inputs = inspection.inputs(inspection.images[images])
    predicted, maps = class_maps(inspection.network, mirrors, inputs)
    maps["Sobel edges"] = saliency(sobel_edges(inspection.resized(inspection.images[images])))
    maps["random"] = random_maps(images, inputs.shape[-2:])
    ranks = [importance_ranks(block_means(maps[name].to(inputs.device), side)) for name in methods]
    return inputs, predicted, torch.stack(ranks, 1)


def class_maps(
    network: ResNet18, mirrors: Mapping[str, ReverseResNet18], inputs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The predicted classes (N,), and importance maps for them, method -> (N, H, W): those that use the network.

    mirrors  by rule, for all rules
    inputs   (N, 3, H, W) normalised images

    Class activation map: Zhou et al. 2016, arXiv:1512.04150, equation 2. Gradient x input: Shrikumar et al. 2016,
    arXiv:1605.01713, section 2.
    """
    trace = network.trace(inputs, STAGE)
    features = trace.features[STAGE]
    classes = network.classify(features).argmax(1)
    evidence = class_signal(network, features, classes, weighted=True).sum(1, keepdim=True)
    size = inputs.shape[-2:]
    maps = {"class activation map": F.interpolate(evidence, size, mode="bilinear")[:, 0]}
    signal = class_signal(network, features, classes)
    for rule, mirror in mirrors.items():
        picture = check_finite(mirror(signal, STAGE, trace), f"reconstructions by {rule}")
        maps[rule], maps[f"{rule} x input"] = saliency(picture), (picture * inputs).sum(1)
    return classes, maps


def remaining_probability(
    network: ResNet18,
    inputs: Tensor,
    classes: Tensor,
    ranks: Tensor,
    side: int,
    batch_size: int = 24,
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """The probability of classes[n] as blocks are removed, relative to the whole image's: (N, M, 2, STEPS).

    inputs   (N, 3, H, W) normalised images
    ranks    (N, M, n) int64: of the blocks by M methods, as `importance_ranks` returns them
    side     of a block in pixels
    advance  called with the number of images after each forward pass

    The third axis: most important blocks first, least important ones first. After step k of STEPS, k * n // STEPS of
    the n blocks are removed. All methods and steps share the batches.
    """

    def probability(images: Tensor) -> Tensor:
        return network(images).to(inputs.dtype).softmax(1)

    count, methods, blocks = ranks.shape
    left = inputs.new_empty(count, methods, 2, STEPS)
    cases = torch.cartesian_prod(*map(torch.arange, (count, methods, 2, STEPS - 1))).to(inputs.device)
    for part in cases.split(batch_size):
        image, method, order, step = part.T
        removed = ((step + 1) * blocks // STEPS)[:, None]
        rank = ranks[image, method]
        is_removed = torch.where(order[:, None] == 0, rank < removed, rank >= blocks - removed)
        probabilities = probability(remove_blocks(inputs[image], is_removed, side))
        left[image, method, order, step] = probabilities.gather(1, classes[image, None])[:, 0]
        advance(len(part))
    nothing = probability(torch.zeros_like(inputs[:1]))  # the last step removes every block
    left[..., -1] = nothing[0, classes][:, None, None]
    whole = probability(inputs).gather(1, classes[:, None])
    return left / whole[:, :, None, None]
