"""What the steps of on_gpu.py share: how much is measured, where, and how a script is run."""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import commands
from contestants import FORMS

ROOT = Path(__file__).parent.parent
TERMINATED = 128 + 15  # exit code of train.py after SIGTERM


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
    deadline      of the step that runs, by time.monotonic()
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
    deadline: float = math.inf
    results: dict[str, dict] = field(default_factory=dict)
    spent: float = 0

    def run(
        self, *command: str | Path, seconds: float = math.inf, until: Callable[[], bool] | None = None
    ) -> commands.Outcome:
        """Runs a Python script of the project; its output goes to logs/<step>.log. Raises StepFailed.

        seconds, until: stop the script by SIGTERM after this many seconds, or when this is true; both are a success
        """
        first, *rest = command
        start = [sys.executable, ROOT / first] if str(first).endswith(".py") else [sys.executable, first]
        log, limit = self.out / "logs" / f"{self.name}.log", max(1.0, self.deadline - time.monotonic())
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
