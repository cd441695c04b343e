"""What a run records and prints: its first line, training and test metrics, the result."""

from collections.abc import Callable
from typing import Any

import torch

from training.data import Data
from training.evaluation import mean_metrics
from training.progress import Progress, format_duration
from training.run import Run


def describe(data: Data, run: Run, precision: str) -> str:
    """The first line of the log."""
    sizes = ", ".join(f"{size}x{size}" for size, _ in run.plan.sizes)
    processes = f"{run.world.size} processes on " if run.world.size > 1 else ""
    resumed = f", continuing after {run.step:,}" if run.step else ""
    return (
        f"{len(data.train[0]):,} training and {len(data.test[0]):,} test images of {len(data.classes)} classes at "
        f"{sizes}; {run.plan.total_steps:,} iterations on {processes}{data.train[0].device}, {precision}{resumed}"
    )


def end_line(run: Run, progress: Progress) -> None:
    """Records and prints the training metrics since the last line."""
    entry = run.train_entry(progress.images_per_second())
    run.record(entry)
    progress.train_line(entry)


def end_epoch(run: Run, progress: Progress, measure: Callable[[], tuple[float, float]]) -> None:
    """Evaluates by `measure`; records and prints the test metrics."""
    run.check_finite()
    with progress.paused():
        loss, accuracy = measure()
    entry = run.test_entry(loss, accuracy)
    run.record(entry)
    progress.test_line(entry)


def result(run: Run, flip_accuracy: float | None) -> dict[str, Any]:
    """The result of a finished run, as model.pt holds it.

    flip_accuracy: test accuracy (0..1) with the logits of each image and its mirror image averaged, if measured
    """
    train_loss, train_accuracy = mean_metrics(run.world.all_reduce_sum(run.in_epoch))
    test = [entry for entry in run.history if entry["kind"] == "test"][-1]
    found = {name: test[name] for name in ("epoch", "step", "image_size")}
    found |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
    found |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
    found |= {"seconds": round(run.seconds, 1), "torch": str(torch.__version__)}
    if flip_accuracy is not None:
        found["test_accuracy_flipped"] = flip_accuracy
    if run.since_line.device.type == "cuda":
        found["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()
    return found


def summarize(result: dict[str, Any]) -> str:
    """A result in one line."""
    flip, memory = result.get("test_accuracy_flipped"), result.get("peak_gpu_bytes")
    return (
        f"train accuracy {result['train_accuracy']:.2%} (mean over the last epoch, as trained), "
        f"test accuracy {result['test_accuracy']:.2%}"
        + (f" ({flip:.2%} averaged with mirror images)" if flip is not None else "")
        + (f", {memory / 1e9:.1f} GB of GPU memory" if memory else "")
        + f", in {format_duration(result['seconds'])}"
    )
