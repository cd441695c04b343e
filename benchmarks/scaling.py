"""Training throughput of 1, 2, ... processes: one GPU each, or equal parts of the CPU's cores.

python benchmarks/scaling.py --data FOLDER --processes 1 2 4 8

Each process has --batch-size images per iteration (weak scaling). Runs torchrun on train.py, one configuration after
the other, reads history.jsonl until enough iterations are done, and then ends the run. Unknown flags go to train.py.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from train_step import describe, isolated, save_json

from runtime.command_line import ArgumentParser, number, one_line_errors


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
    add("--device", default="auto", help="auto, cpu, cuda")
    add("--json", metavar="FILE", help="also write the numbers there, as they come")
    return parser.parse_known_args(argv)


def training_seconds(history: Path, images: int, warm_up: float) -> list[float]:
    """Duration of the log intervals (of `images` each) after the first one and this many seconds of warm-up.

    history: history.jsonl of a run of train.py, which counts as empty while its last line is being written
    """
    try:
        entries = [json.loads(line) for line in history.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    spent, measured = 0.0, []
    for entry in [entry for entry in entries if entry["kind"] == "train"][1:]:
        duration = images / entry["images_per_second"]
        if spent >= warm_up:
            measured.append(duration)
        spent += duration
    return measured


def images_per_second(count: int, args, settings: list[str]) -> tuple[float, str]:
    """Mean throughput of a run after its warm-up, and what could not be compiled or captured. Raises RuntimeError."""
    images = args.steps * count * args.batch_size  # per log line
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "run", Path(folder) / "log"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command += [str(Path(__file__).parent.parent / "train.py"), "--epochs=1000000", "--hold-out=32", *settings]
        command += [f"--device={args.device}", f"--batch-size={count * args.batch_size}", f"--out={out}"]
        command += [f"--log-every={args.steps}"]
        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)), "PYTHONUNBUFFERED": "1"}
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | threads
            )
        deadline, durations = time.monotonic() + args.limit, []
        try:
            while sum(durations) < args.seconds and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                durations = training_seconds(out / "history.jsonl", images, args.warm_up_seconds)
        finally:
            process.terminate()  # torchrun ends its processes
            process.wait()
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if sum(durations) < args.seconds:
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise RuntimeError((errors or lines[-1:] or [f"exit code {process.returncode}"])[0])
    failed = [line for line in lines if line.startswith(("not compiled", "not captured"))]
    return images * len(durations) / sum(durations), ", ".join(dict.fromkeys(failed))


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


def main(argv=None):
    """The script; exit code 1 if a configuration failed."""
    args, settings = parse_args(argv)
    counts = sorted({1, *args.processes})
    speeds, notes, failures = {count: [] for count in counts}, {}, {}
    with one_line_errors():
        report = isolated(describe, args.device, [])
    report |= {"settings": settings, "images_per_second": speeds, "notes": notes, "failures": failures}
    for _ in range(args.repetitions):
        for count in [count for count in counts if count not in failures]:
            try:
                speed, notes[count] = images_per_second(count, args, settings)
                speeds[count].append(speed)
            except RuntimeError as error:
                failures[count] = str(error)
                print(f"error: {count} processes: {error}", file=sys.stderr, flush=True)
            save_json(report, args.json)
    print_table(report, args.batch_size)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
