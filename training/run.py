"""A training run in its folder: what it has done so far, saved and taken up again."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from network import ResNet18
from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from training.distributed import ALONE, Processes
from training.evaluation import loss_and_accuracy
from training.step import EMA

# The settings that may differ between a run and its continuation; any other would make it another run. The length of
# the run may, too, unless the learning rate follows it.
MAY_CHANGE = {"root", "device", "out", "init", "resume", "overwrite", "tensorboard", "log_every", "save_every",
              "compile", "cuda_graph", "precision", "test_flip", "snapshots"}  # fmt: skip
LENGTH = {"epochs", "max_steps"}
SAVE_EVERY = 60  # seconds
ASK_EVERY = 30  # iterations on GPUs, after which several processes agree whether to stop


class Run:
    """All that changes in training, and the files that hold it.

    folder     where last.pt, last.prev.pt, model.pt and history.jsonl are
    network, optimizer   on one device, in the state the run starts with
    steps_per_epoch      iterations
    facts      what never changes: classes, mean, std, image_size, config
    ema        moving average of the weights; if there is one, it is evaluated and saved in model.pt
    processes  all of them have a run, and count in it what they do; the first alone writes files
    writer     an optional torch.utils.tensorboard.SummaryWriter that gets every number of the history
    """

    def __init__(self, folder: Path, network: ResNet18, optimizer, steps_per_epoch: int, facts: dict,
                 ema: EMA | None = None, processes: Processes = ALONE, writer=None):  # fmt: skip
        self.last, self.model, self.log = (folder / name for name in ("last.pt", "model.pt", "history.jsonl"))
        self.network, self.optimizer, self.facts, self.writer = network, optimizer, facts, writer
        self.ema, self.processes = ema, processes
        self.steps_per_epoch = steps_per_epoch
        self.step = 0  # iterations done
        self.rate = math.nan  # of the last one
        self.seconds_before = 0.0  # spent before the last interruption
        self.started = self.saved = time.monotonic()
        self.history: list[dict] = []  # the lines of history.jsonl
        self.saved_step = None
        self.is_new = self.last_is_good = False  # as `begin` finds
        # sum of losses, number of correct answers, number of images: since the last line, and in this epoch;
        # what other processes counted is added where it is needed
        device = network.fc.weight.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # in any order of adding
        self.since_line, self.in_epoch = (torch.zeros(3, dtype=exact, device=device) for _ in range(2))

    def begin(self, state: dict | None) -> None:
        """Takes up a saved state, or starts anew.

        Of another run in the folder history.jsonl goes at once, its checkpoints when this one has its first.
        """
        self.is_new, self.last_is_good = state is None, state is not None and not state["is_previous"]
        if state is not None:
            self.network.load_state_dict(state["model"])
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["lr"] = rate  # the one tensor on the device
            self.set_rate(state["rate"])
            if self.ema:
                self.ema.network.load_state_dict(state["ema"])
            self.step, self.seconds_before, self.history = state["step"], state["seconds"], state["history"]
            if self.processes.is_first:
                self.since_line.copy_(state["since_line"])
                self.in_epoch.copy_(state["in_epoch"])
        if not self.processes.is_first:
            return
        for name in (self.last.name, self.model.name, self.log.name, checkpoint.SNAPSHOT.format("*")):
            for leftover in self.last.parent.glob(f".{name}.*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink()
        with checkpoint.atomic_file(self.log) as file:  # lines after the saved state will come again
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in self.history)

    @property
    def epoch(self) -> int:
        """The epoch of the last iteration done, from 1."""
        return max(self.step - 1, 0) // self.steps_per_epoch + 1

    @property
    def tested(self) -> ResNet18:
        """The network that is tested and handed on."""
        return self.ema.network if self.ema else self.network

    @property
    def seconds(self) -> float:
        """Spent on the run, evaluation included, over all interruptions."""
        return self.seconds_before + time.monotonic() - self.started

    def count(self, sums: Tensor) -> None:
        """An iteration is done; `sums` as the totals keep them."""
        self.step += 1
        self.since_line += sums
        self.in_epoch += sums

    def check_finite(self) -> None:
        """Raises FloatingPointError when a loss since the last line, a weight or a statistic is no number any more."""
        values = [self.processes.add(self.since_line), *self.network.state_dict().values()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise FloatingPointError(
                f"the loss is not finite by iteration {self.step}, at learning rate "
                f"{self.rate:.3g}: pass a lower --lr; what {self.last.parent} holds is older"
            )

    def set_rate(self, rate: float) -> None:
        """Gives the optimizer the learning rate of the next iteration."""
        if rate != self.rate:
            self.rate = rate
            self.optimizer.param_groups[0]["lr"].fill_(rate)  # the tensor that all its groups share

    def since_last_line(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last line, which ends here."""
        total = self.processes.add(self.since_line)
        means = loss_and_accuracy(total)
        self.since_line.zero_()
        return means

    def record(self, entry: dict) -> None:
        """Adds a line to the history and its file."""
        self.history.append(entry)
        if not self.processes.is_first:
            return
        with open(self.log, "a") as file:
            file.write(json.dumps(entry) + "\n")
        if self.writer:
            for name in entry.keys() - {"kind", "epoch", "step"}:
                self.writer.add_scalar(f"{entry['kind']}/{name}", entry[name], entry["step"])

    def save(self) -> None:
        """Writes last.pt, unless it holds this step, and keeps the one before as last.prev.pt.

        Raises FloatingPointError rather than save what is no number.
        """
        if self.saved_step == self.step:
            return
        self.check_finite()
        since_line, in_epoch = self.processes.add(self.since_line), self.processes.add(self.in_epoch)
        self.saved_step, self.saved = self.step, time.monotonic()
        if not self.processes.is_first:
            return
        progress = {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rate": self.rate,
            "steps_per_epoch": self.steps_per_epoch,
            "seconds": self.seconds,
            "since_line": since_line,
            "in_epoch": in_epoch,
        }
        if self.ema:
            progress["ema"] = self.ema.network.state_dict()
        state = {"model": self.network.state_dict(), **self.facts, "result": {}, "history": self.history}
        checkpoint.save(state | progress, self.last, keep_previous=self.last_is_good)
        self._forget_old_run()
        self.last_is_good = True

    def is_due(self, every: int | None, may_save: bool) -> bool:
        """Whether to save now: each `every` iterations; when that is None, at the first chance SAVE_EVERY after."""
        return self.step % every == 0 if every else may_save and time.monotonic() - self.saved > SAVE_EVERY

    def agree(self, signals: list[int], every: int | None, may_save: bool) -> tuple[int, bool]:
        """What all processes do now: the signal they stop for (0: none), and whether they save (see `is_due`).

        Where iterations are short, they do not ask each other after every one.
        """
        gpu = self.since_line.device.type == "cuda"
        asks = may_save or self.step % ASK_EVERY == 0 or (every and self.step % every == 0)
        if self.processes.count > 1 and gpu and not asks:
            return 0, False
        stop, save = self.processes.largest(signals[0] if signals else 0, self.is_due(every, may_save))
        return int(stop), bool(save)

    def save_model(self, result: dict) -> None:
        """Writes model.pt, which has no more than visualizer.py needs."""
        checkpoint.save(self._for_visualizer(result), self.model)

    def save_snapshot(self, image_size: int) -> None:
        """Keeps what model.pt would be now under the epoch's name, after a `save`: never beside an old run."""
        self.save()
        if self.processes.is_first:
            state = self._for_visualizer({}) | {"image_size": image_size}  # that of the epoch, not of the last one
            checkpoint.save(state, self.last.parent / checkpoint.SNAPSHOT.format(self.epoch))

    def _forget_old_run(self) -> None:
        """Removes what an overwritten run has left, now that this one has something to show."""
        if self.is_new:
            folder = self.last.parent
            for file in (self.model, checkpoint.previous(self.last), *checkpoint.snapshots(folder).values()):
                file.unlink(missing_ok=True)
        self.is_new = False

    def _for_visualizer(self, result: dict) -> dict:
        return {"model": self.tested.state_dict(), **self.facts, "result": result, "history": self.history}


def earlier_state(folder: Path, resume: bool, overwrite: bool, config: dict) -> dict | None:
    """The state to go on from, None for a new run.

    Raises CheckpointError when a run would be overwritten unasked, when there is none to resume, or when the settings
    are not those of the run to go on with. Of a damaged last.pt the one before is taken, with a warning.
    """
    last = folder / "last.pt"
    if not resume:
        files = [folder / name for name in ("last.pt", "last.prev.pt", "model.pt", "history.jsonl")]
        if not overwrite and any(file.exists() and file.stat().st_size > 0 for file in files):
            raise CheckpointError(f"{folder} holds an earlier run: pass --resume, --overwrite, or another --out")
        return None
    is_previous = False
    if not last.exists() and not checkpoint.previous(last).exists():
        raise CheckpointError(f"there is nothing to resume in {folder}: leave out --resume")
    try:
        state = checkpoint.load(last)
    except CheckpointError as error:
        if not checkpoint.previous(last).exists():
            raise
        print(f"warning: {error}; going on from {checkpoint.previous(last)}", file=sys.stderr)
        state, is_previous = checkpoint.load(checkpoint.previous(last)), True
    if not {"model", "optimizer", "config", "step", "steps_per_epoch", "since_line", "rate"} <= state.keys():
        raise CheckpointError(f"{last} is not what train.py leaves to resume from: pass it to --init instead")
    may_change = MAY_CHANGE | (LENGTH if config["schedule"] in ("step", "exponential") else set())
    changed = sorted(name for name in config.keys() - may_change if state["config"].get(name) != config[name])
    if changed:
        were = ", ".join(f"--{name.replace('_', '-')} was {state['config'].get(name)}" for name in changed)
        raise CheckpointError(f"--resume with other settings would be another run ({were}): pass the same ones")
    return state | {"is_previous": is_previous}


def check_continues(state: dict, classes: list[str], mean: list, std: list, steps_per_epoch: int, total: int) -> None:
    """Raises CheckpointError when the data are not those of the saved run, or its end lies behind it."""
    now = (classes, mean, std, steps_per_epoch)
    if now != (state["classes"], state["mean"], state["std"], state["steps_per_epoch"]):
        raise CheckpointError("the training images have changed since the run began: start a new one in another --out")
    if state["step"] > total:
        raise CheckpointError(f"the run has done {state['step']} iterations, more than the {total} now asked for")


def event_writer(folder: Path, purge_step: int | None):
    """A TensorBoard writer that hides an earlier run's points from `purge_step` on.

    Raises OSError, naming the package, where it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OSError("--tensorboard needs a package that is not here: pip install tensorboard") from error
    return SummaryWriter(folder, purge_step=purge_step)
