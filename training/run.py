"""A training run: its parts, its state, and the files that it is saved in."""

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
from training.optimizer import Optimization, Plan, load_optimizer_state, sgd
from training.step import EMA


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

    folder   of last.pt, last.prev.pt, model.pt and history.jsonl
    network  on one device, with the weights the run starts with
    config   all flags of train.py, which checkpoints hold
    world    every process has a run; rank 0 alone writes files
    """

    def __init__(self, folder: Path, network: ResNet18, data: Data, settings: Settings, plan: Plan,
                 config: dict[str, Any], world: World = ALONE):  # fmt: skip
        self.folder = folder
        self.last, self.model, self.log = (folder / name for name in ("last.pt", "model.pt", "history.jsonl"))
        self.network, self.data, self.settings, self.plan, self.world = network, data, settings, plan, world
        self.metadata = Metadata(data.classes, data.mean, data.std, plan.image_sizes[-1], config)
        self.optimizer = sgd(network, settings.optimization)
        decay = settings.optimization.ema_decay
        self.ema = EMA(network, decay) if decay else None
        self.evaluated = self.ema.network if self.ema else network  # and saved in model.pt
        self.step = 0  # iterations done
        self.learning_rate = math.nan  # of the last iteration
        self.history: list[dict[str, Any]] = []  # the lines of history.jsonl
        self.writer = None  # of event files
        self.started = self.saved = time.monotonic()
        self.saved_step, self.is_new, self.last_is_good = None, True, False
        # `metric_sums` of this process, since the last line and in this epoch
        device = network.fc.weight.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # exact in any order of summation
        self.since_line, self.in_epoch = (torch.zeros(3, dtype=dtype, device=device) for _ in range(2))

    def begin(self, state: dict[str, Any] | None, tensorboard: bool = False) -> None:
        """Continues a saved state, or starts a new run.

        An older run's history.jsonl and event files are replaced at once, its other files when this run saves its first
        checkpoint. tensorboard: write every number of the history to event files, too.
        """
        if state:
            self.is_new, self.last_is_good = False, "is_previous" not in state
            self.network.load_state_dict(state["model"])
            load_optimizer_state(self.optimizer, state["optimizer"])
            if self.ema:
                self.ema.network.load_state_dict(state["ema"])
            self.step, self.history, self.learning_rate = state["step"], state["history"], state["learning_rate"]
            self.started -= state["seconds"]
        if not self.world.is_main:
            return
        if state:
            self.since_line.copy_(state["since_line"])
            self.in_epoch.copy_(state["in_epoch"])
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise OSError("--tensorboard needs a package that is missing: pip install tensorboard") from error
        old_events = [] if state else self.folder.glob("tensorboard/events.out.tfevents.*")
        killed_writes = self.folder.glob(".*.*.[0-9]*.tmp")  # of `atomic_file`
        for leftover in (*old_events, *killed_writes):
            leftover.unlink()
        with checkpoint.atomic_file(self.log) as file:  # lines after the saved state will be written again
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in self.history)
        if tensorboard:  # points after the saved state are hidden
            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=self.step + 1 if state else None)

    @property
    def epoch(self) -> int:
        """The epoch of the last iteration done, from 1."""
        return max(self.step - 1, 0) // self.plan.steps_per_epoch + 1

    @property
    def image_size(self) -> int:
        """The image size of that epoch."""
        return self.plan.image_sizes[self.epoch - 1]

    def count(self, sums: Tensor) -> None:
        """Counts an iteration with these `metric_sums`."""
        self.step += 1
        self.since_line += sums
        self.in_epoch += sums

    def check_finite(self, loss: float = 0.0) -> None:
        """Raises FloatingPointError if this loss, one since the last line, a weight or a statistic is not finite."""
        values = [self.world.all_reduce_sum(self.since_line), *self.network.state_dict().values()]
        finite = torch.stack([value.isfinite().all() for value in values]).tolist()
        is_bf16 = self.settings.precision == "bf16"
        if self.step == 1 and not finite[0]:  # where a lower learning rate cannot help
            advice = "--precision fp32" if is_bf16 else "other weights to --init"
            raise FloatingPointError(f"the loss is not finite before any update of the weights: pass {advice}")
        if not (all(finite) and math.isfinite(loss)):
            advice = "a lower --lr" + ", or --precision fp32" * is_bf16
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.step}, with learning rate {self.learning_rate:.3g}: "
                f"pass {advice}; the checkpoints in {self.folder} are from before this"
            )

    def record(self, kind: str, loss: float, accuracy: float, **more: float) -> None:
        """Appends a line to the history and its file; see `check_finite`."""
        self.check_finite(loss)
        entry = {"kind": kind, "epoch": self.epoch, "step": self.step, "image_size": self.image_size}
        entry |= {"loss": loss, "accuracy": accuracy, **more}
        self.history.append(entry)
        if self.world.is_main:
            with open(self.log, "a") as file:
                file.write(json.dumps(entry) + "\n")
        if self.writer:
            for name in entry.keys() - {"kind", "epoch", "step"}:
                self.writer.add_scalar(f"{kind}/{name}", entry[name], self.step)

    def save(self) -> None:
        """Writes last.pt, unless it holds this step, and keeps the one before as last.prev.pt; see `check_finite`."""
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
            "seconds": time.monotonic() - self.started,
            "fingerprint": self.data.fingerprint,
            "since_line": since_line,
            "in_epoch": in_epoch,
        }
        if self.ema:
            state["ema"] = self.ema.network.state_dict()
        checkpoint.save(state, self.last, keep_previous=self.last_is_good)
        if self.is_new:  # the rest of an overwritten run can go, now that this one has a checkpoint
            for file in (self.model, checkpoint.previous(self.last), *checkpoint.snapshots(self.folder).values()):
                file.unlink(missing_ok=True)
        self.is_new, self.last_is_good = False, True

    def save_model(self, path: Path, **changes: Any) -> None:
        """Writes what visualizer.py needs, as model.pt or as a snapshot. changes: of the metadata."""
        if self.world.is_main:
            checkpoint.save(self._model_entries(self.evaluated) | changes, path)

    def _model_entries(self, network: ResNet18) -> dict[str, Any]:
        return vars(self.metadata) | dict(model=network.state_dict(), image_size=self.image_size, history=self.history)

    def result(self, flip_accuracy: float | None) -> dict[str, Any]:
        """The result of the finished run, as model.pt holds it. flip_accuracy: averaged with mirror images (0..1)."""
        device, test = self.in_epoch.device, [entry for entry in self.history if entry["kind"] == "test"][-1]
        train_loss, train_accuracy = mean_metrics(self.world.all_reduce_sum(self.in_epoch))
        result = {name: test[name] for name in ("epoch", "step", "image_size")}
        result |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        result |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
        result |= {"train_images": len(self.data.train[0]), "test_images": len(self.data.test[0])}
        result |= {"seconds": round(time.monotonic() - self.started, 1), "torch": str(torch.__version__)}
        result |= {"precision": self.settings.precision, "device": device.type}
        if flip_accuracy is not None:
            result["test_accuracy_flipped"] = flip_accuracy
        if device.type == "cuda":
            result["device"] = torch.cuda.get_device_name(device)
            result["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()
        return result
