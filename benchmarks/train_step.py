"""Training throughput, measured in turn and in one run: the usual script, the same script tuned, this project.

python benchmarks/train_step.py --data FOLDER                              224x224, batch 32, 2 workers
python benchmarks/train_step.py --data FOLDER --batch-size 256 --workers 16 --forms usual tuned eager captured both

(a) usual: torchvision's resnet18 in fp32, an ImageFolder with PIL transforms, a DataLoader, `.item()` in each step.
(b) tuned: the same with channels_last, cudnn.benchmark and, where the device has it, autocast in bf16.
(c) to (f) eager, captured, compiled, both: the same network, images, augmentation and optimizer through
dataset/batches.py and training/step.py. A row says what was measured: where compiling or capturing failed, the reason.

FOLDER has train/<class>/* with images of 32x32. Every measurement runs in a process of its own. "Of the limit" is
relative to the rate of matrix products in the same precision, measured in the same run.
"""

import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))
from dataset import preprocess, sources
from dataset.batches import Batches
from network import ResNet18
from runtime.checkpoint import atomic_file, first_line
from runtime.command_line import ArgumentParser, number, one_line_errors
from runtime.device import keep_freed_memory, pick_device, pick_precision
from training.acceleration import accelerate
from training.optimizer import Optimization, set_learning_rate, sgd
from training.step import TrainStep

RIVALS = ("usual", "tuned")
OURS = {"eager": (), "captured": ("captured",), "compiled": ("compiled",), "both": ("compiled", "captured")}
LETTERS = dict(zip((*RIVALS, *OURS), "abcdef", strict=True))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GFLOP_AT_224 = 10.65  # per image, forward and backward; proportional to the number of pixels
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of CIFAR-10, as commonly copied


def parse_args(argv=None):
    """The flags of the command line."""
    parser, count, seconds = ArgumentParser(__doc__), number(int, least=1), number(float, above=0)
    add = parser.add_argument_group("rows").add_argument
    add("--data", required=True, help="a folder with train/<class>/*")
    add("--root", default="data", help="folder that this project decodes the images into, once")
    add("--forms", nargs="+", choices=LETTERS, help="rows (default: all on a GPU; usual, tuned and eager on a CPU)")
    add("--precisions", nargs="+", choices=("auto", *DTYPES), default=["auto"], help="of this project")
    add("--image-size", type=count, default=224, help="side of the network's input in pixels")
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration")
    add("--workers", type=number(int, least=0), default=2, help="workers of the DataLoader of usual and tuned")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add = parser.add_argument_group("measurement").add_argument
    add("--warm-up-seconds", type=seconds, default=1.0, help="least duration of the warm-up")
    add("--seconds", type=seconds, default=3.0, help="duration of a measurement")
    add("--repetitions", type=count, default=5, help="measurements of each row")
    add("--json", metavar="FILE", help="also write the numbers there, as they come")
    return parser.parse_args(argv)


def usual_transform(image_size: int) -> v2.Compose:
    """The usual augmentation of 32x32 PIL images, and the network's input."""
    augmentation = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.Resize(image_size)]
    return v2.Compose([*augmentation, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def usual_script(args, device: torch.device, tuned: bool) -> tuple[str, str, Callable[[], None]]:
    """Name, precision and one iteration of (a), or of (b) if tuned."""
    precision = pick_precision("auto", device) if tuned else "fp32"
    memory_format = torch.channels_last if tuned else torch.contiguous_format
    torch.backends.cudnn.benchmark = tuned
    dataset = ImageFolder(Path(args.data) / "train", usual_transform(args.image_size))
    options = {"num_workers": args.workers, "persistent_workers": args.workers > 0, "pin_memory": device.type == "cuda"}
    loader = torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True, **options)
    network = resnet18(num_classes=len(dataset.classes)).to(device, memory_format=memory_format).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    batches, running = itertools.chain.from_iterable(itertools.repeat(loader)), [0.0, 0]

    def iterate():
        images, labels = next(batches)
        images, labels = images.to(device, memory_format=memory_format), labels.to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(images)
            loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        running[0] += loss.item()
        running[1] += (logits.argmax(1) == labels).sum().item()

    name = f"tuned script, {precision}, channels_last" if tuned else "usual script, fp32"
    return f"{name}, {args.workers} workers", precision, iterate


def this_project(args, device: torch.device, form: str, precision: str) -> tuple[str, str, Callable[[], None]]:
    """Name, precision and one iteration of (c) to (f)."""
    precision = pick_precision(precision, device)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # as in train.py
    data = sources.load_split(args.data, "train", args.root, args.image_size)
    prepare = preprocess.Preprocess(args.image_size, *preprocess.mean_and_std(data.histogram), device)
    batches = Batches(data.images.to(device), data.labels.to(device), prepare, args.batch_size, seed=0)
    network = ResNet18(len(data.classes)).to(device, memory_format=torch.channels_last).train()
    step = TrainStep(network, sgd(network, Optimization()), batches, precision)
    parts, said = OURS[form], []
    epoch = list(batches.iterate(batches.rows(0)))
    call = accelerate(step, epoch[0], "compiled" in parts, "captured" in parts, say=said.append)
    failed = {part: text for part in parts for text in said if text.startswith(f"not {part}")}
    name = ", ".join(failed.get(part, part) for part in parts) or "eager"
    sums, epoch = torch.zeros(3, device=device), itertools.cycle(epoch)

    def iterate():
        set_learning_rate(step.optimizer, 0.025)
        sums.add_(call(*next(epoch)))

    return f"this project, {precision}, {name}", precision, iterate


def images_per_second(iterate: Callable[[], None], args, prefetched: int) -> float:
    """Throughput of an iteration of args.batch_size images, after a warm-up that uses up the prefetched batches."""
    timer = Timer("iterate()", globals={"iterate": iterate}, num_threads=torch.get_num_threads())
    duration = timer.timeit(prefetched + 2).mean
    duration = timer.timeit(max(2, math.ceil(args.warm_up_seconds / duration))).mean
    return args.batch_size / timer.timeit(max(2, 2 * prefetched, math.ceil(args.seconds / duration))).mean


def measure(args, form: str, precision: str) -> dict:
    """Measures a row in this process: its name, precision, images_per_second, and peak_bytes (None on a CPU)."""
    device = pick_device(args.device)
    if form in RIVALS:
        name, precision, iterate = usual_script(args, device, form == "tuned")
    else:
        name, precision, iterate = this_project(args, device, form, precision)
    return {
        "name": f"({LETTERS[form]}) {name}",
        "precision": precision,
        "images_per_second": round(images_per_second(iterate, args, 2 * args.workers * (form in RIVALS)), 2),
        "peak_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
    }


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best FLOP/s on square matrix products, also as 1x1 convolutions: another library, often faster."""
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        pixels, kernel = a.view(1, 32, size // 32, size).permute(0, 3, 1, 2), b.view(size, size, 1, 1)  # channels_last
        for product in ("a @ b", "conv2d(pixels, kernel)"):
            names = {"a": a, "b": b, "pixels": pixels, "kernel": kernel, "conv2d": F.conv2d}
            timer = Timer(product, globals=names, num_threads=torch.get_num_threads())
            best = max(best, *(2 * size**3 / timer.timeit(3).mean for _ in range(3)))
    return best


def describe(device_name: str, precisions: list[str]) -> dict:
    """The device, torch's version, and the rates of matrix products in FLOP/s. Raises OSError without the device."""
    device = pick_device(device_name)
    threads = f"CPU, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    used = dict.fromkeys(pick_precision(name, device) for name in precisions)
    rates = {precision: matrix_product_rate(device, DTYPES[precision]) for precision in used}
    return {"device": name, "torch": str(torch.__version__), "matrix_products": rates}


def isolated(function: Callable, *arguments):
    """The result of a call in a process of its own, which ends with it; raises what the call raises."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def save_json(report: dict, path: str | None) -> None:
    """Writes the report atomically, if a file was asked for."""
    if path:
        with atomic_file(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


def print_table(report: dict) -> None:
    """The table in Markdown."""
    size = report["image_size"]
    print(f"{report['device']}, torch {report['torch']}, {size}x{size}, batch {report['batch_size']}")
    limits = {name: rate / (GFLOP_AT_224 * 1e9 * (size / 224) ** 2) for name, rate in report["matrix_products"].items()}
    for precision, limit in limits.items():
        rate = report["matrix_products"][precision] / 1e9
        print(f"{precision}: matrix products at {rate:.0f} GFLOP/s, that is {limit:.1f} images/s")
    print("\n| | images/s, median (range) | relative to (a) | to (b) | of the limit | GPU memory |")
    print("|---|---|---|---|---|---|")
    medians = {name: statistics.median(values) for name, values in report["images_per_second"].items()}
    rivals = [next((medians[name] for name in medians if name.startswith(letter)), None) for letter in ("(a)", "(b)")]
    for name, median in medians.items():
        values, memory = report["images_per_second"][name], report["peak_bytes"][name]
        relative = [f"{median / rival:.2f} x" if rival else "" for rival in rivals]
        print(
            f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {' | '.join(relative)} "
            f"| {median / limits[report['precision'][name]]:.0%} | {f'{memory / 1e9:.1f} GB' if memory else ''} |"
        )
    for name, reason in report["failures"].items():
        print(f"| {name} | failed: {reason} | | | | |")


def main(argv=None):
    """The script; exit code 1 if a row could not be measured."""
    args = parse_args(argv)
    with one_line_errors():
        report = isolated(describe, args.device, ["fp32", "auto", *args.precisions])
    report |= {name: getattr(args, name) for name in ("image_size", "batch_size", "workers")}
    report |= {name: {} for name in ("images_per_second", "peak_bytes", "precision", "failures")}
    forms = args.forms or [*RIVALS, *(["eager"] if report["device"].startswith("CPU") else OURS)]
    pairs = ((form, "auto" if form in RIVALS else precision) for form in forms for precision in args.precisions)
    rows = list(dict.fromkeys(pairs))
    for _ in range(args.repetitions):
        for form, precision in list(rows):
            try:
                row = isolated(measure, args, form, precision)
            except Exception as error:  # a process can die, and a GPU can fail, in many ways; the other rows go on
                rows.remove((form, precision))
                name = f"({LETTERS[form]}) {form}, {precision}"
                report["failures"][name] = f"{type(error).__name__}, {first_line(error)}"
                print(f"error: {name}: {report['failures'][name]}", file=sys.stderr, flush=True)
            else:
                report["images_per_second"].setdefault(row["name"], []).append(row["images_per_second"])
                report["peak_bytes"][row["name"]] = row["peak_bytes"]
                report["precision"][row["name"]] = row["precision"]
            save_json(report, args.json)
    print_table(report)
    if report["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
