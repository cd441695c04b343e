"""Console output of a run: a progress bar on a terminal, otherwise one line per log interval."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from training.run import Run

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
REFRESH_SECONDS = 1.0  # between readings of the running loss: each one makes the host wait for the device
SLOW_RUN_SECONDS = 1800  # a longer run proposes a shorter one
SLOW_STEPS = 1  # first iterations, left out of the estimate of the remaining time
FIXED_COST_PIXELS = 64**2  # an image costs about as much as its pixels plus these (measured from 64 to 224 on a CPU)
EVALUATION_COST = 1 / 3  # of an image, relative to training


def format_duration(seconds: float) -> str:
    """A duration with its unit: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Throughput, remaining time, and the lines that report them. tqdm's own estimate knows one image size only."""

    def __init__(self, run: Run):
        self.run, self.first = run, run.step
        self.bar = tqdm(total=run.plan.total_steps, initial=run.step, disable=None, dynamic_ncols=True, bar_format=BAR,
                        mininterval=REFRESH_SECONDS, miniters=1)  # fmt: skip
        self.line_step = run.step
        self.started = self.line_started = time.monotonic()  # moved on by what is not training

    def advance(self) -> bool:
        """After an iteration; true when the running values on the terminal are due."""
        if self.run.step == self.first + SLOW_STEPS:
            self.started = time.monotonic()
        return bool(self.bar.update())

    def show(self, loss: float, accuracy: float) -> None:
        """Updates the running values beside the bar."""
        self.bar.set_description(f"epoch {self.run.epoch}/{self.run.plan.epochs}", refresh=False)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {self.images_per_second():.0f} images/s, {self._left()}"
        )

    def images_per_second(self) -> float:
        """Training throughput since the last line."""
        images = (self.run.step - self.line_step) * self.run.settings.batch_size
        return images / max(time.monotonic() - self.line_started, 1e-9)

    def work(self, start: int, end: int) -> tuple[float, float]:
        """Cost of the iterations from `start` to `end` and of the evaluations after them, in pixels."""
        training, evaluation, length = 0, 0, self.run.plan.steps_per_epoch
        for epoch in range(start // length, -(-end // length)):  # an incomplete epoch is evaluated, too
            cost = self.run.plan.image_size(epoch) ** 2 + FIXED_COST_PIXELS
            steps = min(end, (epoch + 1) * length) - max(start, epoch * length)
            training += steps * self.run.settings.batch_size * cost
            evaluation += len(self.run.data.test[0]) * cost * EVALUATION_COST
        return training, evaluation

    def seconds_left(self) -> float:
        """Until the end of the run, from its mean throughput so far."""
        done, _ = self.work(self.first + SLOW_STEPS, self.run.step)
        left = sum(self.work(self.run.step, self.run.plan.total_steps))
        return (time.monotonic() - self.started) * left / max(done, 1)

    def _left(self) -> str:
        return f"{format_duration(self.seconds_left())} left"

    def say(self, text: str) -> None:
        """Prints a line above the bar, at once even into a file."""
        self.bar.write(text)
        sys.stdout.flush()

    def forecast(self, suggest_shorter: bool) -> None:
        """Prints how long the run will take and, if `suggest_shorter` and it is slow, the flags of a short one."""
        seconds = self.seconds_left()
        self.say(f"this will take about {format_duration(seconds)} on this CPU")
        if suggest_shorter and seconds > SLOW_RUN_SECONDS:
            self.say("for a quick look: --data shapes --image-size 64 --epochs 4, or a smaller --image-size")

    def line(self, entry: dict[str, Any]) -> None:
        """Prints a line of the history; after one of training, the next interval starts."""
        plan, scores = self.run.plan, f"loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.2%}"
        epoch = f"epoch {entry['epoch']}/{plan.epochs}"
        size = f", {entry['image_size']} px" if len(plan.sizes) > 1 else ""
        if entry["kind"] == "test":
            return self.say(f"{epoch}{size}: test {scores}")
        left = f", {self._left()}" if entry["step"] < plan.total_steps else ""
        self.say(
            f"{epoch}, iteration {entry['step']:,}/{plan.total_steps:,}{size}: {scores}, "
            f"learning rate {entry['learning_rate']:.3g}, {entry['images_per_second']:.0f} images/s{left}"
        )
        self.line_step, self.line_started = self.run.step, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block from the throughput of training."""
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.started, self.line_started = self.started + spent, self.line_started + spent
