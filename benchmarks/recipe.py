"""Trials of the recipe, one change at a time, judged on training images that are held out; never on the test split.

python benchmarks/recipe.py --data FOLDER --out runs/recipe                     all trials as train.py trains by default
python benchmarks/recipe.py --data FOLDER --image-size 64 --epochs 5 --lr-step-size 2   5 small epochs

Every trial is a run of train.py in a folder of its own. One that is finished is not done again and one that was
interrupted goes on, so this can be stopped at any time. The table at the end has what is finished.
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

TRAIN = Path(__file__).parent.parent / "train.py"

TRIALS = {
    "default": [],
    "learning rate 0.0125": ["--lr", "0.0125"],
    "learning rate 0.05": ["--lr", "0.05"],
    "learning rate 0.1": ["--lr", "0.1"],
    "weight decay 1e-4": ["--weight-decay", "1e-4"],
    "weight decay 1e-3": ["--weight-decay", "1e-3"],
    "weight decay not on biases and batch norms": ["--no-norm-decay"],
    "label smoothing 0.1": ["--label-smoothing", "0.1"],
    "cutout 8": ["--cutout", "8"],
    "no shift": ["--shift", "0"],
    "no flip": ["--flip", "none"],
    "no augmentation": ["--no-augment"],
    "warm-up of an epoch": ["--lr-warmup-epochs", "1"],
    "average of weights, 0.999": ["--ema-decay", "0.999"],
    "one cycle": ["--schedule", "onecycle"],
    "cosine": ["--schedule", "cosine"],
    "fp32": ["--precision", "fp32"],
}


def parse_args(argv=None):
    """The flags of the command line; all others go to train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/recipe", help="folder of the runs (default: runs/recipe)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="NAME")
    parser.add_argument("--hold-out", type=int, default=5000, help="training images to judge by (default: 5000)")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    return parser.parse_known_args(argv)


def run(folder: Path, flags: list[str]) -> dict:
    """The result of a run of train.py, which is begun, taken up again, or only looked at."""
    if not (folder / "model.pt").exists():
        resume = ["--resume"] if (folder / "last.pt").exists() else ["--overwrite"]
        command = [sys.executable, str(TRAIN), "--out", str(folder), *flags, *resume]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    state = checkpoint.load(folder / "model.pt")
    asked = vars(train.parse_args(flags))
    of_run = set(asked) - {"out", "resume", "overwrite"}
    if other := [name for name in of_run if state["config"].get(name) != asked[name]]:
        sys.exit(f"{folder} is of a run with another {other[0]}: pass another --out")
    return state["result"]


def main(argv=None):
    """The script."""
    args, settings = parse_args(argv)
    results: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:
        for name in args.trials:
            folder = Path(args.out) / f"{name.replace(' ', '-')}-{seed}"
            flags = [*settings, *TRIALS[name], "--seed", str(seed), "--hold-out", str(args.hold_out), "--test-flip"]
            result = results.setdefault(name, {})[seed] = run(folder, flags)
            print(f"{name}, seed {seed}: {result['test_accuracy']:.2%} in {result['seconds']:.0f} s", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")

    print("\n| change | seeds | accuracy on what was held out, mean (range) | with mirror images |\n|---|---|---|---|")
    for name, by_seed in results.items():
        plain = [result["test_accuracy"] for result in by_seed.values()]
        flipped = [result["test_accuracy_flipped"] for result in by_seed.values()]
        print(
            f"| {name} | {len(plain)} | {statistics.mean(plain):.2%} ({min(plain):.2%} to {max(plain):.2%}) "
            f"| {statistics.mean(flipped):.2%} |"
        )


if __name__ == "__main__":
    main()
