"""Console output of a run: a progress bar on a terminal, otherwise one line per log interval."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from runtime.command_line import format_duration
from training.plan import Plan

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
REFRESH_SECONDS = 1.0  # between readings of the running loss: each one makes the host wait for the device
SLOW_RUN_SECONDS = 1800  # a longer run proposes a shorter one
SLOW_STEPS = 1  # first iterations, left out of the estimate of the remaining time
FIXED_COST_PIXELS = 64**2  # an image costs about as much as its pixels plus these (measured from 64 to 224 on a CPU)
EVALUATION_COST = 1 / 3  # of an image, relative to training


class Progress:
    """Throughput, remaining time, and the lines that report them.

    step         iterations done before
    plan         length of the run
    batch_size   images per iteration
    test_images  images per evaluation, at the end of every epoch
    """

    def __init__(self, step: int, plan: Plan, batch_size: int, test_images: int):
        self.bar = tqdm(total=plan.total_steps, initial=step, disable=None, dynamic_ncols=True, bar_format=BAR)
        self.first, self.step, self.plan = step, step, plan
        self.batch_size, self.test_images = batch_size, test_images
        self.line_step, self.refreshed = step, time.monotonic()
        self.started = self.line_started = time.monotonic()  # moved on by what is not training

    def advance(self) -> bool:
        """Counts an iteration; true when the running values on the terminal are due."""
        self.step += 1
        self.bar.update()
        if self.step == self.first + SLOW_STEPS:
            self.started = time.monotonic()
        due = not self.bar.disable and time.monotonic() - self.refreshed > REFRESH_SECONDS
        if due:
            self.refreshed = time.monotonic()
        return due

    def show(self, epoch: int, loss: float, accuracy: float) -> None:
        """Updates the running values beside the bar."""
        self.bar.set_description(f"epoch {epoch}/{self.plan.epochs}", refresh=False)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {self.images_per_second():.0f} images/s, "
            f"{format_duration(self.seconds_left())} left"
        )

    def images_per_second(self) -> float:
        """Training throughput since the last line."""
        return (self.step - self.line_step) * self.batch_size / max(time.monotonic() - self.line_started, 1e-9)

    def work(self, start: int, end: int) -> tuple[float, float]:
        """Cost of the iterations from `start` to `end` and of the evaluations after them, in pixels."""
        training = evaluation = begin = 0
        per_epoch = self.plan.steps_per_epoch
        for size, epochs in self.plan.sizes:
            cost, stop = size**2 + FIXED_COST_PIXELS, begin + epochs * per_epoch
            low, high = max(start, begin), min(end, stop)
            if low < high:
                ends = -(-high // per_epoch) - low // per_epoch  # an incomplete epoch counts
                training += (high - low) * self.batch_size * cost
                evaluation += ends * self.test_images * cost * EVALUATION_COST
            begin = stop
        return training, evaluation

    def seconds_left(self) -> float:
        """Until the end of the run, from its mean throughput so far."""
        done, _ = self.work(self.first + SLOW_STEPS, self.step)
        return (time.monotonic() - self.started) * sum(self.work(self.step, self.plan.total_steps)) / max(done, 1)

    def say(self, text: str) -> None:
        """Prints a line above the bar, at once even into a file."""
        self.bar.write(text)
        sys.stdout.flush()

    def forecast(self, advise: bool) -> None:
        """Prints how long the run will take and, if `advise` and it is slow, the flags of a short one."""
        seconds = self.seconds_left()
        self.say(f"this will take about {format_duration(seconds)} on this CPU")
        if advise and seconds > SLOW_RUN_SECONDS:
            self.say("for a quick look: --data shapes --image-size 64 --epochs 4, or a smaller --image-size")

    def train_line(self, entry: dict) -> None:
        """Prints a line of the history and starts the next interval."""
        left = f", {format_duration(self.seconds_left())} left" if self.step < self.plan.total_steps else ""
        self.say(
            f"epoch {entry['epoch']}/{self.plan.epochs}, iteration {entry['step']:,}/{self.plan.total_steps:,}"
            f"{self._size(entry)}: loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.2%}, "
            f"learning rate {entry['learning_rate']:.3g}, {entry['images_per_second']:.0f} images/s{left}"
        )
        self.line_step, self.line_started = self.step, time.monotonic()

    def test_line(self, entry: dict) -> None:
        """Prints the result of an evaluation."""
        self.say(
            f"epoch {entry['epoch']}/{self.plan.epochs}{self._size(entry)}: "
            f"test loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.2%}"
        )

    def _size(self, entry: dict) -> str:
        return f", {entry['image_size']} px" if len(self.plan.sizes) > 1 else ""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block from the throughput of training."""
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.started, self.line_started = self.started + spent, self.line_started + spent
