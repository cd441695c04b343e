"""A training run: its parts, its state, and the files that is saved in."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.batches import Augmentation
from network import ResNet18
from runtime import checkpoint
from runtime.checkpoint import Metadata
from training.data import Data
from training.distributed import ALONE, World
from training.evaluation import mean_metrics
from training.optimizer import Optimization, load_optimizer_state, set_learning_rate, sgd
from training.plan import Plan
from training.step import EMA

CURVES = "training_curves.png"
SAVE_EVERY_SECONDS = 60
AGREE_EVERY_STEPS = 30  # on GPUs, several processes agree on stopping only this often


@dataclass(frozen=True)
class Settings:
    """Settings of the loop, by the names of train.py's flags."""

    batch_size: int  # images per iteration, over all processes
    seed: int  # of order and augmentation
    log_every: int  # iterations between log lines
    save_every: int | None  # iterations between checkpoints; None: about once a minute
    snapshots: list[int]  # epochs to keep the weights of
    compile: bool  # the network, with torch.compile
    cuda_graph: bool | None  # replay each iteration as a CUDA graph; None: where that is possible
    precision: str  # "fp32" or "bf16"
    augmentation: Augmentation  # at the last image size
    optimization: Optimization  # of the loss, SGD and its learning rate


class Run:
    """What a training consists of, and everything that changes in it.

    folder                of last.pt, last.prev.pt, model.pt and history.jsonl
    network               on one device, with the weights the run starts with
    data, settings, plan  on which images, how and how long it is trained
    config                all flags of train.py, which checkpoints hold
    world                 every process has a run; rank 0 alone writes files

    If there is a moving average of the weights (`ema`), it is evaluated and saved in model.pt.
    """

    def __init__(self, folder: Path, network: ResNet18, data: Data, settings: Settings, plan: Plan,
                 config: dict[str, Any], world: World = ALONE):  # fmt: skip
        names = "last.pt", "model.pt", "history.jsonl", "tensorboard"
        self.last, self.model, self.log, self.events = (folder / name for name in names)
        self.network, self.data, self.settings, self.plan, self.world = network, data, settings, plan, world
        self.metadata = Metadata(data.classes, data.mean, data.std, plan.sizes[-1][0], config)
        self.optimizer = sgd(network, settings.optimization)
        decay = settings.optimization.ema_decay
        self.ema = EMA(network, decay) if decay else None
        self.writer, self.old_events = None, []
        self.step = 0  # iterations done
        self.learning_rate = math.nan  # of the last iteration
        self.seconds_before = 0.0  # before the last interruption
        self.started = self.saved = time.monotonic()
        self.history: list[dict[str, Any]] = []  # the lines of history.jsonl
        self.saved_step = None
        self.is_new, self.last_is_good = True, False
        # `metric_sums` of this process, since the last line and in this epoch
        device = network.fc.weight.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # exact in any order of summation
        self.since_line, self.in_epoch = (torch.zeros(3, dtype=dtype, device=device) for _ in range(2))

    def begin(self, state: dict[str, Any] | None, tensorboard: bool = False) -> None:
        """Continues a saved state, or starts a new run.

        An older run's history.jsonl is replaced at once, its other files when this run saves its first checkpoint.
        tensorboard: write every number of the history to event files, too.
        """
        if state is not None:
            self._restore(state)
        if not self.world.is_main:
            return
        self.old_events = list(self.events.glob("events.out.tfevents.*"))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise OSError("--tensorboard needs a package that is missing: pip install tensorboard") from error
            # hides the points of an earlier part of this run that will be written again
            self.writer = SummaryWriter(self.events, purge_step=self.step + 1 if state else None)
        names = (self.last.name, self.model.name, self.log.name, checkpoint.SNAPSHOT.format("*"), CURVES)
        for name in names:
            for leftover in self.last.parent.glob(f".{name}.*.tmp"):  # of a process that was killed while writing
                leftover.unlink()
        with checkpoint.atomic_file(self.log) as file:  # lines after the saved state will be written again
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in self.history)

    def _restore(self, state: dict[str, Any]) -> None:
        self.is_new, self.last_is_good = False, not state["is_previous"]
        self.network.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.set_learning_rate(state["learning_rate"])
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])
        self.step, self.seconds_before, self.history = state["step"], state["seconds"], state["history"]
        if self.world.is_main:
            self.since_line.copy_(state["since_line"])
            self.in_epoch.copy_(state["in_epoch"])

    @property
    def epoch(self) -> int:
        """The epoch of the last iteration done, from 1."""
        return max(self.step - 1, 0) // self.plan.steps_per_epoch + 1

    @property
    def image_size(self) -> int:
        """The image size of that epoch."""
        return self.plan.image_size(self.epoch - 1)

    @property
    def evaluated(self) -> ResNet18:
        """The network that is evaluated and saved in model.pt."""
        return self.ema.network if self.ema else self.network

    @property
    def seconds(self) -> float:
        """Duration of the run, evaluation included, without the interruptions."""
        return self.seconds_before + time.monotonic() - self.started

    def count(self, sums: Tensor) -> None:
        """Counts an iteration with these `metric_sums`."""
        self.step += 1
        self.since_line += sums
        self.in_epoch += sums

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the next iteration."""
        if learning_rate != self.learning_rate:
            self.learning_rate = learning_rate
            set_learning_rate(self.optimizer, learning_rate)

    def check_finite(self) -> None:
        """Raises FloatingPointError if a loss since the last line, a weight or a statistic is not finite."""
        values = [self.world.all_reduce_sum(self.since_line), *self.network.state_dict().values()]
        finite = torch.stack([value.isfinite().all() for value in values]).tolist()
        if self.step == 1 and not finite[0]:
            advice = "--precision fp32" if self.settings.precision == "bf16" else "other weights to --init"
            raise FloatingPointError(f"the loss is not finite before any update of the weights: pass {advice}")
        if not all(finite):
            raise self._diverged("is not finite")

    def _diverged(self, what: str) -> FloatingPointError:
        advice = "pass a lower --lr" + (", or --precision fp32" if self.settings.precision == "bf16" else "")
        return FloatingPointError(
            f"the loss {what} at iteration {self.step}, with learning rate {self.learning_rate:.3g}: {advice}; "
            f"the checkpoints in {self.last.parent} are from before this"
        )

    def record_training(self, images_per_second: float) -> dict[str, Any]:
        """Records the iterations since the last line; a new interval starts."""
        self.check_finite()
        loss, accuracy = mean_metrics(self.world.all_reduce_sum(self.since_line))
        self.since_line.zero_()
        speed = {"learning_rate": self.learning_rate, "images_per_second": images_per_second}
        return self.record("train", loss, accuracy, **speed)

    def record(self, kind: str, loss: float, accuracy: float, **more: float) -> dict[str, Any]:
        """Appends a line to the history and its file, and returns it. Raises FloatingPointError for a loss of NaN."""
        if not math.isfinite(loss):
            raise self._diverged(f"({kind}) is {loss}")
        entry = {"kind": kind, "epoch": self.epoch, "step": self.step, "image_size": self.image_size}
        entry |= {"loss": loss, "accuracy": accuracy, **more}
        self.history.append(entry)
        if self.world.is_main:
            with open(self.log, "a") as file:
                file.write(json.dumps(entry) + "\n")
        if self.writer:
            for name in entry.keys() - {"kind", "epoch", "step"}:
                self.writer.add_scalar(f"{kind}/{name}", entry[name], self.step)
        return entry

    def agree(self, signals: list[int]) -> tuple[int, bool]:
        """What all processes do next: the signal they stop for (0: none), and whether they save.

        On GPUs, where iterations are short, several processes agree only every AGREE_EVERY_STEPS.
        """
        every = self.settings.save_every
        due = self.step % every == 0 if every else time.monotonic() - self.saved > SAVE_EVERY_SECONDS
        if self.world.size > 1 and self.since_line.device.type == "cuda":
            if self.step % AGREE_EVERY_STEPS and not (every and due):
                return 0, False
        stop, save = self.world.all_reduce_max(signals[0] if signals else 0, due)
        return int(stop), bool(save)

    def save(self) -> None:
        """Writes last.pt, unless it holds this step, and keeps the one before as last.prev.pt.

        Raises FloatingPointError instead of saving values that are not finite.
        """
        if self.saved_step == self.step:
            return
        self.check_finite()
        since_line, in_epoch = map(self.world.all_reduce_sum, (self.since_line, self.in_epoch))
        self.saved_step, self.saved = self.step, time.monotonic()
        if not self.world.is_main:
            return
        state = self._model_entries(self.network) | {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "learning_rate": self.learning_rate,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "seconds": self.seconds,
            "fingerprint": self.data.fingerprint,
            "since_line": since_line,
            "in_epoch": in_epoch,
        }
        if self.ema:
            state["ema"] = self.ema.network.state_dict()
        checkpoint.save(state, self.last, keep_previous=self.last_is_good)
        if self.is_new:  # the rest of an overwritten run can go, now that this one has a checkpoint
            snapshots = checkpoint.snapshots(self.last.parent).values()
            for file in (self.model, checkpoint.previous(self.last), *snapshots, *self.old_events):
                file.unlink(missing_ok=True)
        self.is_new, self.last_is_good = False, True

    def save_model(self, result: dict[str, Any]) -> None:
        """Writes model.pt: what visualizer.py needs."""
        checkpoint.save(self._model_entries(self.evaluated, result=result), self.model)

    def save_snapshot(self) -> None:
        """Writes the current model.pt under the epoch's name, with the epoch's image size."""
        self.save()  # first, so that no snapshot lies beside an overwritten run
        if self.world.is_main:
            state = self._model_entries(self.evaluated, image_size=self.image_size)
            checkpoint.save(state, self.last.parent / checkpoint.SNAPSHOT.format(self.epoch))

    def _model_entries(self, network: ResNet18, **changes: Any) -> dict[str, Any]:
        return {"model": network.state_dict()} | vars(self.metadata) | {"history": self.history} | changes
