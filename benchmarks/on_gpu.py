"""The first half hour on a card: tests, throughput, memory, training and figures in one command.

python benchmarks/on_gpu.py --out runs/gpu                         CIFAR-10, downloaded once
python benchmarks/on_gpu.py --out runs/gpu                         again: continues with the steps that are missing
python benchmarks/on_gpu.py --out runs/gpu --again recipe checkpoint figures    train on for another half hour
python benchmarks/on_gpu.py --join runs/gpu/parts --out FOLDER     join the checkpoint's parts, check its SHA-256
python benchmarks/on_gpu.py --out runs/tiny --device cpu --tiny    rehearse every step on drawn shapes, on a CPU

Writes report.json after every step, table.md (for the README), and the output of every step to logs/. A failed step is
recorded with its last line, and the next one runs. Steps that are stored are skipped, also failed ones: --again repeats
them. The time of an interrupted step is not counted.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import parts
from gpu_bench import FULL, TINY, Bench
from gpu_steps import STEPS, timed_step
from gpu_table import gpu_table

from dataset import sources
from runtime.checkpoint import CheckpointError, atomic_file
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder
from runtime.signals import exclusive_lock


def parse_args(argv=None):
    """The flags of the command line."""
    parser = ArgumentParser(__doc__)
    parser.epilog = "steps, with their time limits:\n" + "\n".join(
        f"  {name:<18}{step.text}" + (f" ({step.limit:g} s)" if name != "recipe" else "")
        for name, step in STEPS.items()
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="output folder")
    add("--data", default="cifar10", help=f"{', '.join(sources.DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder that CIFAR-10 is downloaded to")
    add("--device", default="cuda", help="cuda, cuda:1, ..., cpu")
    add("--minutes", type=number(float, above=0), default=30.0, help="time of all steps; the recipe gets what is left")
    add("--tiny", action="store_true", help="every step at a tiny size, on drawn shapes: a rehearsal")
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help="only some of the steps below")
    add("--again", nargs="+", choices=STEPS, default=[], metavar="STEP", help="repeat these steps although stored")
    add("--join", metavar="PARTS", help="only join the parts of a checkpoint in this folder to a file in --out")
    args = parser.parse_args(argv)
    if args.tiny:
        args.data = "shapes"
    return args


def make_bench(args) -> Bench:
    """What all steps share; a rehearsal uses few images, written as PNG files, for everything."""
    out = Path(args.out).resolve()
    pictures = out / "pictures" if args.tiny or args.data in sources.DATASETS else Path(args.data).resolve()
    data = args.data if pictures == out / "pictures" and not args.tiny else str(pictures)
    return Bench(out, data, args.root, pictures, args.device, TINY if args.tiny else FULL, args.minutes)


def load_report(file: Path, settings: dict) -> dict:
    """The stored report, or a new one. Raises CheckpointError if it belongs to other settings."""
    if not file.exists():
        return {"settings": settings, "steps": {}}
    report = json.loads(file.read_text())
    if report["settings"] != settings:
        was = ", ".join(f"--{name} {value}" for name, value in report["settings"].items())
        raise CheckpointError(f"{file} was measured with {was}: pass the same, or another --out")
    return report


def save_report(report: dict, out: Path) -> None:
    """Writes report.json and table.md atomically."""
    for name, text in {"report.json": json.dumps(report, indent=1) + "\n", "table.md": gpu_table(report)}.items():
        with atomic_file(out / name) as file:
            file.write(text.encode())


def run_steps(args) -> dict:
    """Runs the steps that are not stored; returns the report. Raises CheckpointError if the device does not work."""
    bench = make_bench(args)
    report = load_report(bench.out / "report.json", {name: getattr(args, name) for name in ("data", "device", "tiny")})
    spent = sum(step["seconds"] for step in report["steps"].values())
    started, steps = time.monotonic(), report["steps"]
    for name in [name for name in STEPS if name in args.steps]:
        if name in steps and name not in args.again:
            print(f"{name}: {steps[name]['status']}, stored", flush=True)
            continue
        print(f"{name}: {STEPS[name].text}", flush=True)
        results = {other: step["result"] for other, step in steps.items() if step.get("result")}
        # a repeated recipe trains on: its half hour begins now
        used = time.monotonic() - started + (0.0 if name in args.again else spent)
        step = timed_step(name, replace(bench, results=results, spent=used))
        if name == "environment" and step["status"] == "failed":  # without the device, no other step can work
            raise CheckpointError(step["error"])
        steps[name] = step
        save_report(report, bench.out)
        print(f"  {steps[name]['status']} in {steps[name]['seconds']:.0f} s", flush=True)
        if steps[name]["status"] == "failed":
            print(f"error: {name}: {steps[name]['error']}", file=sys.stderr, flush=True)
    return report


def main(argv=None):
    """The script; exit code 1 if a step failed."""
    args = parse_args(argv)
    with one_line_errors(CheckpointError):
        out = output_folder(args.out)
        if args.join:
            print(f"{parts.join(Path(args.join), out)}: SHA-256 as recorded")
            return
        with exclusive_lock(out):
            report = run_steps(args)
    print(f"\n{gpu_table(report)}\n{out}: report.json, table.md")
    if any(step["status"] == "failed" for step in report["steps"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
