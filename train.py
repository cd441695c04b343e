"""Train ResNet-18; visualizer.py then shows what it has learned.

python train.py                                           CIFAR-10 at 224x224, 50 epochs
python train.py --data shapes --image-size 64 --epochs 4  a first try on a laptop, without a download
python train.py --data FOLDER                             pictures in FOLDER/train/<class>/, FOLDER/test/<class>/
python train.py --resume                                  go on with a run that was interrupted
torchrun --nproc_per_node=2 train.py                      by two GPUs, each with half of every batch
"""

import gc
import math
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from dataset import sources
from dataset.batches import FLIPS, Augmentation, Batches
from dataset.folders import DataError
from dataset.preprocess import Preprocess
from figures import style, training_curves
from network import ResNet18
from runtime import checkpoint
from runtime.checkpoint import CheckpointError, Metadata
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder, size_and_epochs
from runtime.device import keep_freed_memory, pick_device, pick_precision
from runtime.signals import exclusive_lock, graceful_shutdown
from training.acceleration import accelerate
from training.data import Data, load_data
from training.distributed import World, join_world
from training.evaluation import evaluate, mean_metrics
from training.optimizer import DEFAULT_GAMMA, SCHEDULES, Optimization, learning_rate, sgd
from training.plan import Plan
from training.progress import Progress
from training.report import describe, end_epoch, end_line, result, summarize
from training.resume import check_resumable, check_unused, load_resume_state
from training.run import Run, event_writer
from training.step import EMA, TrainStep

BATCH_NORM_IMAGES = 6400  # training images behind the batch-norm statistics of a moving average


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__, reads_files=True)
    count, positive, share = number(int, least=1), number(float, above=0), number(float, least=0, below=1)

    add = parser.add_argument_group("data").add_argument
    add("--data", default="cifar10", help=f"{', '.join(sources.DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder that CIFAR-10 is downloaded to and read from")
    add("--image-size", type=number(int, least=8, most=4096),
        help="side of the network's input in pixels (default: 224, or the last of --sizes)")  # fmt: skip
    add("--augment", action=BooleanOptionalAction, default=True, help="random shift, flip and cutout, as set below")
    add("--shift", type=number(int, least=0, most=4096), default=4, help="largest shift, in pixels before resizing")
    add("--flip", choices=FLIPS, default="random", help="horizontal flip: random, or alternate (every other epoch)")
    add("--cutout", type=number(int, least=0, most=4096), default=0,
        help="side of the hidden square, in pixels before resizing, at full image size; 0 disables it")  # fmt: skip
    add("--hold-out", type=number(int, least=0), default=0,
        help="so many training images are not trained on but stand in for the test images")  # fmt: skip

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=count, help="number of epochs (default: 50, or the sum of --sizes)")
    add("--sizes", type=size_and_epochs, nargs="+", metavar="SIZE:EPOCHS",
        help="train at growing sizes, this many epochs at each; replaces --image-size and --epochs")  # fmt: skip
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration, over all processes")
    add("--lr", type=positive, default=0.025, help="peak learning rate")
    add("--momentum", type=share, default=0.9, help="momentum of SGD")
    add("--nesterov", action="store_true", help="Nesterov momentum")
    add("--weight-decay", type=number(float, least=0), default=5e-4, help="L2 penalty of SGD")
    add("--norm-decay", action=BooleanOptionalAction, default=True, help="weight decay on biases and batch norms, too")
    add("--label-smoothing", type=share, default=0.0, help="label smoothing, 0 to 1")
    add("--schedule", choices=SCHEDULES, default="step", help="learning-rate schedule")
    add("--lr-step-size", type=count, default=20, help="epochs between decays of --schedule step")
    add("--lr-gamma", type=positive, help="decay factor of --schedule step (default: 0.1) and, per epoch, of "
        "exponential (default: 0.9656, which is 0.35 in 30 epochs)")  # fmt: skip
    add("--lr-warmup-epochs", type=number(float, least=0), default=0.0, help="epochs of linear warm-up")
    add("--ema-decay", type=share, default=0.0,
        help="decay of the exponential moving average of the weights, which is then evaluated and saved; "
        "0 disables it")  # fmt: skip
    add("--max-steps", type=count, help="stop after this many iterations")
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="of weights, order and augmentation")
    add("--init", metavar="CKPT", help="start from these weights: to fine-tune, or to go on at another image size")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on GPUs that have it")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--cuda-graph", action="store_true", help="replay each iteration as one CUDA graph")

    add = parser.add_argument_group("what is written").add_argument
    add("--out", default="checkpoints", help="folder for last.pt, model.pt, history.jsonl, training_curves.png")
    add("--log-every", type=count, default=300, help="iterations from line to line")
    add("--save-every", type=count, help="iterations from save to save (default: once a minute, at a line's end)")
    add("--snapshots", type=count, nargs="+", default=[], metavar="EPOCH",
        help="epochs of which the weights are kept, for the visualizer's evolution.png")  # fmt: skip
    add("--resume", action="store_true", help="go on exactly where the run in --out was interrupted")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--test-flip", action="store_true", help="at the end, also test with each image and its mirror image together")
    add("--tensorboard", action="store_true", help="write event files too (needs the package tensorboard)")

    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: pass one of the two")
    if args.lr_gamma is None:
        args.lr_gamma = DEFAULT_GAMMA.get(args.schedule)
    if args.nesterov and not args.momentum:
        parser.error("--nesterov needs --momentum above 0")
    set_sizes(parser, args)
    return args


def set_sizes(parser: ArgumentParser, args) -> None:
    """Makes --sizes, --image-size and --epochs agree; a contradiction ends in one line."""
    if not args.sizes:
        args.epochs, args.image_size = args.epochs or 50, args.image_size or 224
        return
    growing = [size for size, _ in args.sizes]
    if any(after <= before for before, after in pairwise(growing)):
        parser.error(f"--sizes {' '.join(map(str, growing))}: the image sizes must increase")
    total, last = sum(epochs for _, epochs in args.sizes), growing[-1]
    if args.epochs not in (None, total):
        parser.error(f"--epochs {args.epochs} contradicts --sizes, which has {total}: leave one of them out")
    if args.image_size not in (None, last):
        parser.error(f"--image-size {args.image_size} contradicts --sizes, which ends at {last}: leave one of them out")
    args.epochs, args.image_size = total, last


def train(args, world: World) -> None:
    """One run: data, network, optimizer, loop, result."""
    device = pick_device(args.device, world.local_rank)
    precision = pick_precision(args.precision, device)
    state = world.broadcast(partial(earlier_state, args))

    if args.batch_size % world.size or args.batch_size < 2 * world.size > 2:
        raise DataError(f"--batch-size {args.batch_size} is for all {world.size} processes: pass a multiple")
    data = load_data(args.data, args.root, args.image_size, args.hold_out, device, world)
    plan = make_plan(args, len(data.train[0]))
    metadata = Metadata(data.classes, data.mean, data.std, args.image_size, config=vars(args))
    if state:
        check_resumable(state, metadata, plan)

    network = make_network(args, len(data.classes), not state, world)
    network.to(device, memory_format=torch.channels_last).train()
    optimization = make_optimization(args)
    optimizer = sgd(network, optimization)
    ema = EMA(network, args.ema_decay) if args.ema_decay else None
    writer = None
    if args.tensorboard and world.is_main:
        writer = event_writer(Path(args.out) / "tensorboard", state["step"] + 1 if state else None)
    run = Run(Path(args.out), network, optimizer, plan, metadata, ema, world, writer)
    run.begin(state)
    del state

    progress = Progress(run.step, plan, args.batch_size, len(data.test[0]))
    batches_at = partial(make_batches, args, data, plan)
    measure = partial(evaluate_run, args, run, data, batches_at, precision)
    step_with = partial(make_step, args, run, optimization, precision, progress)
    with graceful_shutdown(world.size == 1) as signals, progress.bar, writer or nullcontext():
        progress.say(describe(data, run, precision))
        stop = train_epochs(args, run, optimization, batches_at, step_with, progress,
                            partial(after_step, args, run, progress, measure, signals))  # fmt: skip
        run.save()  # before the lines that exist only because the run ends here; a longer one would not have them
        if run.step < plan.total_steps:
            instead = " instead of --overwrite" if args.overwrite else ""
            print(f"stopped after iteration {run.step:,}; to continue: the same command with --resume{instead}")
            sys.exit(128 + stop)
        if world.all_reduce_sum(run.since_line)[2] > 0:
            end_line(run, progress)
        if run.step % plan.steps_per_epoch:
            end_epoch(run, progress, measure)
    finish(run, measure(flip=True)[1] if args.test_flip else None)


def earlier_state(args) -> dict | None:
    """The saved state that --resume continues from, or None for a new run."""
    if args.resume:
        return load_resume_state(Path(args.out), vars(args), vars(parse_args([])))
    if not args.overwrite:
        check_unused(Path(args.out))
    return None


def make_plan(args, train_images: int) -> Plan:
    """The length of the run; an incomplete last batch of an epoch is left out."""
    steps_per_epoch = train_images // args.batch_size
    if steps_per_epoch == 0:
        raise DataError(f"--batch-size {args.batch_size} is more than the {train_images} training images: lower it")
    sizes = tuple(args.sizes or [(args.image_size, args.epochs)])
    return Plan(sizes, steps_per_epoch, min(args.epochs * steps_per_epoch, args.max_steps or math.inf))


def make_network(args, num_classes: int, is_new: bool, world: World) -> ResNet18:
    """The network, initialised from the seed or from --init, equal in all processes."""
    torch.manual_seed(args.seed)
    network = ResNet18(num_classes)
    if args.init and is_new:
        if world.is_main:
            checkpoint.load_pretrained(args.init, network)
        network.load_state_dict(world.broadcast(network.state_dict))
    return network


def make_optimization(args) -> Optimization:
    """The settings of the loss, the optimizer and the learning rate."""
    return Optimization(
        learning_rate=args.lr,
        momentum=args.momentum,
        nesterov=args.nesterov,
        weight_decay=args.weight_decay,
        norm_decay=args.norm_decay,
        schedule=args.schedule,
        lr_step_size=args.lr_step_size,
        lr_gamma=args.lr_gamma,
        warmup_epochs=args.lr_warmup_epochs,
        label_smoothing=args.label_smoothing,
        ema_decay=args.ema_decay,
    )


def make_batches(args, data: Data, plan: Plan, image_size: int) -> Batches:
    """The augmented training batches at an image size."""
    augmentation = Augmentation(0, "none", 0)
    if args.augment:
        augmentation = Augmentation(args.shift, args.flip, plan.cutout(args.cutout, image_size))
    preprocess = Preprocess(image_size, data.mean, data.std, data.train[0].device)
    return Batches(*data.train, preprocess, args.batch_size, args.seed, augmentation)


def make_step(args, run: Run, optimization: Optimization, precision: str, progress: Progress, batches: Batches,
              rows: Tensor) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The training step on these batches, compiled or captured if requested."""
    step = TrainStep(run.network, run.optimizer, batches, precision, optimization.label_smoothing, run.ema)
    return accelerate(step, rows, args.compile, args.cuda_graph, run.world, progress.say)


def train_epochs(args, run: Run, optimization: Optimization, batches_at: Callable[[int], Batches], step_with: Callable,
                 progress: Progress, after: Callable[[], int]) -> int:  # fmt: skip
    """Trains to the end of the plan, or until `after` an iteration returns a signal; returns that, or 0."""
    plan, batches, step = run.plan, None, None
    for epoch in range(run.step // plan.steps_per_epoch, math.ceil(plan.total_steps / plan.steps_per_epoch)):
        resized = batches is None or batches.preprocess.image_size != plan.image_size(epoch)
        if resized:
            batches = batches_at(plan.image_size(epoch))
        rows = batches.plan(epoch)[:, run.world.shard(args.batch_size)]
        if resized:
            with progress.paused():
                step = None  # releases the memory of a captured graph, and DistributedDataParallel's hooks
                gc.collect()
                step = step_with(batches, rows[0])
        start = run.step % plan.steps_per_epoch
        if start == 0:
            run.in_epoch.zero_()
        for position in range(start, min(plan.steps_per_epoch, plan.total_steps - epoch * plan.steps_per_epoch)):
            rate = learning_rate(run.step, plan.total_steps, plan.steps_per_epoch, optimization)
            run.set_learning_rate(rate)
            run.count(step(rows[position]))
            if stop := after():
                return stop
    return 0


def after_step(args, run: Run, progress: Progress, measure: Callable, signals: list[int]) -> int:
    """Prints, evaluates and saves what is due; returns the signal to stop for, or 0."""
    if progress.advance():
        progress.show(run.epoch, *mean_metrics(run.since_line))
    if run.since_line.device.type == "cpu" and progress.step == progress.first + 3:
        progress.forecast(advise=args.data != "shapes")
    at_line, at_epochs_end = run.step % args.log_every == 0, run.step % run.plan.steps_per_epoch == 0
    if at_line:
        end_line(run, progress)
    if at_epochs_end:
        end_epoch(run, progress, measure)
        if run.epoch in args.snapshots:
            run.save_snapshot()
    stop, save = run.agree(signals, args.save_every, may_save=at_line or at_epochs_end)
    if save and not stop:
        run.save()
    return stop


def evaluate_run(args, run: Run, data: Data, batches_at: Callable[[int], Batches], precision: str,
                 flip: bool = False) -> tuple[float, float]:  # fmt: skip
    """Test loss and accuracy at the image size of the epoch, of the moving average if there is one."""
    batches = batches_at(run.image_size)
    if run.ema:
        rows = batches.plan(0)[: math.ceil(BATCH_NORM_IMAGES / args.batch_size)]
        run.ema.update_batch_norm((batches(each)[0] for each in rows), precision)
    return evaluate(run.evaluated, *data.test, batches.preprocess, precision, run.world, flip)


def finish(run: Run, flip_accuracy: float | None) -> None:
    """Writes model.pt and the training curves, and prints the result and the next command."""
    found = result(run, flip_accuracy)
    if not run.world.is_main:
        return
    run.save_model(found)
    folder = run.model.parent
    with checkpoint.atomic_file(folder / "training_curves.png") as file:
        style.save(training_curves.training_curves(run.history, run.metadata.config["label_smoothing"]), file)
    print(
        f"{summarize(found)}\n{folder}: model.pt, last.pt, history.jsonl, training_curves.png\n"
        f"next: python visualizer.py --ckpt {run.model}"
    )


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with (
        one_line_errors(DataError, CheckpointError, FloatingPointError),
        join_world(args.device) as world,
        exclusive_lock(output_folder(args.out)) if world.is_main else nullcontext(),
    ):
        train(args, world)


if __name__ == "__main__":
    main()
