"""Measure a network's accuracy again, on all test images, beside the one that was recorded when its training ended.

python benchmarks/reproduce.py --data FOLDER                     checkpoints/resnet18-cifar10.pt
python benchmarks/reproduce.py --ckpt runs/224/model.pt --data FOLDER --precision auto
python benchmarks/reproduce.py --data FOLDER --flip --card       the numbers of checkpoints/README.md, in Markdown

Ends with exit code 1 when the accuracy is lower than the recorded one by more than --tolerance.
"""

import hashlib
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from analysis.inspection import spread
from dataset import sources
from dataset.preprocess import Preprocess
from network import STAGES, ResNet18
from runtime import checkpoint
from runtime.command_line import ArgumentParser, number, one_line_errors
from runtime.device import keep_freed_memory, pick_device, pick_precision

SMALL_FILTER = 0.01  # of the largest weight of conv1


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add, shipped = parser.add_argument, str(checkpoint.SHIPPED)
    add("--ckpt", default=shipped, metavar="PATH", help="a model.pt of train.py, or an export of it")
    add("--data", default="cifar10", help=f"{', '.join(sources.DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder of CIFAR-10 and of decoded images")
    add("--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="of the arithmetic")
    add("--flip", action="store_true", help="also with the logits of an image and its mirror image averaged")
    add("--limit", type=number(int, least=1), help="number of test images, evenly spread; then nothing is compared")
    add("--card", action="store_true", help="also print the numbers of a model card")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--tolerance", type=number(float, least=0), default=0.002, help="that the accuracy may be lower by")
    return parser.parse_args(argv)


@torch.inference_mode()
def compute_logits(network: ResNet18, images: Tensor, preprocess: Preprocess, device: torch.device,
                   precision: str, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Logits (1, N, classes), or (2, N, classes) with those of the mirror images; stage -> living channels (C,) bool.

    images: (N, 3, H, W) uint8. A channel is dead if it is zero in all images.
    """
    logits, alive = [], {stage: False for stage in STAGES}
    for batch in tqdm(images.split(64), "images", leave=False, disable=None):
        inputs = preprocess(batch.to(device))
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            features = network.trace(inputs).features
            results = [network.classify(features[STAGES[-1]])] + ([network(inputs.flip(3))] if flip else [])
        logits.append(torch.stack(results).float().cpu())
        alive = {stage: alive[stage] | (features[stage] > 0).any(3).any(2).any(0) for stage in STAGES}
    return torch.cat(logits, 1), alive


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


def describe_scores(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Lines of the card in Markdown, for the classes that have images. logits: (N, classes); labels: (N,) int64."""
    confidence, predicted = logits.softmax(1).max(1)
    counts = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    counts = counts.view(len(classes), -1)  # (true, predicted)
    low, high = wilson_interval(int(counts.diagonal().sum()), len(labels))
    lines = ["| class | accuracy | 95 % interval (Wilson) | precision |", "|---|---|---|---|"]
    for name, row, column, correct in zip(classes, counts, counts.T, counts.diagonal().tolist(), strict=True):
        if not row.sum():
            continue
        bounds = [100 * bound for bound in wilson_interval(correct, int(row.sum()))]
        accuracy, precision = (100 * correct / max(int(total.sum()), 1) for total in (row, column))
        lines.append(f"| {name} | {accuracy:.1f} % | {bounds[0]:.1f} to {bounds[1]:.1f} % | {precision:.1f} % |")
    wrong = counts - torch.diag(counts.diagonal())
    values, indices = wrong.flatten().topk(min(4, wrong.numel()))
    confusions = [divmod(index, len(classes)) for index in indices[values > 0].tolist()]
    return [
        *lines,
        "",
        f"- accuracy {counts.diagonal().sum() / len(labels):.2%}, 95 % interval {low:.2%} to {high:.2%} (Wilson)",
        f"- cross-entropy {F.cross_entropy(logits, labels).item():.3f}",
        f"- mean confidence {confidence.mean().item():.1%}",
        f"- expected calibration error {calibration_error(confidence, predicted == labels):.3f}",
        *(f"- {wrong[true, taken]} of {classes[true]} predicted as {classes[taken]}" for true, taken in confusions),
    ]


def describe_network(network: ResNet18, alive: dict[str, Tensor], path: str) -> list[str]:
    """Lines of the card: dead channels, small filters, and the file's SHA-256."""
    dead = ", ".join(f"{stage} {int((~living).sum())} of {len(living)}" for stage, living in alive.items())
    largest = network.conv1.weight.detach().abs().amax((1, 2, 3))
    small = int((largest < SMALL_FILTER * largest.max()).sum())
    return [
        f"- channels that are zero in all of these images: {dead}",
        f"- filters of conv1 below {SMALL_FILTER:.0%} of the largest weight: {small} of {len(largest)}",
        f"- SHA-256 `{hashlib.sha256(Path(path).read_bytes()).hexdigest()}`",
    ]


def reproduce(args) -> tuple[float, float]:
    """Prints what was asked for; returns the accuracy (0..1) now and the recorded one.

    Raises CheckpointError if no accuracy on the test split is recorded, DataError if the data have other classes.
    """
    network, info = checkpoint.load_network(args.ckpt)
    if "test_accuracy" not in info.result:
        raise checkpoint.CheckpointError(f"{args.ckpt} does not say how accurate it is: pass a model.pt of train.py")
    if info.config.get("hold_out"):
        raise checkpoint.CheckpointError(f"{args.ckpt} was tested on training images (--hold-out): pass another")
    device = pick_device(args.device)
    images, labels, classes = sources.load(args.data, "test", args.root, info.image_size)
    if list(classes) != list(info.classes):
        raise sources.DataError(f"the classes of {args.data} are not those the network was trained on: pass its data")
    if args.limit:
        chosen = spread(min(args.limit, len(images)), len(images))
        images, labels = images[chosen], labels[chosen]
    preprocess = Preprocess(info.image_size, info.mean, info.std, device)
    precision, started = pick_precision(args.precision, device), time.monotonic()
    network.to(device, memory_format=torch.channels_last).eval()
    logits, alive = compute_logits(network, images, preprocess, device, precision, args.flip)
    print(f"{len(images):,} test images in {time.monotonic() - started:.0f} s on {device.type}, {precision}")
    if args.card:
        lines = describe_scores(logits[0], labels, classes) + describe_network(network, alive, args.ckpt)
        print("", *lines, "", sep="\n")
    accuracy, flipped = ((values.argmax(1) == labels).double().mean().item() for values in (logits[0], logits.mean(0)))
    recorded = info.result["test_accuracy"]
    difference = "" if args.limit else f", difference {accuracy - recorded:+.4f}"
    print(f"test accuracy {accuracy:.2%}, reported {recorded:.2%}{difference}")
    if args.flip:
        print(f"with logits of mirror images averaged {flipped:.2%}")
    return accuracy, recorded


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with one_line_errors(sources.DataError, checkpoint.CheckpointError):
        accuracy, recorded = reproduce(args)
        if recorded - accuracy > args.tolerance and not args.limit:
            sys.exit(f"error: it is lower by more than {args.tolerance:g}")


if __name__ == "__main__":
    main()
