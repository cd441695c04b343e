"""What a run tells while it goes on: a bar on a terminal, otherwise one line a log interval."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
REFRESH = 1.0  # seconds between looks at the running loss, for each makes the host wait for the device
PATIENCE = 1800  # seconds of a run after which a shorter one is proposed
WARM_UP = 1  # iterations that say nothing about speed


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Speed, time left, and what is printed of them.

    step            iterations done before
    total_steps     iterations at the end, of `epochs` epochs, with `batch_size` images each
    evaluations     to come, each of `test_images`, which cost about a third of one in training
    """

    def __init__(self, step: int, total_steps: int, epochs: int, batch_size: int, evaluations: int, test_images: int):
        self.bar = tqdm(total=total_steps, initial=step, disable=None, dynamic_ncols=True, bar_format=BAR)
        self.first, self.step, self.total_steps = step, step, total_steps
        self.epochs, self.batch_size = epochs, batch_size
        self.test_images, self.to_evaluate = test_images, evaluations * test_images
        self.line_step, self.refreshed = step, time.monotonic()
        self.started = self.line_started = time.monotonic()  # moved on by what is not training

    def advance(self) -> bool:
        """Counts an iteration; true when the running values on the terminal are due."""
        self.step += 1
        self.bar.update()
        if self.step == self.first + WARM_UP:
            self.started = time.monotonic()
        due = not self.bar.disable and time.monotonic() - self.refreshed > REFRESH
        if due:
            self.refreshed = time.monotonic()
        return due

    def show(self, epoch: int, loss: float, accuracy: float) -> None:
        """The running values, beside the bar."""
        self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {self.images_per_second():.0f} images/s, "
            f"{duration(self.seconds_left())} left"
        )

    def images_per_second(self) -> float:
        """Trained on since the last line."""
        return (self.step - self.line_step) * self.batch_size / max(time.monotonic() - self.line_started, 1e-9)

    def seconds_left(self) -> float:
        """Of the whole run, from its mean speed so far."""
        an_iteration = (time.monotonic() - self.started) / max(self.step - self.first - WARM_UP, 1)
        return an_iteration * (self.total_steps - self.step + self.to_evaluate / self.batch_size / 3)

    def say(self, text: str) -> None:
        """Prints a line beside the bar, at once even into a file."""
        self.bar.write(text)
        sys.stdout.flush()

    def forecast(self, advise: bool) -> None:
        """Says how long the run will take, and, to `advise`, what to pass where that is longer than one likes."""
        seconds = self.seconds_left()
        self.say(f"this will take about {duration(seconds)} on this CPU")
        if advise and seconds > PATIENCE:
            self.say("for a quick look: --data shapes --image-size 64 --epochs 4, or a smaller --image-size")

    def train_line(self, entry: dict) -> None:
        """Prints a line of the history, and starts the next interval."""
        left = f", {duration(self.seconds_left())} left" if self.step < self.total_steps else ""
        self.say(
            f"epoch {entry['epoch']}/{self.epochs}, iteration {entry['step']:,}/{self.total_steps:,}: "
            f"loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.2%}, learning rate {entry['learning_rate']:.3g}, "
            f"{entry['images_per_second']:.0f} images/s{left}"
        )
        self.line_step, self.line_started = self.step, time.monotonic()

    def test_line(self, entry: dict) -> None:
        """Prints the result of an evaluation."""
        self.say(
            f"epoch {entry['epoch']}/{self.epochs}: test loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.2%}"
        )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Takes the time of the block out of the speed of training."""
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.started, self.line_started = self.started + spent, self.line_started + spent
        self.to_evaluate -= self.test_images
