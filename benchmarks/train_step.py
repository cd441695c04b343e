"""Training throughput, measured alternately in one run: (a) a standard PyTorch script, (b) this project.

python benchmarks/train_step.py --data FOLDER                     224x224, batch 32, 2 workers

(a) is torchvision's resnet18 on an ImageFolder with PIL transforms and a DataLoader, in fp32, with `.item()` in each
step; (b) the same network, data, augmentation and optimizer settings through dataset/batches.py and training/step.py.
Each runs in a process of its own and is timed while the others wait. (b) is compared with the fastest (a).

Two hardware limits are measured in the same run: the rate of matrix products in the same precision, of which an image
takes 3 x 3.55 GFLOP forward and backward at 224x224; and that rate together with memory traffic, for kernels that run
one after the other, each at the full rate of products or of copies. On GPUs torch's fp32 convolutions use TF32.
"""

import argparse
import itertools
import json
import multiprocessing
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
from dataset import preprocess, sources
from dataset.batches import Batches
from network import ResNet18
from runtime.device import keep_freed_memory, pick_precision
from training.acceleration import accelerate
from training.optimizer import Optimization, sgd
from training.step import TrainStep

GFLOP_AT_224 = 10.65  # per image, forward and backward; proportional to the number of pixels
FORMS = {"eager": (False, False), "compiled": (True, False), "captured": (False, True), "both": (True, True)}


def parse_args(argv=None):
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/<class>/*, as train.py takes it")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[2], help="workers of (a)'s DataLoader; several values are compared"
    )
    parser.add_argument("--precisions", nargs="+", choices=("auto", "fp32", "bf16"), default=["auto"], help="of (b)")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=["eager"],
        help="of (b): --compile, --cuda-graph, or both",
    )
    parser.add_argument("--steps", type=int, default=10, help="least number of iterations per repetition (default: 10)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    return parser.parse_args(argv)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(iterate, steps: int, device: torch.device) -> float:
    """Duration of `steps` calls, seconds."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        iterate()
    synchronize(device)
    return time.perf_counter() - started


def usual_script(args, device: torch.device, workers: int):
    """(a): a factory of functions that run one iteration, each with workers of its own."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.Resize(args.image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
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
    running = [0.0, 0]

    def make():
        batches = itertools.chain.from_iterable(itertools.repeat(loader))

        def iterate():
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

    return make


def this_project(args, device: torch.device, precision: str, form: str):
    """(b): a factory of functions that run one iteration."""
    keep_freed_memory()
    images, labels, classes = sources.load(args.data, "train", image_size=args.image_size)
    prepare = preprocess.Preprocess(args.image_size, *preprocess.mean_and_std(images), device)
    batches = Batches(images.to(device), labels.to(device), prepare, args.batch_size, seed=0)
    network = ResNet18(len(classes)).to(device, memory_format=torch.channels_last).train()
    step = TrainStep(network, sgd(network, Optimization()), batches, precision)
    plan = batches.plan(0)
    call = accelerate(step, plan[0], *FORMS[form], say=lambda text: print(f"(b) {precision}, {form}: {text}"))
    sums, position = torch.zeros(3, device=device), 0

    def iterate():
        nonlocal position
        step.optimizer.param_groups[0]["lr"].fill_(0.025)
        sums.add_(call(plan[position]))
        position = (position + 1) % len(plan)

    return lambda: iterate


def compete(connection, args, contestant, *setting) -> None:
    """The process of a contestant: sends its throughput (images/s) whenever it receives true."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    make = contestant(args, device, *setting)
    warm_up = 2 * max(2, *args.workers) + 2  # iterations, more than (a)'s workers have fetched ahead
    steps = max(args.steps, 2 * warm_up)
    connection.send(None)
    while connection.recv():
        iterate = make()
        timed(iterate, warm_up, device)
        connection.send(steps * args.batch_size / timed(iterate, steps, device))
        del iterate  # and (a)'s workers, which would fetch ahead while another is timed


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


def copy_rate(device: torch.device) -> float:
    """The device's bytes per second, read and written, of copies of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed(lambda: target.copy_(source), 3, device)
    return max(5 * 2 * 2**30 / timed(lambda: target.copy_(source), 5, device) for _ in range(3))


def traffic(image_size: int, precision: str) -> float:
    """Bytes an image's iteration must move when every kernel reads and writes its maps once.

    A convolution: forwards its input and output, backwards twice again (for the gradients of input and of weights). A
    batch norm with its ReLU: forwards three times its map (statistics, then read and write), backwards five times.
    """
    elements = 0

    def count(module, inputs, output):
        nonlocal elements
        if isinstance(module, torch.nn.Conv2d):
            elements += 3 * (inputs[0].numel() + output.numel())
        elif isinstance(module, torch.nn.BatchNorm2d):
            elements += 8 * output.numel()

    network = ResNet18(10).eval()
    for module in network.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size))
    return elements * (2 if precision == "bf16" else 4)


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    device = torch.device(args.device)
    settings, precision_of = {}, {}
    for workers in args.workers:
        name = f"(a) usual script, fp32, {workers} workers"
        settings[name], precision_of[name] = (usual_script, workers), "fp32"
    for precision in dict.fromkeys(pick_precision(name, device) for name in args.precisions):
        for form in args.forms:
            name = f"(b) this project, {precision}" + (f", {form}" if form != "eager" else "")
            settings[name], precision_of[name] = (this_project, precision, form), precision

    context, connections = multiprocessing.get_context("spawn"), {}
    for name, setting in settings.items():
        connections[name], theirs = context.Pipe()
        context.Process(target=compete, args=(theirs, args, *setting)).start()
        connections[name].recv()  # it is ready
    speeds = {name: [] for name in settings}
    products = {precision: 0.0 for precision in precision_of.values()}  # FLOP/s
    for _ in range(args.repetitions):
        for name, connection in connections.items():
            connection.send(True)
            speeds[name].append(connection.recv())
            time.sleep(1)
        for precision in products:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            products[precision] = max(products[precision], matrix_product_rate(device, dtype))
    for connection in connections.values():
        connection.send(False)
    copies = copy_rate(device)

    flop = GFLOP_AT_224 * 1e9 * (args.image_size / 224) ** 2  # an image
    seconds = {precision: flop / rate for precision, rate in products.items()}  # an image, by its products alone
    moved = {precision: traffic(args.image_size, precision) / copies for precision in products}
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    report = {
        "device": machine,
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "matrix_products_gflops": {name: round(rate / 1e9, 1) for name, rate in products.items()},
        "copies_gb_per_second": round(copies / 1e9, 1),
        "images_per_second": {name: [round(speed, 2) for speed in values] for name, values in speeds.items()},
    }
    print(f"{machine}, torch {torch.__version__}, {args.image_size}x{args.image_size}, batch {args.batch_size}")
    for precision, rate in products.items():
        print(
            f"{precision}: matrix products at {rate / 1e9:.0f} GFLOP/s, that is {1 / seconds[precision]:.1f} images/s; "
            f"with copies at {copies / 1e9:.0f} GB/s {1 / (seconds[precision] + moved[precision]):.1f} images/s"
        )
    print("\n| | images/s, median (range) | beside (a) | of the products' limit | of the limit with traffic |")
    print("|---|---|---|---|---|")
    usual = max(statistics.median(values) for name, values in speeds.items() if name.startswith("(a)"))
    for name, values in speeds.items():
        median, precision = statistics.median(values), precision_of[name]
        print(
            f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / usual:.2f} x "
            f"| {median * seconds[precision]:.0%} | {median * (seconds[precision] + moved[precision]):.0%} |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
