"""The Markdown table of on_gpu.py's report, for the README."""

from statistics import median


def gpu_table(report: dict) -> str:
    """The report as Markdown: what was measured, on which card; steps without a result say why."""
    steps = report["steps"]
    results = {name: step["result"] for name, step in steps.items() if step.get("result")}
    lines = [describe_machine(results.get("environment", {})), "", "| what | figure |", "|---|---|"]
    lines += [f"| {name} | failed: {step['error']} |" for name, step in steps.items() if step["status"] == "failed"]
    for name, rows in ROWS.items():
        if name in results:
            lines += [f"| {what} | {figure} |" for what, figure in rows(results[name])]
    for name in ("throughput", "throughput-large"):
        if name in results:
            lines += ["", *throughput_table(results[name])]
    return "\n".join(lines) + "\n"


def describe_machine(found: dict) -> str:
    """Card, driver and versions in one line."""
    if not found:
        return "Machine unknown."
    names = {"driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN", "torch": "torch"}
    return ", ".join([found["device"], *(f"{text} {found[name]}" for name, text in names.items() if found.get(name))])


def test_rows(result: dict) -> list[tuple[str, str]]:
    """The tests that need CUDA."""
    return [("tests that need CUDA", result["summary"])]


def loss_rows(result: dict) -> list[tuple[str, str]]:
    """Captured against eager training."""
    figure = f"{result['difference']:.2g} (two eager runs: {result['noise']:.2g}); {result['said']}"
    return [("largest difference of the loss, captured to eager, fp32", figure)]


def extrapolation_rows(result: dict) -> list[tuple[str, str]]:
    """The duration of the default recipe."""
    flags = " ".join(["train.py", *result["flags"]])
    figure = f"{result['hours']:.2f} h (extrapolated from {result['iterations']:,} in {result['seconds']:.0f} s)"
    return [(f"78,000 iterations of `{flags}`, without evaluations", figure)]


def recipe_rows(result: dict) -> list[tuple[str, str]]:
    """The run of the default recipe."""
    how = "finished" if result["finished"] else "stopped at the time limit"
    accuracy = f", test accuracy {result['test_accuracy']:.2%}" if result["test_accuracy"] is not None else ""
    return [("default recipe", f"{how} after iteration {result['step']:,}{accuracy}")]


ROWS = {"tests": test_rows, "losses": loss_rows, "extrapolation": extrapolation_rows, "recipe": recipe_rows}


def throughput_table(result: dict) -> list[str]:
    """Throughput at one batch size; every row is compared with (a) with 2 workers and with its fastest."""
    speeds = {name: median(values) for name, values in result["images_per_second"].items()}
    usual = {name: speed for name, speed in speeds.items() if name.startswith("(a)")}
    two = next((speed for name, speed in usual.items() if name.endswith(", 2 workers")), None)
    best = max(usual.values(), default=None)
    size = f"{result['image_size']}x{result['image_size']}"
    lines = [
        f"| {size}, batch {result['batch_size']} | images/s, median (range) | to (a), 2 workers | to (a), its best "
        "| GPU memory |",
        "|---|---|---|---|---|",
    ]
    for name, speed in speeds.items():
        values, memory = result["images_per_second"][name], result["peak_bytes"][name]
        ratios = [f"{speed / base:.2f} x" if base else "" for base in (two, best)]
        lines.append(
            f"| {name} | {speed:.1f} ({min(values):.1f} to {max(values):.1f}) | {' | '.join(ratios)} "
            f"| {f'{memory / 1e9:.1f} GB' if memory else ''} |"
        )
    return lines + [f"| {name} | failed: {reason} | | | |" for name, reason in result["failures"].items()]
