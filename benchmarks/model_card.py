"""The numbers of a model card: accuracy with its interval, by class, calibration, confusions, and the file's SHA-256.

python benchmarks/model_card.py --data FOLDER                    checkpoints/resnet18-cifar10.pt
"""

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from reproduce import load_test_images

from analysis.scores import confusion_counts
from dataset import sources
from dataset.preprocess import Preprocess
from runtime import checkpoint
from runtime.command_line import ArgumentParser, one_line_errors
from runtime.device import keep_freed_memory

BATCH_SIZE = 100
CONFUSIONS = 4  # pairs of classes that are listed


def wilson_interval(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion, as fractions (Wilson 1927)."""
    share, spread = correct / count, z * z / count
    center = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return center - half, center + half


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error with bins of equal width: the mean of |accuracy - confidence|, weighted by images.

    confidence: highest probability of each image, (N,), 0..1; correct: (N,) bool. Guo et al. 2017, arXiv:1706.04599.
    """
    index = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64)
    sums.index_add_(0, index, correct.double() - confidence.double())
    return float(sums.abs().sum() / len(confidence))


@torch.no_grad()
def logits_of(network, images: Tensor, preprocess: Preprocess) -> Tensor:
    """Logits of uint8 images and of their mirror images: (2, N, classes), on the CPU."""
    found = []
    for batch in tqdm(images.split(BATCH_SIZE), "images", leave=False, disable=None):
        inputs = preprocess(batch)
        found.append(torch.stack([network(inputs), network(inputs.flip(3))]).cpu())
    return torch.cat(found, 1)


def describe(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """The lines of the card. logits: (2, N, classes), of images and mirror images; labels: (N,) int64."""
    confidence, predicted = logits[0].softmax(1).max(1)
    correct = predicted == labels
    low, high = wilson_interval(int(correct.sum()), len(labels))
    flipped = (logits.mean(0).argmax(1) == labels).float().mean().item()
    lines = [
        f"accuracy {correct.float().mean().item():.2%}, 95 % interval {low:.2%} to {high:.2%}",
        f"with logits of mirror images averaged {flipped:.2%}",
        f"cross-entropy {F.cross_entropy(logits[0], labels).item():.3f}",
        f"mean confidence {confidence.mean().item():.1%}",
        f"expected calibration error {calibration_error(confidence, correct):.3f}",
        "| class | accuracy | 95 % interval (Wilson) | precision |",
        "|---|---|---|---|",
    ]
    for n, name in enumerate(classes):
        found, count = int(correct[labels == n].sum()), int((labels == n).sum())
        low, high = (100 * bound for bound in wilson_interval(found, count))
        precision = 100 * found / max(int((predicted == n).sum()), 1)
        lines.append(f"| {name} | {100 * found / count:.1f} % | {low:.1f} to {high:.1f} % | {precision:.1f} % |")
    counts = confusion_counts(labels.numpy(), predicted.numpy(), len(classes))
    np.fill_diagonal(counts, 0)
    for index in np.argsort(counts, axis=None)[: -1 - CONFUSIONS : -1]:
        true, taken = divmod(int(index), len(classes))
        lines.append(f"{counts[true, taken]} of {classes[true]} predicted as {classes[taken]}")
    return lines


def main(argv=None):
    """The script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--ckpt", default=str(checkpoint.SHIPPED), metavar="PATH", help="a model.pt of train.py, or an export"
    )
    parser.add_argument("--data", default="cifar10", help="cifar10, or a folder with test/<class>/*")
    parser.add_argument("--root", default="data", help="folder that CIFAR-10 is downloaded to and read from")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    args = parser.parse_args(argv)
    keep_freed_memory()
    with one_line_errors(sources.DataError, checkpoint.CheckpointError):
        network, info = checkpoint.load_network(args.ckpt)
        images, labels, preprocess = load_test_images(args, info)
        network.to(images.device, memory_format=torch.channels_last)
        print(*describe(logits_of(network, images, preprocess), labels.cpu(), info.classes), sep="\n")
        print("SHA-256", hashlib.sha256(Path(args.ckpt).read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
