"""Images per second of training, in turn and in one run: (a) the script one would otherwise write, (b) this project.

python benchmarks/train_step.py --data FOLDER                     as both reports trained: 224x224, batch 32, 2 workers

(a) is torchvision's resnet18 on an ImageFolder with PIL transforms and a DataLoader, in fp32, with `.item()` each step;
(b) the same network, data, augmentation and optimizer settings through data.py and train.py. The share of the physical
limit is that of the device's matrix-product rate, measured in the same run and precision, over the 3 x 3.55 GFLOP that
an image costs forwards and backwards at 224x224. Of several (a), the fastest is what (b) is compared with.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import train
from network import ResNet18

GFLOP_AT_224 = 10.65  # an image, forwards and backwards; grows with the number of pixels


def parse_args(argv=None):
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/<class>/*, as train.py takes it")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[2], help="of (a)'s DataLoader; several are tried in turn"
    )
    parser.add_argument("--precisions", nargs="+", choices=("auto", "fp32", "bf16"), default=["auto"], help="of (b)")
    parser.add_argument("--steps", type=int, default=10, help="iterations timed a repetition (default: 10)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    return parser.parse_args(argv)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(iterate, steps: int, device: torch.device) -> float:
    """Seconds that `steps` calls take."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        iterate()
    synchronize(device)
    return time.perf_counter() - started


def usual_script(args, device: torch.device, mean, std, workers: int):
    """(a): returns a function that does one iteration."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.Resize(args.image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(Path(args.data) / "train", transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        args.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    network = torchvision.models.resnet18(num_classes=len(dataset.classes)).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    batches = iter(())
    running = [0.0, 0]

    def iterate():
        nonlocal batches
        try:
            images, labels = next(batches)
        except StopIteration:
            batches = iter(loader)
            images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        running[0] += loss.item()
        running[1] += (logits.argmax(1) == labels).sum().item()

    return iterate


def this_project(args, device: torch.device, images, labels, classes, mean, std, precision: str):
    """(b): returns a function that does one iteration."""
    network = ResNet18(len(classes)).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=5e-4, fused=True)
    preprocess = data.Preprocess(args.image_size, mean, std, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    images, labels = images.to(device), labels.to(device)
    order = data.epoch_order(len(images), 0, 0).to(device)
    sums, step = torch.zeros(3, device=device), 0

    def iterate():
        nonlocal step
        start = step * args.batch_size % (len(images) - args.batch_size)
        chosen = order[start : start + args.batch_size]
        batch = data.crop_and_flip(images[chosen], 0, step)
        sums.add_(train.train_step(network, optimizer, preprocess(batch), labels[chosen], 0.0, autocast))
        step += 1

    return iterate


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best FLOP/s on square matrix products in this precision, in several sizes.

    Each is also asked for as a 1x1 convolution, the same product by another library (oneDNN or cuDNN): on some CPUs it
    is the faster by far.
    """
    best = 0.0
    for size in (2048, 4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        pixels = a.view(1, 32, size // 32, size).permute(0, 3, 1, 2)  # channels_last: a row is a pixel
        kernel = b.view(size, size, 1, 1)
        for product in (lambda a=a, b=b: a @ b, lambda x=pixels, w=kernel: F.conv2d(x, w)):
            timed(product, 3, device)
            best = max(best, *(5 * 2 * size**3 / timed(product, 5, device) for _ in range(3)))
    return best


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    device = torch.device(args.device)
    images, labels, classes = data.load(args.data, "train", image_size=args.image_size)
    mean, std = data.statistics(images)
    contestants = {
        f"(a) usual script, fp32, {n} workers": usual_script(args, device, mean, std, n) for n in args.workers
    }
    precision_of = dict.fromkeys(contestants, "fp32")
    for precision in dict.fromkeys(train.pick_precision(name, device) for name in args.precisions):
        name = f"(b) this project, {precision}"
        contestants[name] = this_project(args, device, images, labels, classes, mean, std, precision)
        precision_of[name] = precision

    for iterate in contestants.values():
        timed(iterate, 3, device)  # warm up
    speeds = {name: [] for name in contestants}
    products = {precision: 0.0 for precision in precision_of.values()}  # FLOP/s
    for _ in range(args.repetitions):
        for name, iterate in contestants.items():
            speeds[name].append(args.steps * args.batch_size / timed(iterate, args.steps, device))
        for precision in products:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            products[precision] = max(products[precision], matrix_product_rate(device, dtype))

    flop = GFLOP_AT_224 * 1e9 * (args.image_size / 224) ** 2  # an image
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    report = {
        "device": machine,
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "matrix_products_gflops": {name: round(rate / 1e9, 1) for name, rate in products.items()},
        "images_per_second": {name: [round(speed, 2) for speed in values] for name, values in speeds.items()},
    }
    print(f"{machine}, torch {torch.__version__}, {args.image_size}x{args.image_size}, batch {args.batch_size}")
    for precision, rate in products.items():
        print(f"matrix products in {precision}: {rate / 1e9:.0f} GFLOP/s, that is {rate / flop:.1f} images/s")
    print("\n| | images/s, median (range) | beside (a) | share of the limit |\n|---|---|---|---|")
    usual = max(statistics.median(values) for name, values in speeds.items() if name.startswith("(a)"))
    for name, values in speeds.items():
        median, limit = statistics.median(values), products[precision_of[name]] / flop
        span = f"{min(values):.1f} to {max(values):.1f}"
        print(f"| {name} | {median:.1f} ({span}) | {median / usual:.2f} x | {median / limit:.0%} |")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
