"""Measure a network's accuracy again, on all test images, beside the one it was given at the end of its training.

python benchmarks/reproduce.py --data FOLDER                     checkpoints/resnet18-cifar10.pt
python benchmarks/reproduce.py --ckpt runs/224/model.pt --data FOLDER

Ends with exit code 1 when the two differ by more than --tolerance.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from dataset import sources
from dataset.preprocess import Preprocess
from runtime import checkpoint
from runtime.command_line import ArgumentParser, number, one_line_errors
from runtime.device import keep_freed_memory, pick_device
from training.evaluation import evaluate


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add(
        "--ckpt",
        default=str(checkpoint.SHIPPED),
        metavar="PATH",
        help="a model.pt of train.py, or what training.export made of it",
    )
    add("--data", default="cifar10", help=f"{', '.join(sources.DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder that CIFAR-10 is downloaded to and read from")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--tolerance", type=number(float, least=0), default=0.002, help="that the accuracy may differ by")
    return parser.parse_args(argv)


def load_test_images(args, info: checkpoint.Metadata) -> tuple[Tensor, Tensor, Preprocess]:
    """The test images (uint8) and labels of --data, and the network's preprocessing, on the device.

    Raises DataError if the classes of the data are not the network's.
    """
    images, labels, classes = sources.load(args.data, "test", args.root, info.image_size)
    if list(classes) != list(info.classes):
        raise sources.DataError(f"the classes of {args.data} are not those the network was trained on: pass its data")
    device = pick_device(args.device)
    return images.to(device), labels.to(device), Preprocess(info.image_size, info.mean, info.std, device)


def measure(args) -> tuple[float, float]:
    """The accuracy (0..1) now, and the accuracy in the checkpoint. Raises CheckpointError if it holds none."""
    network, info = checkpoint.load_network(args.ckpt)
    if "test_accuracy" not in info.result:
        raise checkpoint.CheckpointError(f"{args.ckpt} does not say how accurate it is: pass a model.pt of train.py")
    if info.config.get("hold_out"):
        raise checkpoint.CheckpointError(f"{args.ckpt} was tested on training images (--hold-out): pass another")
    images, labels, preprocess = load_test_images(args, info)
    network.to(images.device, memory_format=torch.channels_last)
    started = time.monotonic()
    accuracy = evaluate(network, images, labels, preprocess, args.precision)[1]
    seconds = time.monotonic() - started
    print(f"{len(images):,} test images in {seconds:.0f} s on {images.device.type}, {args.precision}")
    return accuracy, info.result["test_accuracy"]


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with one_line_errors(sources.DataError, checkpoint.CheckpointError):
        accuracy, reported = measure(args)
        print(f"test accuracy {accuracy:.2%}, reported {reported:.2%}, difference {accuracy - reported:+.4f}")
        if abs(accuracy - reported) > args.tolerance:
            sys.exit(f"error: they differ by more than {args.tolerance:g}")


if __name__ == "__main__":
    main()
