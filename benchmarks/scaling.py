"""Training throughput of 1, 2, ... processes: one GPU each, or equal parts of the CPU's cores.

python benchmarks/scaling.py --data FOLDER --processes 1 2 4 8

Each process has --batch-size images per iteration (weak scaling). Runs torchrun on train.py, one configuration after
the other, and reads history.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

TRAIN = Path(__file__).parent.parent / "train.py"


def parse_args(argv=None):
    """The flags of the command line; all others go to train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2], help="numbers of processes to compare with 1 (default: 2)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per iteration and process (default: 32)")
    parser.add_argument("--steps", type=int, default=20, help="iterations per log line (default: 20)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each configuration (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    return parser.parse_known_args(argv)


def images_per_second(count: int, args, settings: list[str]) -> float:
    """Mean throughput of a run after its first log line, which includes the warm-up."""
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command += [str(TRAIN), *settings, "--batch-size", str(count * args.batch_size), "--out", out]
        command += ["--log-every", str(args.steps), "--max-steps", str(3 * args.steps), "--hold-out", "32"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        lines = [json.loads(line) for line in (Path(out) / "history.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return statistics.mean(speeds[1:3])


def main(argv=None):
    """The script."""
    args, settings = parse_args(argv)
    speeds = {count: [] for count in sorted({1, *args.processes})}
    for _ in range(args.repetitions):
        for count, values in speeds.items():
            values.append(images_per_second(count, args, settings))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    if args.json:
        report = {"device": device, "torch": str(torch.__version__), "settings": settings, "images_per_second": speeds}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(f"{device}, torch {torch.__version__}, batch {args.batch_size} per process, {' '.join(settings)}\n")
    print("| processes | images/s, median (range) | relative to 1 |\n|---|---|---|")
    one = statistics.median(speeds[1])
    for count, values in speeds.items():
        median = statistics.median(values)
        print(f"| {count} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / one:.2f} x |")


if __name__ == "__main__":
    main()
