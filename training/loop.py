"""What a training loop needs around its step: batches and step at each image size, evaluation, logging, saving."""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dataset.batches import Augmentation, Batches
from dataset.placement import HostImages
from dataset.preprocess import Preprocess
from training.acceleration import accelerate
from training.data import Data
from training.evaluation import evaluate, mean_metrics
from training.optimizer import Optimization
from training.progress import Progress, format_duration
from training.run import Run
from training.step import TrainStep

BATCH_NORM_IMAGES = 6400  # training images behind the batch-norm statistics of a moving average


@dataclass(frozen=True)
class Settings:
    """Settings of the loop, by the names of train.py's flags.

    batch_size    images per iteration, over all processes
    seed          of order and augmentation
    log_every     iterations between log lines
    save_every    iterations between checkpoints; None: about once a minute
    snapshots     epochs to keep the weights of
    compile       the network, with torch.compile
    cuda_graph    replay each iteration as a CUDA graph; None: where that is possible
    precision     "fp32" or "bf16"
    augmentation  at the last image size
    optimization  of the loss, SGD and its learning rate
    """

    batch_size: int
    seed: int
    log_every: int
    save_every: int | None
    snapshots: list[int]
    compile: bool
    cuda_graph: bool | None
    precision: str
    augmentation: Augmentation
    optimization: Optimization


class Loop:
    """The parts of a training loop that repeat in every epoch and iteration.

    run, data, settings  what is trained, on which images, how
    progress             console output
    suggest_shorter      on a CPU, propose a shorter run if this one is slow
    """

    def __init__(self, run: Run, data: Data, settings: Settings, suggest_shorter: bool = False):
        self.run, self.data, self.settings, self.suggest_shorter = run, data, settings, suggest_shorter
        self.progress = Progress(run.step, run.plan, settings.batch_size, len(data.test[0]))
        self.batches: Batches | None = None
        self.step: Callable[..., Tensor] | None = None

    def start_epoch(self, epoch: int) -> tuple[Callable[..., Tensor], Iterator[tuple[Tensor, Tensor | None]]]:
        """The training step at the image size of an epoch, and its arguments for the iterations left of the epoch.

        A new image size needs a new step: compiled code and CUDA graphs have static shapes.
        """
        run, plan = self.run, self.run.plan
        is_resized = self.batches is None or self.batches.preprocess.image_size != plan.image_size(epoch)
        if is_resized:
            self.batches = self.make_batches(plan.image_size(epoch))
        rows = self.batches.rows(epoch)[:, run.world.shard(self.settings.batch_size)]
        if is_resized:
            with self.progress.paused():
                self.step = None  # releases the memory of a captured graph, and DistributedDataParallel's hooks
                gc.collect()
                self.step = self._make_step(rows[:1])
        start = run.step % plan.steps_per_epoch
        if start == 0:
            run.in_epoch.zero_()
        return self.step, self.batches.iterate(rows[start : plan.total_steps - epoch * plan.steps_per_epoch])

    def make_batches(self, image_size: int, **changes: Any) -> Batches:
        """The augmented training batches at an image size. changes: of the augmentation."""
        settings, data = self.settings, self.data
        cutout = self.run.plan.cutout(settings.augmentation.cutout, image_size)
        preprocess = Preprocess(image_size, data.mean, data.std, data.train[1].device)
        augmentation = replace(settings.augmentation, cutout=cutout, **changes)
        return Batches(*data.train, preprocess, settings.batch_size, settings.seed, augmentation)

    def _make_step(self, rows: Tensor) -> Callable[..., Tensor]:
        run, settings = self.run, self.settings
        smoothing = settings.optimization.label_smoothing
        step = TrainStep(run.network, run.optimizer, self.batches, settings.precision, smoothing, run.ema)
        (batch,) = self.batches.iterate(rows)
        return accelerate(step, batch, settings.compile, settings.cuda_graph, run.world, self.progress.say)

    def end_step(self, signals: list[int]) -> int:
        """Prints, evaluates and saves what is due; returns the signal to stop for, or 0."""
        run, progress, settings = self.run, self.progress, self.settings
        if progress.advance():
            progress.show(run.epoch, *mean_metrics(run.since_line))
        if run.since_line.device.type == "cpu" and progress.step == progress.first + 3:
            progress.forecast(self.suggest_shorter)
        if run.step == 1:
            run.check_finite()
        ends_line, ends_epoch = run.step % settings.log_every == 0, run.step % run.plan.steps_per_epoch == 0
        if ends_line:
            self._end_line()
        if ends_epoch:
            self._end_epoch()
            if run.epoch in settings.snapshots:
                run.save_snapshot()
        stop, save = run.agree(signals, settings.save_every)
        if save and not stop:
            run.save()
        return stop

    def end(self) -> None:
        """Reports an incomplete interval and epoch. Not saved: a longer run would not have these lines."""
        if self.run.world.all_reduce_sum(self.run.since_line)[2] > 0:
            self._end_line()
        if self.run.step % self.run.plan.steps_per_epoch:
            self._end_epoch()

    def _end_line(self) -> None:
        self.progress.train_line(self.run.record_training(round(self.progress.images_per_second(), 1)))

    def _end_epoch(self) -> None:
        self.run.check_finite()
        with self.progress.paused():
            loss, accuracy = self.evaluate()
        self.progress.test_line(self.run.record("test", loss, accuracy))

    def evaluate(self, flip: bool = False) -> tuple[float, float]:
        """Test loss and accuracy at the image size of the epoch, of the moving average if there is one.

        flip: average the logits of each image and its mirror image.
        """
        run, precision = self.run, self.settings.precision
        batches = self.make_batches(run.image_size, cutmix=0.0)  # whose statistics are not those of whole images
        if run.ema:
            rows = batches.rows(0)[: math.ceil(BATCH_NORM_IMAGES / self.settings.batch_size)]
            run.ema.update_batch_norm((batches(*batch)[0] for batch in batches.iterate(rows)), precision)
        return evaluate(run.evaluated, *self.data.test, batches.preprocess, precision, run.world, flip)

    def describe(self) -> str:
        """The first line of the log."""
        run, (images, labels) = self.run, self.data.train
        sizes = ", ".join(f"{size}x{size}" for size, _ in run.plan.sizes)
        processes = f"{run.world.size} processes on " if run.world.size > 1 else ""
        where = ", images on the host" if isinstance(images, HostImages) else ""
        resumed = f", continuing after {run.step:,}" if run.step else ""
        return (
            f"{len(images):,} training and {len(self.data.test[0]):,} test images of {len(self.data.classes)} classes "
            f"at {sizes}; {run.plan.total_steps:,} iterations on {processes}{labels.device}, "
            f"{self.settings.precision}{where}{resumed}"
        )


def final_result(loop: Loop, flip_accuracy: float | None) -> dict[str, Any]:
    """The result of a finished run, as model.pt holds it.

    flip_accuracy: test accuracy (0..1) with the logits of each image and its mirror image averaged, if measured
    """
    run, data = loop.run, loop.data
    device = data.train[1].device
    train_loss, train_accuracy = mean_metrics(run.world.all_reduce_sum(run.in_epoch))
    test = [entry for entry in run.history if entry["kind"] == "test"][-1]
    result = {name: test[name] for name in ("epoch", "step", "image_size")} | {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "train_images": len(data.train[0]),
        "test_images": len(data.test[0]),
        "seconds": round(run.seconds, 1),
        "torch": str(torch.__version__),
        "precision": loop.settings.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    if flip_accuracy is not None:
        result["test_accuracy_flipped"] = flip_accuracy
    if device.type == "cuda":
        result["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()
    return result


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
