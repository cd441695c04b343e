"""The steps of on_gpu.py. Each runs the project's scripts as a user would, and returns what report.json stores."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import parts
from gpu_bench import ROOT, TINY, Bench, StepFailed
from run_history import read_history, training_seconds

from runtime import checkpoint

LAST_STEPS_SECONDS = 240  # kept for saving the recipe, its checkpoint and figures
LEAST_RECIPE_SECONDS = 60
DEFAULT_STEPS = 78_000  # iterations of the default recipe on CIFAR-10, about: 50 epochs of 1,562


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
        left = 60 * bench.minutes - bench.spent - LAST_STEPS_SECONDS
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
    """A step: function, time limit of its commands in seconds, and description."""

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
    step, started, entry = STEPS[name], time.monotonic(), {"status": "done"}
    try:
        entry["result"] = step.function(replace(bench, name=name, deadline=started + step.limit))
    except StepFailed as error:
        entry |= {"status": "failed", "error": str(error), "result": error.result}
    except (OSError, ValueError, KeyError) as error:  # an unreadable or incomplete result
        entry |= {"status": "failed", "error": f"{type(error).__name__}: {checkpoint.first_line(error)}"}
    return entry | {"seconds": round(time.monotonic() - started, 1)}
