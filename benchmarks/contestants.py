"""The contestants of train_step.py. Each measurement runs in a process of its own, which ends with it.

So one CUDA context is alive at a time, and no contestant holds memory while another one is timed.
"""

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))
import commands
from hardware_limits import timed

from dataset import preprocess, sources
from dataset.batches import Batches
from network import ResNet18
from runtime.command_line import one_line_errors
from runtime.device import keep_freed_memory, pick_device, pick_precision
from training.acceleration import accelerate
from training.optimizer import Optimization, sgd
from training.step import TrainStep

FORMS = {"eager": (), "compiled": ("compiled",), "captured": ("captured",), "both": ("compiled", "captured")}


@dataclass(frozen=True)
class Contestant:
    """One row of the table, and how it is measured.

    folder, data, root  (a)'s image folder, with train/<class>/*; (b)'s data set and download folder
    image_size          side of the network's input, pixels
    batch_size          images per iteration
    device              name, as train.py takes it
    warm_up_seconds     least duration of the iterations before the measured ones
    seconds             least duration of the measured iterations
    workers             of the usual script's DataLoader; None: this project
    precision, form     of this project: "auto", "fp32" or "bf16"; one of FORMS
    """

    folder: str
    data: str
    root: str
    image_size: int
    batch_size: int
    device: str
    warm_up_seconds: float
    seconds: float
    workers: int | None = None
    precision: str = "auto"
    form: str = "eager"

    def name(self, precision: str | None = None, form: str | None = None) -> str:
        """The name of its row; the precision and form that were really measured replace the requested ones."""
        if self.workers is not None:
            return f"(a) usual script, fp32, {self.workers} workers"
        return f"(b) this project, {precision or self.precision}, {form or ', '.join(FORMS[self.form]) or 'eager'}"


@dataclass(frozen=True)
class Measurement:
    """What a contestant achieved.

    name               of its row: what was measured, which is not what was requested if compiling or capturing failed
    precision          "fp32" or "bf16"
    images_per_second  of training
    iterations         behind it
    peak_bytes         most GPU memory that torch had reserved; None on a CPU
    """

    name: str
    precision: str
    images_per_second: float
    iterations: int
    peak_bytes: int | None


class ContestantDied(RuntimeError):
    """A contestant ended without a measurement; the message names it and its last words."""


def usual_script(contestant: Contestant, device: torch.device) -> Callable[[], None]:
    """(a): torchvision's resnet18, an ImageFolder, PIL transforms and a DataLoader; `.item()` in each step."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.Resize(contestant.image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(Path(contestant.folder) / "train", transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        contestant.batch_size,
        shuffle=True,
        num_workers=contestant.workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    network = torchvision.models.resnet18(num_classes=len(dataset.classes)).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    batches, running = itertools.chain.from_iterable(itertools.repeat(loader)), [0.0, 0]

    def iterate():
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        running[0] += loss.item()
        running[1] += (logits.argmax(1) == labels).sum().item()

    return iterate


def this_project(contestant: Contestant, device: torch.device, precision: str) -> tuple[Callable[[], None], str]:
    """(b): one iteration through dataset/batches.py and training/step.py, and the form it really has."""
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # as in train.py
    images, labels, classes = sources.load(contestant.data, "train", contestant.root, contestant.image_size)
    prepare = preprocess.Preprocess(contestant.image_size, *preprocess.mean_and_std(images), device)
    batches = Batches(images.to(device), labels.to(device), prepare, contestant.batch_size, seed=0)
    network = ResNet18(len(classes)).to(device, memory_format=torch.channels_last).train()
    step = TrainStep(network, sgd(network, Optimization()), batches, precision)
    requested, said = FORMS[contestant.form], []
    plan = batches.rows(0)
    call = accelerate(step, (plan[0], None), "compiled" in requested, "captured" in requested, say=said.append)
    sums, rows = torch.zeros(3, device=device), itertools.cycle(plan.unbind())

    def iterate():
        step.optimizer.param_groups[0]["lr"].fill_(0.025)
        sums.add_(call(next(rows)))

    return iterate, describe_form(requested, said)


def describe_form(requested: tuple[str, ...], said: list[str]) -> str:
    """What became of the requested parts of a form, from what `accelerate` said."""
    failed = {part: text for part in requested for text in said if text.startswith(f"not {part}")}
    return ", ".join(failed.get(part, part) for part in requested) or "eager"


def compete(contestant: Contestant) -> Measurement:
    """Measures a contestant in this process."""
    device = pick_device(contestant.device)
    prefetched = 2 * (contestant.workers or 0)  # batches that (a)'s workers may have ready
    if contestant.workers is None:
        precision = pick_precision(contestant.precision, device)
        iterate, form = this_project(contestant, device, precision)
    else:
        precision, form, iterate = "fp32", None, usual_script(contestant, device)
    warm_up, duration = run_for(iterate, contestant.warm_up_seconds, prefetched + 2, device)
    steps = math.ceil(contestant.seconds / duration * warm_up)
    steps, duration = run_for(iterate, contestant.seconds, max(steps, 2 * prefetched, 2), device)
    return Measurement(
        name=contestant.name(precision, form),
        precision=precision,
        images_per_second=steps * contestant.batch_size / duration,
        iterations=steps,
        peak_bytes=torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
    )


def run_for(iterate: Callable[[], None], seconds: float, steps: int, device: torch.device) -> tuple[int, float]:
    """Runs `steps` iterations, and more until this many seconds have passed; returns their number and duration."""
    duration, done = timed(iterate, steps, device), steps
    while duration < seconds:
        more = max(1, math.ceil((seconds - duration) / duration * done))
        duration, done = duration + timed(iterate, more, device), done + more
    return done, duration


def measure(contestant: Contestant, limit: float) -> Measurement:
    """Measures a contestant in a process of its own, within `limit` seconds. Raises ContestantDied."""
    with tempfile.TemporaryDirectory() as folder:
        log, result = Path(folder) / "log", Path(folder) / "result.json"
        command = [sys.executable, __file__, json.dumps(asdict(contestant)), result]
        outcome = commands.run(command, log, limit)
        if not result.exists():
            raise ContestantDied(f"{contestant.name()}: {outcome.reason()}")
        return Measurement(**json.loads(result.read_text()))


def rounds(contestants: list[Contestant], repetitions: int, limit: float) -> Iterator[Measurement | ContestantDied]:
    """All measurements, one contestant after the other and then again; one that died is left out from then on."""
    left = list(contestants)
    for _ in range(repetitions):
        for contestant in list(left):
            try:
                yield measure(contestant, limit)
            except ContestantDied as error:
                left.remove(contestant)
                yield error
            time.sleep(0.5)


def main():
    """The process of a contestant: its settings as JSON, and the file for its measurement."""
    contestant, result = Contestant(**json.loads(sys.argv[1])), Path(sys.argv[2])
    with one_line_errors(sources.DataError):
        measurement = compete(contestant)
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(measurement)))
    temporary.replace(result)


if __name__ == "__main__":
    main()
