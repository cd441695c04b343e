"""What a training loop needs around its step: batches and step at each image size, evaluation, logging, saving."""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dataset.batches import Batches
from dataset.placement import HostImages
from dataset.preprocess import Preprocess
from training.acceleration import accelerate
from training.evaluation import evaluate, mean_metrics
from training.progress import Progress, format_duration
from training.run import Run
from training.step import TrainStep

BATCH_NORM_IMAGES = 6400  # training images behind the batch-norm statistics of a moving average


class Loop:
    """The parts of a training loop that repeat in every epoch and iteration.

    suggest_shorter: on a CPU, propose a shorter run if this one is slow
    """

    def __init__(self, run: Run, suggest_shorter: bool = False):
        self.run, self.suggest_shorter, self.progress = run, suggest_shorter, Progress(run)
        self.batches: Batches | None = None
        self.step: Callable[..., Tensor] | None = None

    def start_epoch(self, epoch: int) -> tuple[Callable[..., Tensor], Iterator[tuple[Tensor, Tensor | None]]]:
        """The training step at the image size of an epoch, and its arguments for the iterations left of the epoch.

        A new image size needs a new step: compiled code and CUDA graphs have static shapes.
        """
        run, plan, settings = self.run, self.run.plan, self.run.settings
        is_resized = self.batches is None or self.batches.preprocess.image_size != plan.image_size(epoch)
        if is_resized:
            self.batches = self.make_batches(plan.image_size(epoch))
        rows = self.batches.rows(epoch)[:, run.world.shard(settings.batch_size)]
        if is_resized:
            with self.progress.paused():
                self.step = None  # releases the memory of a captured graph, and DistributedDataParallel's hooks
                gc.collect()
                smoothing = settings.optimization.label_smoothing
                step = TrainStep(run.network, run.optimizer, self.batches, settings.precision, smoothing, run.ema)
                (batch,) = self.batches.iterate(rows[:1])
                say = self.progress.say
                self.step = accelerate(step, batch, settings.compile, settings.cuda_graph, run.world, say)
        start = run.step % plan.steps_per_epoch
        if start == 0:
            run.in_epoch.zero_()
        return self.step, self.batches.iterate(rows[start : plan.total_steps - epoch * plan.steps_per_epoch])

    def make_batches(self, image_size: int, **changes: Any) -> Batches:
        """The augmented training batches at an image size. changes: of the augmentation."""
        settings, data = self.run.settings, self.run.data
        cutout = self.run.plan.cutout(settings.augmentation.cutout, image_size)
        preprocess = Preprocess(image_size, data.mean, data.std, data.train[1].device)
        augmentation = replace(settings.augmentation, cutout=cutout, **changes)
        return Batches(*data.train, preprocess, settings.batch_size, settings.seed, augmentation)

    def end_step(self, signals: list[int]) -> int:
        """Prints, evaluates and saves what is due; returns the signal to stop for, or 0."""
        run, progress, settings = self.run, self.progress, self.run.settings
        if progress.advance():
            progress.show(*mean_metrics(run.since_line))
        if run.since_line.device.type == "cpu" and run.step == progress.first + 3:
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
        stop, save = run.agree(signals)
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
        self.progress.line(self.run.record_training(round(self.progress.images_per_second(), 1)))

    def _end_epoch(self) -> None:
        self.run.check_finite()
        with self.progress.paused():
            loss, accuracy = self.evaluate()
        self.progress.line(self.run.record("test", loss, accuracy))

    def evaluate(self, flip: bool = False) -> tuple[float, float]:
        """Test loss and accuracy at the image size of the epoch, of the moving average if there is one.

        flip: average the logits of each image and its mirror image.
        """
        run, precision = self.run, self.run.settings.precision
        batches = self.make_batches(run.image_size, cutmix=0.0)  # whose statistics are not those of whole images
        if run.ema:
            rows = batches.rows(0)[: math.ceil(BATCH_NORM_IMAGES / batches.batch_size)]
            run.ema.update_batch_norm((batches(*batch)[0] for batch in batches.iterate(rows)), precision)
        return evaluate(run.evaluated, *run.data.test, batches.preprocess, precision, run.world, flip)

    def describe(self) -> str:
        """The first line of the log."""
        run, (images, labels), (test, _) = self.run, self.run.data.train, self.run.data.test
        sizes = ", ".join(f"{size}x{size}" for size, _ in run.plan.sizes)
        processes = f"{run.world.size} processes on " if run.world.size > 1 else ""
        where = ", images on the host" if isinstance(images, HostImages) else ""
        resumed = f", continuing after {run.step:,}" if run.step else ""
        return (
            f"{len(images):,} training and {len(test):,} test images of {len(run.data.classes)} classes at {sizes}; "
            f"{run.plan.total_steps:,} iterations on {processes}{labels.device}, {run.settings.precision}"
            f"{where}{resumed}"
        )


def final_result(run: Run, flip_accuracy: float | None) -> dict[str, Any]:
    """The result of a finished run, as model.pt holds it.

    flip_accuracy: test accuracy (0..1) with the logits of each image and its mirror image averaged, if measured
    """
    device = run.in_epoch.device
    train_loss, train_accuracy = mean_metrics(run.world.all_reduce_sum(run.in_epoch))
    test = [entry for entry in run.history if entry["kind"] == "test"][-1]
    result = {name: test[name] for name in ("epoch", "step", "image_size")}
    result |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
    result |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
    result |= {"train_images": len(run.data.train[0]), "test_images": len(run.data.test[0])}
    result |= {"seconds": round(run.seconds, 1), "torch": str(torch.__version__), "precision": run.settings.precision}
    result["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
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
