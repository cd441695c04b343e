"""Train ResNet-18; visualizer.py then shows what it has learned.

python train.py                                           CIFAR-10 at 224x224, 50 epochs
python train.py --data shapes --image-size 64 --epochs 4  a first try on a laptop, without a download
python train.py --data FOLDER                             images in FOLDER/train/<class>/ and FOLDER/test/<class>/
python train.py --resume                                  continue an interrupted run
python train.py @recipes/gpu                              flags from a file
torchrun --nproc_per_node=2 train.py                      two GPUs, half of every batch each
"""

import math
import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # while torch is imported, for seconds, Ctrl-C would end in a traceback
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"interrupted\n") and os._exit(130))

from argparse import BooleanOptionalAction
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch

from dataset.batches import FLIPS, Augmentation
from dataset.folders import DataError
from dataset.placement import IMAGES_ON
from dataset.sources import DATASETS
from network import ResNet18
from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder, size_and_epochs
from runtime.device import keep_freed_memory, pick_device, pick_precision
from runtime.signals import exclusive_lock, graceful_shutdown
from training.data import load_data
from training.distributed import World, join_world
from training.loop import Loop, final_result, summarize
from training.optimizer import DEFAULT_GAMMA, SCHEDULES, Optimization, learning_rate
from training.plan import Plan
from training.resume import check_resumable, check_unused, load_resume_state
from training.run import CURVES, Run, Settings


def parse_args(argv=None):
    """The flags of the command line; a usage error ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__, reads_files=True)
    count, positive, share = number(int, least=1), number(float, above=0), number(float, least=0, below=1)

    add = parser.add_argument_group("data").add_argument
    add("--data", default="cifar10", help=f"{', '.join(DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder for CIFAR-10's download and for the decoded images of a folder")
    add("--image-size", type=number(int, least=8, most=4096),
        help="side of the network's input in pixels (default: 224, or the last of --sizes)")  # fmt: skip
    add("--augment", action=BooleanOptionalAction, default=True, help="random augmentation, as set below")
    add("--shift", type=number(int, least=0, most=4096), default=4, help="largest shift, in pixels before resizing")
    add("--flip", choices=FLIPS, default="random", help="horizontal flip: random, or alternate (every other epoch)")
    add("--cutout", type=number(int, least=0, most=4096), default=0,
        help="side of the hidden square in pixels before resizing, smaller at smaller --sizes; 0: none")  # fmt: skip
    add("--cutmix", type=number(float, least=0, most=1), default=0.0, metavar="P",
        help="probability of CutMix: a batch's images get a box of other images, which share in the loss")  # fmt: skip
    add("--scale-crop", type=number(float, above=0, most=1), metavar="MIN",
        help="for photographs, instead of --shift: RandomResizedCrop with MIN to 1 of the image's area")  # fmt: skip
    add("--hold-out", type=number(int, least=0), default=0, help="training images that replace the test images")

    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=count, help="number of epochs (default: 50, or the sum of --sizes)")
    add("--sizes", type=size_and_epochs, nargs="+", metavar="SIZE:EPOCHS",
        help="train at growing sizes, this many epochs at each; replaces --image-size and --epochs")  # fmt: skip
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration, over all processes")
    add("--lr", type=positive, default=0.025, help="peak learning rate")
    add("--momentum", type=share, default=0.9, help="momentum of SGD")
    add("--nesterov", action="store_true", help="Nesterov momentum")
    add("--weight-decay", type=number(float, least=0), default=5e-4, help="L2 penalty of SGD")
    add("--norm-decay", action=BooleanOptionalAction, default=False, help="weight decay on biases and batch norms, too")
    add("--label-smoothing", type=share, default=0.0, help="label smoothing, 0 to 1")
    add("--schedule", choices=SCHEDULES, default="step", help="learning-rate schedule")
    add("--lr-step-size", type=count, default=20, help="epochs between decays of --schedule step")
    add("--lr-gamma", type=positive, help="decay factor of --schedule step (default: 0.1) and, per epoch, of "
        "exponential (default: 0.9656, which is 0.35 in 30 epochs)")  # fmt: skip
    add("--lr-warmup-epochs", type=number(float, least=0), default=0.0, help="epochs of linear warm-up")
    add("--ema-decay", type=share, default=0.0,
        help="decay of the moving average of the weights, which is then evaluated and saved; 0: none")  # fmt: skip
    add("--max-steps", type=count, help="stop after this many iterations")
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="seed of weights, order and augmentation")
    add("--init", metavar="CKPT", help="initial weights, for fine-tuning")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--images-on", choices=IMAGES_ON, default="auto", help="keep the images on the device, or on the host and copy "
        "a batch at a time; auto: on the device if they take less than half of its free memory")  # fmt: skip
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto: bf16 where it is native, else fp32, whose convolutions use TF32 on newer NVIDIA GPUs")  # fmt: skip
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--cuda-graph", action=BooleanOptionalAction,
        help="replay each iteration as one CUDA graph (default: on a CUDA GPU with one process)")  # fmt: skip

    add = parser.add_argument_group("output").add_argument
    add("--out", default="checkpoints", help="folder for last.pt, model.pt, history.jsonl, training_curves.png")
    add("--log-every", type=count, default=300, help="iterations between log lines")
    add("--save-every", type=count, help="iterations between checkpoints (default: about once a minute)")
    add("--snapshots", type=count, nargs="+", default=[], metavar="EPOCH",
        help="epochs after which to save the weights, for evolution.png")  # fmt: skip
    add("--test-flip", action="store_true", help="at the end, also evaluate each image averaged with its mirror image")
    add("--tensorboard", action="store_true", help="also write event files (needs the package tensorboard)")
    add("--resume", action="store_true", help="continue the interrupted run in --out exactly")
    add("--overwrite", action="store_true", help="replace the run in --out")

    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error("--resume continues a run, --overwrite replaces it: pass one of them")
    if args.lr_gamma and args.schedule not in DEFAULT_GAMMA:
        parser.error(f"--lr-gamma has no effect on --schedule {args.schedule}: leave it out")
    if args.cutmix and args.scale_crop:
        parser.error("--cutmix needs the images' common pixel grid, which --scale-crop resizes: leave one of them out")
    if args.nesterov and not args.momentum:
        parser.error("--nesterov needs --momentum above 0")
    args.lr_gamma = args.lr_gamma or DEFAULT_GAMMA.get(args.schedule)
    set_sizes(parser, args)
    if late := [epoch for epoch in args.snapshots if epoch > args.epochs]:
        parser.error(f"--snapshots {late[0]} is after the last epoch, {args.epochs}: leave it out")
    return args


def set_sizes(parser: ArgumentParser, args) -> None:
    """Derives --image-size and --epochs from --sizes, or their defaults; a contradiction is a usage error."""
    if not args.sizes:
        args.epochs, args.image_size = args.epochs or 50, args.image_size or 224
        return
    sizes, epochs = zip(*args.sizes, strict=True)
    if list(sizes) != sorted(set(sizes)):
        parser.error(f"--sizes {' '.join(map(str, sizes))}: the image sizes must increase")
    for name, derived in (("epochs", sum(epochs)), ("image_size", sizes[-1])):
        if getattr(args, name) not in (None, derived):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} {getattr(args, name)} contradicts --sizes ({derived}): leave one of them out")
        setattr(args, name, derived)


def make_settings(args, device: torch.device) -> Settings:
    """The settings of the training loop, of its augmentation and of its optimizer."""

    def by_flag(kind: type, **changes) -> dict:
        return {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)} | changes

    augmentation = Augmentation(0, "none")
    if args.augment:
        augmentation = Augmentation(**by_flag(Augmentation, shift=0 if args.scale_crop else args.shift))
    precision = pick_precision(args.precision, device, args.image_size)  # --sizes are at least 32
    optimization = Optimization(**by_flag(Optimization))
    return Settings(**by_flag(Settings, precision=precision, augmentation=augmentation, optimization=optimization))


def train(args, world: World) -> None:
    """The recipe: data, network, optimizer, loop."""
    device = pick_device(args.device, world.local_rank)
    torch.backends.cudnn.benchmark = True  # shapes are static within an image size
    settings = make_settings(args, device)
    state = world.broadcast(lambda: earlier_state(args))

    # data: uint8, on the device or on the host
    data = load_data(args.data, args.root, args.image_size, args.hold_out, device, args.images_on, world)
    plan = make_plan(args, len(data.train[0]), world)
    if state:
        check_resumable(state, data, plan)

    # network, optimizer, moving average
    network = make_network(args, len(data.classes), not state, world)
    network.to(device, memory_format=torch.channels_last).train()
    run = Run(Path(args.out), network, data, settings, plan, vars(args), world)
    run.begin(state, args.tensorboard)
    del state  # its tensors would stay in memory

    # loop
    loop = Loop(run, suggest_shorter=args.data != "shapes")
    with graceful_shutdown(world.size == 1, world.is_main) as signals, loop.progress.bar, run.writer or nullcontext():
        loop.progress.say(loop.describe())
        stop = train_epochs(loop, signals)
        run.save()
        if run.step < plan.total_steps:
            instead = " instead of --overwrite" if args.overwrite else ""
            print(f"stopped after iteration {run.step:,}; to continue: the same command with --resume{instead}")
            sys.exit(128 + stop)
        loop.end()
    finish(run, loop.evaluate(flip=True)[1] if args.test_flip else None)


def train_epochs(loop: Loop, signals: list[int]) -> int:
    """Trains to the end of the plan, or until a signal arrives; returns the signal, or 0."""
    run, plan = loop.run, loop.run.plan
    for epoch in range(run.step // plan.steps_per_epoch, math.ceil(plan.total_steps / plan.steps_per_epoch)):
        step, batches = loop.start_epoch(epoch)
        for batch in batches:  # of one iteration: images and crops
            run.set_learning_rate(learning_rate(run.step, plan, run.settings.optimization))
            run.count(step(*batch))
            if stop := loop.end_step(signals):
                return stop
    return 0


def earlier_state(args) -> dict | None:
    """The saved state that --resume continues from, or None for a new run."""
    if args.resume:
        return load_resume_state(Path(args.out), vars(args), vars(parse_args([])))
    if not args.overwrite:
        check_unused(Path(args.out))
    return None


def make_plan(args, train_images: int, world: World) -> Plan:
    """The length of the run; an incomplete last batch of an epoch is left out."""
    size, processes = args.batch_size, world.size
    if size % processes or size < 2 * processes > 2:
        wanted = f"a multiple of {processes}, at least {2 * processes}"
        raise DataError(f"--batch-size {size} is for all {processes} processes: pass {wanted}")
    steps_per_epoch = train_images // size
    if steps_per_epoch == 0:
        raise DataError(f"--batch-size {size} is more than the {train_images} training images: lower it")
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


def finish(run: Run, flip_accuracy: float | None) -> None:
    """Writes model.pt and the training curves, and prints the result and the next command."""
    result = final_result(run, flip_accuracy)
    if not run.world.is_main:
        return
    run.save_model(result)
    curves = run.model.with_name(CURVES)
    try:  # a figure that fails must not cost the run
        from figures import style, training_curves  # matplotlib would delay the start

        with checkpoint.atomic_file(curves) as file:
            style.save(training_curves.training_curves(run.history, run.metadata.config["label_smoothing"]), file)
    except Exception as error:
        curves.unlink(missing_ok=True)  # of an overwritten run
        print(f"warning: {curves} could not be drawn ({checkpoint.first_line(error)})", file=sys.stderr)
    files = ", ".join(file.name for file in (run.model, run.last, run.log, curves) if file.exists())
    print(f"{summarize(result)}\n{curves.parent}: {files}\nnext: python visualizer.py --ckpt {run.model}")


def main(argv=None):
    """The script. argv: flags, by default sys.argv[1:].

    Exits with 1 after an error that the user can fix, 2 after wrong usage, 128 + the signal when interrupted.
    """
    with one_line_errors(DataError, CheckpointError, FloatingPointError):
        args = parse_args(argv)
        keep_freed_memory()
        with join_world(args.device) as world:
            with exclusive_lock(output_folder(args.out)) if world.is_main else nullcontext():
                train(args, world)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
