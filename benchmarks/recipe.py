"""Compare settings of train.py on held-out training images, one change at a time; the test split is never used.

python benchmarks/recipe.py --data FOLDER --image-size 64 --epochs 5 --lr-step-size 2
python benchmarks/recipe.py --data FOLDER --trials fp32 bf16 --seeds 0 1 2 --sizes 64:3 96:2

All other flags go to train.py. Every trial is a run in a folder of its own: a finished one is not repeated, an
interrupted one is resumed. Differences are paired by seed and relative to the first trial.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from runtime import checkpoint

TRIALS = {
    "default": [],
    "learning rate 0.0125": ["--lr", "0.0125"],
    "learning rate 0.05": ["--lr", "0.05"],
    "learning rate 0.1": ["--lr", "0.1"],
    "weight decay 1e-4": ["--weight-decay", "1e-4"],
    "weight decay 1e-3": ["--weight-decay", "1e-3"],
    "weight decay on biases and batch norms": ["--norm-decay"],
    "label smoothing 0.1": ["--label-smoothing", "0.1"],
    "cutout 8": ["--cutout", "8"],
    "no shift": ["--shift", "0"],
    "no flip": ["--flip", "none"],
    "alternating flip": ["--flip", "alternate"],
    "no augmentation": ["--no-augment"],
    "warm-up of 1 epoch": ["--lr-warmup-epochs", "1"],
    "EMA 0.999": ["--ema-decay", "0.999"],
    "Nesterov": ["--nesterov"],
    "linear": ["--schedule", "linear"],
    "one cycle": ["--schedule", "onecycle"],
    "cosine": ["--schedule", "cosine"],
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16"],
}


def parse_args(argv=None):
    """The flags of the command line; all others go to train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/recipe", help="folder of the runs (default: runs/recipe)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="NAME")
    parser.add_argument("--hold-out", type=int, default=5000, help="held-out training images (default: 5000)")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    return parser.parse_known_args(argv)


def run(folder: Path, flags: list[str]) -> dict:
    """The result of a run of train.py, which is started, resumed, or only read."""
    if not (folder / "model.pt").exists():
        resume = ["--resume"] if (folder / "last.pt").exists() else ["--overwrite"]
        command = [sys.executable, train.__file__, "--out", str(folder), *flags, *resume]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    state = checkpoint.load(folder / "model.pt")
    wanted = vars(train.parse_args(flags))
    trial = wanted.keys() - {"out", "resume", "overwrite"}
    if other := sorted(name for name in trial if state["config"].get(name) != wanted[name]):
        sys.exit(f"{folder} holds a run with another {other[0]}: pass another --out")
    return state["result"]


def paired_difference(values: list[float], baseline: list[float]) -> str:
    """Mean and standard error of the differences; the latter needs two pairs."""
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    mean = f"{100 * statistics.mean(differences):+.2f}"
    if len(differences) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(differences) / len(differences) ** 0.5:.2f}"


def main(argv=None):
    """The script."""
    args, settings = parse_args(argv)
    results: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:
        for name in args.trials:
            folder = Path(args.out) / f"{name.replace(' ', '-')}-{seed}"
            flags = [*settings, *TRIALS[name], "--seed", str(seed), "--hold-out", str(args.hold_out)]
            result = results.setdefault(name, {})[seed] = run(folder, flags)
            print(f"{name}, seed {seed}: {result['test_accuracy']:.2%} in {result['seconds']:.0f} s", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")

    accuracies = {name: [result["test_accuracy"] for result in by_seed.values()] for name, by_seed in results.items()}
    first = args.trials[0]
    print(f"\n| trial | seeds | held-out accuracy (%), mean (range) | difference to {first}, mean ± standard error |")
    print("|---|---|---|---|")
    for name, values in accuracies.items():
        low, mean, high = (100 * value for value in (min(values), statistics.mean(values), max(values)))
        difference = "" if name == first else paired_difference(values, accuracies[first])
        print(f"| {name} | {len(values)} | {mean:.2f} ({low:.2f} to {high:.2f}) | {difference} |")


if __name__ == "__main__":
    main()
