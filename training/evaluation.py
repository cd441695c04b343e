"""Loss and accuracy of a network on a data set, in one process or several."""

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset.placement import HostImages, batches_of
from dataset.preprocess import Preprocess
from network import ResNet18
from training.distributed import ALONE, World

PIXELS_PER_BATCH = 128 * 224 * 224  # about 1 GB on the device


@torch.inference_mode()
def evaluate(network: ResNet18, images: Tensor | HostImages, labels: Tensor, preprocess: Preprocess,
             precision: str = "fp32", world: World = ALONE, flip: bool = False) -> tuple[float, float]:  # fmt: skip
    """Mean cross-entropy and accuracy (0..1) over all images (N, 3, H, W) uint8, each counted once, in all processes.

    Batches have one size: the last is padded with an image that does not count. flip: average with the mirror images.
    """
    was_training = network.training
    network.eval()
    world.broadcast_buffers(network)
    size = min(max(1, PIXELS_PER_BATCH // preprocess.image_size**2), len(images))
    device, last = labels.device, len(images) - 1
    starts = range(world.rank * size, len(images), world.size * size)
    host = device if isinstance(images, Tensor) else torch.device("cpu")
    indices = (torch.arange(start, start + size, device=host).clamp(max=last) for start in starts)
    sums = torch.zeros(3, device=device)
    progress = tqdm(starts, "evaluation", leave=False, disable=None)
    for start, stored in zip(progress, batches_of(images, indices, device), strict=True):
        index = torch.arange(start, start + size, device=device)
        counts = index <= last
        inputs, target = preprocess(stored), labels[index.clamp(max=last)]
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            logits = network(inputs)
            if flip:
                logits = (logits + network(inputs.flip(3))) / 2
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        sums += torch.stack([losses, logits.argmax(1) == target, counts]).mul(counts).sum(1)
    network.train(was_training)
    return mean_metrics(world.all_reduce_sum(sums))


def mean_metrics(sums: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy from (3,) sums of losses, correct predictions and images; the host waits here."""
    loss, correct, images = sums.tolist()
    return loss / max(images, 1), correct / max(images, 1)
