"""Training throughput of 1, 2, ... processes: one GPU each, or equal parts of the CPU's cores.

python benchmarks/scaling.py --data FOLDER --processes 1 2 4 8

Each process has --batch-size images per iteration (weak scaling). Runs torchrun on train.py, one configuration after
the other, reads history.jsonl until enough iterations are done, and then ends the run. Unknown flags go to train.py.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import commands
from run_history import training_seconds

from runtime.checkpoint import atomic_file
from runtime.command_line import ArgumentParser, number

TRAIN = Path(__file__).parent.parent / "train.py"
HARDWARE_LIMITS = Path(__file__).with_name("hardware_limits.py")


class RunFailed(RuntimeError):
    """A run ended before it was measured; the message is its last words."""


def parse_args(argv=None):
    """The flags of the command line, and all others, which go to train.py."""
    parser, count = ArgumentParser(__doc__), number(int, least=1)
    add, seconds = parser.add_argument, number(float, above=0)
    add("--processes", type=count, nargs="+", default=[2], help="numbers of processes to compare with 1")
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration and process")
    add("--steps", type=count, default=20, help="iterations per log line")
    add("--warm-up-seconds", type=seconds, default=1.0, help="least duration of the warm-up, beside the first log line")
    add("--seconds", type=seconds, default=3.0, help="least duration of a repetition")
    add("--repetitions", type=count, default=3, help="runs of each configuration")
    add("--limit", type=seconds, default=300.0, help="time limit of a run in seconds")
    add("--json", metavar="FILE", help="also write the figures there, as they come")
    return parser.parse_known_args(argv)


def images_per_second(count: int, args, settings: list[str]) -> tuple[float, str]:
    """Mean throughput of a run after its warm-up, and what could not be compiled or captured. Raises RunFailed."""
    images = args.steps * count * args.batch_size  # per log line
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "run", Path(folder) / "log"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command += [TRAIN, "--epochs", "1000000", "--hold-out", "32", *settings]
        command += ["--batch-size", str(count * args.batch_size), "--out", out, "--log-every", str(args.steps)]
        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
        outcome = commands.run(
            command,
            log,
            args.limit,
            saves=True,  # so that torchrun ends its processes, each of which has a session of its own
            until=lambda: sum(training_seconds(out, images, args.warm_up_seconds)) >= args.seconds,
            environment=threads,
        )
        lines = log.read_text(errors="replace").splitlines()
        if not outcome.satisfied:
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise RunFailed(errors[0] if errors else outcome.reason())
        durations = training_seconds(out, images, args.warm_up_seconds)
    failed = [line for line in lines if line.startswith(("not compiled", "not captured"))]
    return images * len(durations) / sum(durations), ", ".join(dict.fromkeys(failed))


def describe_device(settings: list[str]) -> str:
    """The name of the device, from a process of its own."""
    device = settings[settings.index("--device") + 1] if "--device" in settings else "auto"
    with tempfile.TemporaryDirectory() as folder:
        log, result = Path(folder) / "log", Path(folder) / "machine.json"
        outcome = commands.run([sys.executable, HARDWARE_LIMITS, "--no-rates", "--device", device, "--json", result],
                               log, 300)  # fmt: skip
        if outcome.code:
            sys.exit(f"error: {outcome.reason()}")
        return json.loads(result.read_text())["device"]


def main(argv=None):
    """The script; exit code 1 if a configuration failed."""
    args, settings = parse_args(argv)
    counts = sorted({1, *args.processes})
    speeds, notes, failures = {count: [] for count in counts}, {}, {}
    device = describe_device(settings)
    report = {"device": device, "torch": str(torch.__version__), "settings": settings, "images_per_second": speeds}
    report |= {"notes": notes, "failures": failures}
    for _ in range(args.repetitions):
        for count in [count for count in counts if count not in failures]:
            try:
                speed, notes[count] = images_per_second(count, args, settings)
                speeds[count].append(speed)
            except RunFailed as error:
                failures[count] = str(error)
                print(f"error: {count} processes: {error}", file=sys.stderr, flush=True)
            if args.json:
                with atomic_file(args.json) as file:
                    file.write((json.dumps(report, indent=1) + "\n").encode())
    print_table(report, args.batch_size)
    if failures:
        sys.exit(1)


def print_table(report: dict, batch_size: int) -> None:
    """The table in Markdown."""
    title = f"{report['device']}, torch {report['torch']}, batch {batch_size} per process"
    print(f"{title}, {' '.join(report['settings'])}\n")
    print("| processes | images/s, median (range) | relative to 1 |\n|---|---|---|")
    speeds = report["images_per_second"]
    one = statistics.median(speeds[1]) if speeds[1] else None
    for count, values in speeds.items():
        name = f"{count}, {report['notes'][count]}" if report["notes"].get(count) else str(count)
        if values:
            median = statistics.median(values)
            relative = f"{median / one:.2f} x" if one else ""
            print(f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {relative} |")
        if count in report["failures"]:
            print(f"| {name} | failed: {report['failures'][count]} | |")


if __name__ == "__main__":
    main()
