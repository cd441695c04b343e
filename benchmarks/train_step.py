"""Training throughput, measured alternately in one run: (a) a standard PyTorch script, (b) this project.

python benchmarks/train_step.py --data FOLDER                     224x224, batch 32, 2 workers

(a) is torchvision's resnet18 on an ImageFolder with PIL transforms and a DataLoader, in fp32, with `.item()` in each
step; (b) the same network, data, augmentation and optimizer settings through dataset/batches.py and training/step.py.
Every measurement runs in a process of its own; the others have ended. (b) is compared with the fastest (a). A row says
what was measured: where compiling or capturing failed, it gives the reason. The hardware's limits
(hardware_limits.py) are measured in the same run.
"""

import json
import statistics
import sys
import tempfile
from argparse import BooleanOptionalAction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import commands
from contestants import FORMS, Contestant, ContestantDied, rounds
from hardware_limits import GFLOP_AT_224, traffic

from runtime.checkpoint import atomic_file
from runtime.command_line import ArgumentParser, number

HARDWARE_LIMITS = Path(__file__).with_name("hardware_limits.py")


def parse_args(argv=None):
    """The flags of the command line."""
    parser, count = ArgumentParser(__doc__), number(int, least=1)
    add = parser.add_argument_group("contestants").add_argument
    add("--data", required=True, help="a folder with train/<class>/*; with --folder, any --data of train.py")
    add("--folder", help="(a)'s images, in train/<class>/* (default: --data)")
    add("--root", default="data", help="folder that CIFAR-10 is downloaded to")
    add("--image-size", type=count, default=224, help="side of the network's input in pixels")
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration")
    add("--workers", type=number(int, least=0), nargs="+", default=[2], help="numbers of workers of (a)'s DataLoader")
    add("--precisions", nargs="+", choices=("auto", "fp32", "bf16"), default=["auto"], help="of (b)")
    add("--forms", nargs="+", choices=FORMS, default=["eager"], help="of (b): --compile, --cuda-graph, or both")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    add = parser.add_argument_group("measurement").add_argument
    add("--warm-up-seconds", type=number(float, above=0), default=1.0, help="least duration of the warm-up")
    add("--seconds", type=number(float, above=0), default=3.0, help="least duration of a repetition")
    add("--repetitions", type=count, default=5, help="measurements of each contestant")
    add("--limit", type=number(float, above=0), default=300.0, help="time limit of a measurement in seconds")
    add("--limits", action=BooleanOptionalAction, default=True, help="also measure the limits of the hardware")
    add("--json", metavar="FILE", help="also write the figures there, as they come")
    return parser.parse_args(argv)


def make_contestants(args) -> list[Contestant]:
    """(a) with each number of workers, and (b) in each precision and form."""
    fixed = {name: getattr(args, name) for name in ("data", "root", "image_size", "batch_size", "device")}
    fixed |= {"folder": args.folder or args.data, "warm_up_seconds": args.warm_up_seconds, "seconds": args.seconds}
    usual = [Contestant(**fixed, workers=workers) for workers in dict.fromkeys(args.workers)]
    return usual + [
        Contestant(**fixed, precision=precision, form=form)
        for precision in dict.fromkeys(args.precisions)
        for form in dict.fromkeys(args.forms)
    ]


def measure_hardware(args) -> dict:
    """The machine and, with --limits, its rates, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log, result = Path(folder) / "log", Path(folder) / "limits.json"
        precisions = dict.fromkeys(["fp32", *args.precisions])
        command = [sys.executable, HARDWARE_LIMITS, "--device", args.device, "--json", result]
        command += ["--precisions", *precisions, "--rates" if args.limits else "--no-rates"]
        outcome = commands.run(command, log, args.limit)
        if outcome.code:
            sys.exit(f"error: hardware_limits.py: {outcome.reason()}")
        return json.loads(result.read_text())


def save_report(report: dict, path: str | None) -> None:
    """Writes the report atomically, if a file was asked for."""
    if path:
        with atomic_file(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


def print_table(report: dict) -> None:
    """The table in Markdown."""
    print(
        f"{report['device']}, torch {report['torch']}, {report['image_size']}x{report['image_size']}, "
        f"batch {report['batch_size']}"
    )
    limits = {}  # precision -> images/s by the products alone, and with memory traffic
    for precision, rate in report.get("matrix_products", {}).items():
        product = GFLOP_AT_224 * 1e9 * (report["image_size"] / 224) ** 2 / rate  # seconds per image
        moved = traffic(report["image_size"], precision) / report["copies"]
        limits[precision] = 1 / product, 1 / (product + moved)
        print(
            f"{precision}: matrix products at {rate / 1e9:.0f} GFLOP/s, that is {1 / product:.1f} images/s; "
            f"with copies at {report['copies'] / 1e9:.0f} GB/s {1 / (product + moved):.1f} images/s"
        )
    print(
        "\n| | images/s, median (range) | relative | of the products' limit | of the limit with traffic | GPU memory |"
    )
    print("|---|---|---|---|---|---|")
    speeds = report["images_per_second"]
    usual = max((statistics.median(speeds[name]) for name in speeds if name.startswith("(a)")), default=None)
    for name, values in speeds.items():
        median, memory = statistics.median(values), report["peak_bytes"][name]
        shares = [f"{median / limit:.0%}" for limit in limits.get(report["precision"][name], ())] or ["", ""]
        print(
            f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) "
            f"| {f'{median / usual:.2f} x' if usual else ''} | {' | '.join(shares)} "
            f"| {f'{memory / 1e9:.1f} GB' if memory else ''} |"
        )
    for name, reason in report["failures"].items():
        print(f"| {name} | failed: {reason} | | | | |")


def main(argv=None):
    """The script; exit code 1 if a contestant died."""
    args = parse_args(argv)
    report = measure_hardware(args) | {
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "images_per_second": {},
        "peak_bytes": {},
        "precision": {},
        "failures": {},
    }
    for found in rounds(make_contestants(args), args.repetitions, args.limit):
        if isinstance(found, ContestantDied):
            name, _, reason = str(found).partition(": ")
            report["failures"][name] = reason
            print(f"error: {found}", file=sys.stderr, flush=True)
        else:
            report["images_per_second"].setdefault(found.name, []).append(round(found.images_per_second, 2))
            report["peak_bytes"][found.name] = found.peak_bytes
            report["precision"][found.name] = found.precision
        save_report(report, args.json)
    print_table(report)
    if report["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
