"""The steps of on_gpu.py. Each runs the project's scripts as a user would, and returns what report.json stores."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import commands
import parts
from contestants import FORMS
from run_history import read_history, training_seconds

from runtime import checkpoint

ROOT = Path(__file__).parent.parent
TERMINATED = 128 + 15  # exit code of train.py after SIGTERM
LEAST_RECIPE_SECONDS = 60
DEFAULT_STEPS = 78_000  # iterations of the default recipe on CIFAR-10, about: 50 epochs of 1,562


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    image_size      side of the network's input, pixels
    batches         the two batch sizes
    timing          flags of train_step.py
    loss_steps      iterations whose losses are compared, and iterations per log line
    sample          the run behind the extrapolation: warm-up and measured seconds, iterations per log line
    recipe          flags of train.py beside its defaults
    figures         flags of visualizer.py
    tests           files of the CUDA tests
    """

    image_size: int
    batches: tuple[int, int]
    timing: tuple[str, ...]
    loss_steps: tuple[int, int]
    sample: tuple[float, float, int]
    recipe: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    tests: str = "tests"


WORKERS = [str(count) for count in (2, 4, 8, 16, 32) if count <= max(2, os.cpu_count() or 2)]
FULL = Scale(
    image_size=224,
    batches=(32, 512),
    timing=("--repetitions", "3", "--limit", "150", "--forms", *FORMS, "--workers", *WORKERS),
    loss_steps=(60, 10),
    sample=(10, 120, 300),
)
TINY = Scale(
    image_size=32,
    batches=(4, 8),
    timing=("--repetitions=1", "--forms=captured", "--workers=1", "--no-limits", "--warm-up-seconds=0.1",
            "--seconds=0.2"),
    loss_steps=(4, 2),
    sample=(0.1, 0.1, 1),
    recipe=("--max-steps", "2", "--batch-size", "8"),
    figures=("--figures", "filters", "--limit", "8"),
    tests="tests/test_step.py",
)  # fmt: skip


class StepFailed(RuntimeError):
    """A step failed; the message is the reason in one line. `result`: what it had measured until then."""

    def __init__(self, reason: str, result: dict | None = None):
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True)
class Bench:
    """What all steps share.

    out           folder of everything that is written
    data, root    as train.py takes them; pictures: the same as an image folder
    device        name, as train.py takes it
    scale         how much is measured
    minutes       that all steps may take
    name          of the step that runs
    results       of the steps before, by name
    spent         seconds that they took
    """

    out: Path
    data: str
    root: str
    pictures: Path
    device: str
    scale: Scale
    minutes: float
    name: str = ""
    results: dict[str, dict] = field(default_factory=dict)
    spent: float = 0

    def run(self, *command: str | Path, seconds: float = math.inf, until=None) -> commands.Outcome:
        """Runs a Python script of the project; its output goes to logs/<step>.log. Raises StepFailed.

        seconds, until: stop the script by SIGTERM after so many seconds, or when this is true; both are a success
        """
        first, *rest = command
        start = [sys.executable, ROOT / first] if str(first).endswith(".py") else [sys.executable, first]
        log, limit = self.out / "logs" / f"{self.name}.log", STEPS[self.name].limit
        shortened = seconds < limit
        outcome = commands.run([*start, *rest], log, min(seconds, limit), shortened, until)
        stopped = outcome.satisfied or (shortened and outcome.timed_out)
        if outcome.code not in ((0, TERMINATED) if stopped else (0,)) or (outcome.timed_out and not shortened):
            raise StepFailed(outcome.reason())
        return outcome

    def train(self, out: Path, *flags: str, **limits) -> commands.Outcome:
        """Runs train.py on the data and device."""
        fixed = ["--data", self.data, "--root", self.root, "--image-size", str(self.scale.image_size)]
        return self.run("train.py", *fixed, "--device", self.device, "--out", out, *flags, **limits)


def environment(bench: Bench) -> dict:
    """Card, driver, torch, cuDNN, and the rates of matrix products and copies."""
    file = bench.out / "environment.json"
    rates = "--no-rates" if "--no-limits" in bench.scale.timing else "--rates"
    bench.run("benchmarks/hardware_limits.py", rates, "--device", bench.device, "--json", file)
    return json.loads(file.read_text())


def write_pictures(bench: Bench) -> dict:
    """The data set as PNG files, which the usual script reads."""
    few = ["--per-class", "8"] if bench.scale is TINY else []
    source = "shapes" if bench.scale is TINY else bench.data
    if bench.data == str(bench.pictures) and bench.scale is not TINY:
        return {"folder": bench.data}
    bench.run("benchmarks/pictures.py", "--data", source, "--root", bench.root, "--out", bench.pictures, *few)
    return {"folder": str(bench.pictures)}


def cuda_tests(bench: Bench) -> dict:
    """The tests that need CUDA; they are skipped without."""
    flags = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    return {"summary": bench.run("-m", "pytest", *flags, ROOT / bench.scale.tests).last_line}


def losses(bench: Bench) -> dict:
    """Training losses in fp32: eager, eager again (their difference is the noise), and captured."""
    steps, every = map(str, bench.scale.loss_steps)
    flags = ["--max-steps", steps, "--log-every", every, "--precision", "fp32", "--overwrite"]
    flags += ["--batch-size", str(bench.scale.batches[0])]
    found = {}
    for name, extra in {"eager": [], "again": [], "captured": ["--cuda-graph"]}.items():
        out = bench.out / "losses" / name
        bench.train(out, *flags, *extra)
        found[name] = [entry["loss"] for entry in read_history(out) if entry["kind"] == "train"]
    log = (bench.out / "logs" / f"{bench.name}.log").read_text().splitlines()
    said = [line for line in log if line.startswith(("captured in", "not captured"))]
    noise, difference = (
        max(abs(a - b) for a, b in zip(found["eager"], found[name], strict=True)) for name in ("again", "captured")
    )
    return found | {"noise": noise, "difference": difference, "said": said[-1] if said else ""}


def throughput(bench: Bench, large: bool = False) -> dict:
    """The table of train_step.py at one of the two batch sizes."""
    file = bench.out / f"{bench.name}.json"
    file.unlink(missing_ok=True)
    flags = ["--data", bench.data, "--root", bench.root, "--folder", bench.pictures, "--device", bench.device]
    flags += ["--image-size", str(bench.scale.image_size), "--batch-size", str(bench.scale.batches[large])]
    try:
        bench.run("benchmarks/train_step.py", *flags, *bench.scale.timing, "--json", file)
    except StepFailed as error:
        raise StepFailed(str(error), json.loads(file.read_text()) if file.exists() else None) from error
    return json.loads(file.read_text())


def fastest_flags(bench: Bench) -> list[str]:
    """The flags of train.py that were fastest at the smaller batch; none if that was not measured."""
    speeds = bench.results.get("throughput", {}).get("images_per_second", {})
    forms = {name: name.split(", ", 2)[2] for name in speeds if name.startswith("(b)") and "not " not in name}
    best = forms[max(forms, key=lambda name: median(speeds[name]))] if forms else ""
    return ["--compile"] * ("compiled" in best) + ["--cuda-graph"] * ("captured" in best)


def extrapolation(bench: Bench) -> dict:
    """How long the default's iterations take, extrapolated from a short run with the fastest flags."""
    (warm_up, seconds, every), batch = bench.scale.sample, bench.scale.batches[0]
    flags, out = fastest_flags(bench), bench.out / "sample"
    fixed = ["--batch-size", str(batch), "--log-every", str(every), "--epochs", "100000", "--overwrite"]
    (out / "history.jsonl").unlink(missing_ok=True)
    bench.train(out, *fixed, *flags, until=lambda: sum(training_seconds(out, every * batch, warm_up)) >= seconds)
    durations = training_seconds(out, every * batch, warm_up)
    spent, iterations = sum(durations), every * len(durations)
    return {
        "extrapolated": True,
        "flags": flags,
        "iterations": iterations,
        "seconds": round(spent, 1),
        "hours": DEFAULT_STEPS * spent / iterations / 3600,
        "images_per_second": iterations * batch / spent,
    }


def recipe(bench: Bench) -> dict:
    """The default recipe with the fastest flags, for the remaining time; a run that exists is continued."""
    out, flags = bench.out / "recipe", fastest_flags(bench)
    if not (out / "model.pt").exists():
        resume = ["--resume"] if (out / "last.pt").exists() else []
        left = 60 * bench.minutes - bench.spent - commands.SAVING_SECONDS
        bench.train(out, *bench.scale.recipe, *flags, *resume, seconds=max(left, LEAST_RECIPE_SECONDS))
    state = checkpoint.load(recipe_checkpoint(bench))
    tests = [entry for entry in read_history(out) if entry["kind"] == "test"]
    return {
        "finished": (out / "model.pt").exists(),
        "flags": flags,
        "step": state["step"] if "step" in state else state["result"]["step"],
        "epoch": tests[-1]["epoch"] if tests else None,
        "test_accuracy": tests[-1]["accuracy"] if tests else None,
        "result": state["result"],
    }


def recipe_checkpoint(bench: Bench) -> Path:
    """model.pt of the finished recipe, or last.pt of the stopped one, which train.py can continue."""
    finished, last = (bench.out / "recipe" / name for name in ("model.pt", "last.pt"))
    if not finished.exists() and not last.exists():
        raise StepFailed("the recipe has no checkpoint")
    return finished if finished.exists() else last


def split_checkpoint(bench: Bench) -> dict:
    """The recipe's checkpoint in parts under 16 MiB."""
    return parts.split(recipe_checkpoint(bench), bench.out / "parts")


def figures(bench: Bench) -> dict:
    """The figures of the recipe's network."""
    out, fixed = bench.out / "figures", ["--data", bench.data, "--root", bench.root, "--device", bench.device]
    bench.run("visualizer.py", "--ckpt", recipe_checkpoint(bench), *fixed, "--out", out, *bench.scale.figures)
    return {"files": sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))}


@dataclass(frozen=True)
class Step:
    """A step: function, time limit of each of its commands in seconds, and description."""

    function: Callable[[Bench], dict]
    limit: float
    text: str


STEPS = {
    "environment": Step(environment, 180, "card, driver, versions"),
    "pictures": Step(write_pictures, 600, "the images as PNG files"),
    "tests": Step(cuda_tests, 300, "the tests that need CUDA"),
    "losses": Step(losses, 300, "losses, captured against eager"),
    "throughput": Step(throughput, 600, "throughput and memory, small batch"),
    "throughput-large": Step(lambda bench: throughput(bench, large=True), 600, "throughput and memory, large batch"),
    "extrapolation": Step(extrapolation, 240, "duration of the default's iterations"),
    "recipe": Step(recipe, 24 * 3600, "the default recipe, for the remaining time"),
    "checkpoint": Step(split_checkpoint, 60, "its checkpoint in parts"),
    "figures": Step(figures, 600, "the figures of its network"),
}


def timed_step(name: str, bench: Bench) -> dict:
    """Runs a step; the entry of report.json: status, seconds, result and, if it failed, the reason."""
    started, entry = time.monotonic(), {"status": "done"}
    try:
        entry["result"] = STEPS[name].function(bench)
    except StepFailed as error:
        entry |= {"status": "failed", "error": str(error), "result": error.result}
    except (OSError, ValueError, KeyError) as error:  # an unreadable or incomplete result
        entry |= {"status": "failed", "error": f"{type(error).__name__}: {checkpoint.first_line(error)}"}
    return entry | {"seconds": round(time.monotonic() - started, 1)}
