"""Loss and accuracy of a network on a data set, by one process or several."""

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset.preprocess import Preprocess
from network import ResNet18
from training.distributed import ALONE, Processes

PIXELS = 128 * 224 * 224  # at once: about 1 GB on the device


@torch.inference_mode()
def evaluate(network: ResNet18, images: Tensor, labels: Tensor, preprocess: Preprocess, precision: str = "fp32",
             processes: Processes = ALONE, flip: bool = False) -> tuple[float, float]:  # fmt: skip
    """Mean cross-entropy and accuracy (0..1) over all images (N, 3, H, W) uint8, each counted once.

    Batches are all of one size: the last one is filled up with an image that does not count. With several processes
    each takes every n-th batch, and all get the result. flip: the logits are the mean of those of an image
    and of its mirror image.
    """
    was_training = network.training
    network.eval()
    processes.share_statistics(network)
    size = min(max(1, PIXELS // preprocess.image_size**2), len(images))
    starts = range(processes.rank * size, len(images), processes.count * size)
    sums = torch.zeros(3, device=images.device)
    for start in tqdm(starts, "evaluation", leave=False, disable=None):
        index = torch.arange(start, start + size, device=images.device)
        counts = index < len(images)
        index = index.clamp(max=len(images) - 1)
        inputs, target = preprocess(images[index]), labels[index]
        with torch.autocast(images.device.type, torch.bfloat16, precision == "bf16"):
            logits = network(inputs)
            if flip:
                logits = (logits + network(inputs.flip(3))) / 2
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        sums += torch.stack([losses, logits.argmax(1) == target, counts]).mul(counts).sum(1)
    network.train(was_training)
    return loss_and_accuracy(processes.add(sums))


def loss_and_accuracy(sums: Tensor) -> tuple[float, float]:
    """Means of what was added up, (3,): losses, correct answers, images; here the host waits for the device."""
    loss, correct, images = sums.tolist()
    return loss / max(images, 1), correct / max(images, 1)
