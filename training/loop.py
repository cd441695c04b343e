"""What a training loop needs around its step: batches and step at each image size, evaluation, log lines, saving."""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dataset.batches import Batches
from dataset.placement import HostImages
from dataset.preprocess import Preprocess
from runtime import checkpoint
from runtime.command_line import format_duration
from training.acceleration import Batch, accelerate
from training.evaluation import evaluate, mean_metrics
from training.run import Run
from training.step import TrainStep

SAVE_EVERY_SECONDS = 60
AGREE_EVERY_STEPS = 30  # on GPUs, where iterations are short, several processes agree on stopping only this often
BATCH_NORM_IMAGES = 6400  # training images behind the batch-norm statistics of a moving average
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
REFRESH_SECONDS = 1.0  # between readings of the running loss: each one makes the host wait for the device
SLOW_RUN_SECONDS = 1800  # a longer run proposes a shorter one
FIXED_COST_PIXELS = 64**2  # an image costs about as much as its pixels plus these (measured from 64 to 224 on a CPU)


class Loop:
    """The parts of a training loop that repeat in every epoch and iteration. `step` trains on one batch."""

    def __init__(self, run: Run):
        self.run, self.line_step = run, run.step
        self.step: Callable[..., Tensor] | None = None
        self.bar = tqdm(total=run.plan.total_steps, initial=run.step, disable=None, dynamic_ncols=True, miniters=1,
                        mininterval=REFRESH_SECONDS, bar_format=BAR)  # fmt: skip
        self.first = run.step + 1  # the first iteration is slow, and left out of the estimate of the remaining time
        self.started = self.line_started = time.monotonic()
        costs = np.square(run.plan.image_sizes, dtype=float) + FIXED_COST_PIXELS  # of an image, by epoch
        self.costs = np.repeat(costs, run.plan.steps_per_epoch)[: run.plan.total_steps]  # by iteration
        self.epochs, self.has_sizes = len(costs), len(set(run.plan.image_sizes)) > 1

    def iterations(self) -> Iterator[Batch]:
        """The arguments of `step` for each iteration left of the run.

        A new image size needs a new step: compiled code and CUDA graphs have static shapes.
        """
        run, plan, settings, batches = self.run, self.run.plan, self.run.settings, None
        images = settings.batch_size // run.world.size
        shard = slice(run.world.rank * images, (run.world.rank + 1) * images)  # this process's part of every batch
        for epoch in range(run.step // plan.steps_per_epoch, math.ceil(plan.total_steps / plan.steps_per_epoch)):
            if batches is None or batches.preprocess.image_size != plan.image_sizes[epoch]:
                batches = self.make_batches(plan.image_sizes[epoch])
                with self.paused():
                    self.step = None  # releases the memory of a captured graph, and DistributedDataParallel's hooks
                    gc.collect()
                    smoothing = settings.optimization.label_smoothing
                    self.step = TrainStep(run.network, run.optimizer, batches, settings.precision, smoothing, run.ema)
                    (batch,) = batches.iterate(batches.rows(epoch)[:1, shard])
                    self.step = accelerate(self.step, batch, settings.compile, settings.cuda_graph, run.world, self.say)
            start = run.step % plan.steps_per_epoch
            if start == 0:
                run.in_epoch.zero_()
            end = plan.total_steps - epoch * plan.steps_per_epoch
            yield from batches.iterate(batches.rows(epoch)[start:end, shard])

    def make_batches(self, image_size: int, **changes: Any) -> Batches:
        """The augmented training batches at an image size. changes: of the augmentation.

        The cutout shrinks with the size, 12 stored pixels at 224 are 5 at 96: short runs there should not be starved.
        """
        settings, data = self.run.settings, self.run.data
        cutout = round(settings.augmentation.cutout * image_size / self.run.plan.image_sizes[-1])
        preprocess = Preprocess(image_size, data.mean, data.std, data.train[1].device)
        augmentation = replace(settings.augmentation, cutout=cutout, **changes)
        return Batches(*data.train, preprocess, settings.batch_size, settings.seed, augmentation)

    def evaluate(self, flip: bool = False) -> tuple[float, float]:
        """Test loss and accuracy at the epoch's image size, of the EMA if there is one; flip: as in `evaluate`."""
        run, precision = self.run, self.run.settings.precision
        batches = self.make_batches(run.image_size, cutmix=0.0)  # whose statistics are not those of whole images
        if run.ema:
            rows = batches.rows(0)[: math.ceil(BATCH_NORM_IMAGES / batches.batch_size)]
            run.ema.update_batch_norm((batches(*batch)[0] for batch in batches.iterate(rows)), precision)
        return evaluate(run.evaluated, *run.data.test, batches.preprocess, precision, run.world, flip)

    def end_step(self, signals: list[int]) -> int:
        """Prints, evaluates and saves what is due; returns the signal that all processes stop for, or 0."""
        run, settings = self.run, self.run.settings
        self.update_bar()
        if run.step == 1:
            run.check_finite()  # of weights passed to --init
        if run.step % settings.log_every == 0:
            self.end_line()
        if run.step % run.plan.steps_per_epoch == 0:
            self.end_epoch()
            if run.epoch in settings.snapshots:
                run.save()  # first, so that no snapshot lies beside an overwritten run
                run.save_model(run.folder / checkpoint.SNAPSHOT.format(run.epoch))
        every = settings.save_every
        is_due = run.step % every == 0 if every else time.monotonic() - run.saved > SAVE_EVERY_SECONDS
        if run.world.size > 1 and run.in_epoch.is_cuda and run.step % AGREE_EVERY_STEPS and not (every and is_due):
            return 0
        stop, save = run.world.all_reduce_max(signals[0] if signals else 0, is_due)
        if save and not stop:
            run.save()
        return int(stop)

    def end(self) -> None:
        """Reports an incomplete interval and epoch. Not saved: a longer run would not have these lines."""
        if self.run.world.all_reduce_sum(self.run.since_line)[2] > 0:
            self.end_line()
        if self.run.step % self.run.plan.steps_per_epoch:
            self.end_epoch()

    def end_line(self) -> None:
        """Records and prints mean loss and accuracy since the last line."""
        run, plan, speed = self.run, self.run.plan, round(self.images_per_second(), 1)
        loss, accuracy = mean_metrics(run.world.all_reduce_sum(run.since_line))
        run.since_line.zero_()
        run.record("train", loss, accuracy, learning_rate=run.learning_rate, images_per_second=speed)
        size = f", {run.image_size} px" if self.has_sizes else ""
        left = f", {format_duration(self.seconds_left())} left" if run.step < plan.total_steps else ""
        self.say(
            f"epoch {run.epoch}/{self.epochs}, iteration {run.step:,}/{plan.total_steps:,}{size}: loss {loss:.4f}, "
            f"accuracy {accuracy:.2%}, learning rate {run.learning_rate:.3g}, {speed:.0f} images/s{left}"
        )
        self.line_step, self.line_started = run.step, time.monotonic()

    def end_epoch(self) -> None:
        """Records and prints test loss and accuracy."""
        run = self.run
        with self.paused():
            loss, accuracy = self.evaluate()
        run.record("test", loss, accuracy)
        size = f", {run.image_size} px" if self.has_sizes else ""
        self.say(f"epoch {run.epoch}/{self.epochs}{size}: test loss {loss:.4f}, accuracy {accuracy:.2%}")

    def update_bar(self) -> None:
        """The progress bar with its running values; on a CPU, once, how long the run will take."""
        run = self.run
        if run.step == self.first:
            self.started = time.monotonic()
        if self.bar.update():
            loss, accuracy = mean_metrics(run.since_line)
            self.bar.set_description(f"epoch {run.epoch}/{self.epochs}", refresh=False)
            speed = f"{self.images_per_second():.0f} images/s, {format_duration(self.seconds_left())} left"
            self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}, {speed}")
        if run.since_line.device.type == "cpu" and run.step == self.first + 2:
            self.say(f"this will take about {format_duration(self.seconds_left())} on this CPU")
            if self.seconds_left() > SLOW_RUN_SECONDS:
                self.say("for a quick look: --data shapes --image-size 64 --epochs 4, or a smaller --image-size")

    def images_per_second(self) -> float:
        """Training throughput since the last line."""
        images = (self.run.step - self.line_step) * self.run.settings.batch_size
        return images / max(time.monotonic() - self.line_started, 1e-9)

    def seconds_left(self) -> float:
        """Until the end of the run, by the cost of the iterations; tqdm's own estimate knows one image size only."""
        done, left = self.costs[self.first : self.run.step].sum(), self.costs[self.run.step :].sum()
        return (time.monotonic() - self.started) * left / max(done, 1)

    def say(self, text: str) -> None:
        """Prints a line above the bar, at once even into a file."""
        self.bar.write(text)
        sys.stdout.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block from the throughput of training."""
        before = time.monotonic()
        yield
        self.line_started += time.monotonic() - before

    def describe(self) -> str:
        """The first line of the log."""
        run, (images, labels), (test, _) = self.run, self.run.data.train, self.run.data.test
        sizes = ", ".join(f"{size}x{size}" for size in dict.fromkeys(run.plan.image_sizes))
        processes = f"{run.world.size} processes on " if run.world.size > 1 else ""
        where = ", images on the host" if isinstance(images, HostImages) else ""
        resumed = f", continuing after {run.step:,}" if run.step else ""
        return (
            f"{len(images):,} training and {len(test):,} test images of {len(run.data.classes)} classes at {sizes}; "
            f"{run.plan.total_steps:,} iterations on {processes}{labels.device}, "
            f"{run.settings.precision}{where}{resumed}"
        )
