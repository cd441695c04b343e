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
from argparse import BooleanOptionalAction
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until main() can be interrupted: loading the libraries takes seconds
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"interrupted\n") and os._exit(130))

import torch

from dataset.batches import FLIPS, Augmentation
from dataset.folders import DataError
from dataset.placement import IMAGES_ON
from dataset.sources import DATASETS
from network import ResNet18
from runtime import checkpoint, command_line
from runtime.checkpoint import CheckpointError
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder, size_and_epochs
from runtime.device import keep_freed_memory, pick_device, pick_precision
from runtime.signals import exclusive_lock, graceful_shutdown
from training.data import load_data
from training.distributed import World, join_world
from training.loop import Loop
from training.optimizer import DEFAULT_GAMMA, SCHEDULES, Optimization, Plan, learning_rate, set_learning_rate
from training.resume import check_resumable, load_resume_state
from training.run import Run, Settings


def parse_args(argv=None):
    """The flags of the command line; a usage error ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__, reads_files=True)
    count, positive, share = number(int, least=1), number(float, above=0), number(float, least=0, below=1)
    side, pixels, portion = number(int, 8, most=4096), number(int, 0, most=4096), number(float, above=0, most=1)

    add = parser.add_argument_group("data").add_argument
    add("--data", default="cifar10", help=f"{', '.join(DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder for CIFAR-10's download and for the decoded images of a folder")
    add("--image-size", type=side, help="side of the network's input in pixels (default: 224, or the last of --sizes)")
    add("--augment", action=BooleanOptionalAction, default=True, help="random augmentation, as set below")
    add("--shift", type=pixels, default=4, help="largest shift, in pixels before resizing")
    add("--flip", choices=FLIPS, default="random", help="horizontal flip: random, or alternate (every other epoch)")
    add("--cutout", type=pixels, default=0, help="side of the hidden square, in pixels before resizing to the "
        "last of --sizes, in proportion at smaller ones; 0: none")  # fmt: skip
    add("--cutmix", type=number(float, least=0, most=1), default=0.0, metavar="P", help="probability of CutMix")
    add("--scale-crop", type=portion, metavar="MIN", help="instead of --shift: crop MIN to 1 of the area, and resize")
    add("--hold-out", type=number(int, least=0), default=0, help="training images to test on instead of the test split")

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
    add("--lr-gamma", type=positive, help="decay factor of --schedule step (default: 0.1) or exponential (0.9656)")
    add("--lr-warmup-epochs", type=number(float, least=0), default=0.0, help="epochs of linear warm-up")
    add("--ema-decay", type=share, default=0.0, help="decay of the weights' EMA, which is evaluated and saved; 0: none")
    add("--max-steps", type=count, help="stop after this many iterations")
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="seed of weights, order and augmentation")
    add("--init", metavar="CKPT", help="initial weights, for fine-tuning")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--images-on", choices=IMAGES_ON, default="auto",
        help="where the training images are; auto: device, if they take less than half of its free memory")  # fmt: skip
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 if it is native, else fp32")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--cuda-graph", action=BooleanOptionalAction,
        help="replay each iteration as one CUDA graph (default: on a CUDA GPU with one process)")  # fmt: skip

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--out", default="checkpoints", help="folder for last.pt, model.pt, history.jsonl, training_curves.png")
    add("--log-every", type=count, default=300, help="iterations between log lines")
    add("--save-every", type=count, help="iterations between checkpoints (default: about once a minute)")
    add("--snapshots", type=count, nargs="+", default=[], metavar="EPOCH", help="epochs to save, for evolution.png")
    add("--test-flip", action="store_true", help="at the end, also evaluate each image averaged with its mirror image")
    add("--tensorboard", action="store_true", help="also write event files (needs the package tensorboard)")
    add = output.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="continue the interrupted run in --out exactly")
    add("--overwrite", action="store_true", help="replace the run in --out")

    args = parser.parse_args(argv)
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
    for flag, given, derived in (("--epochs", args.epochs, sum(epochs)), ("--image-size", args.image_size, sizes[-1])):
        if given not in (None, derived):
            parser.error(f"{flag} {given} contradicts --sizes ({derived}): leave one of them out")
    args.epochs, args.image_size = sum(epochs), sizes[-1]


def make_settings(args, device: torch.device) -> Settings:
    """The settings of the training loop, of its augmentation and of its optimizer."""
    values = vars(args) | {"precision": pick_precision(args.precision, device, args.image_size)}  # --sizes are above 31
    values["shift"] = 0 if args.scale_crop else args.shift

    def by_flag(kind: type, **more):
        return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values}, **more)

    augmentation = by_flag(Augmentation) if args.augment else Augmentation(0, "none")
    return by_flag(Settings, augmentation=augmentation, optimization=by_flag(Optimization))


def train(args, world: World) -> None:
    """The recipe: data, network, optimizer, loop."""
    device = pick_device(args.device, world.local_rank)
    torch.backends.cudnn.benchmark = True  # shapes are static within an image size
    settings = make_settings(args, device)
    state = world.broadcast(lambda: load_resume_state(Path(args.out), vars(args), vars(parse_args([]))))

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
    loop = Loop(run)
    with graceful_shutdown(world.size == 1, world.is_main) as signals, loop.bar, run.writer or nullcontext():
        loop.say(loop.describe())
        for batch in loop.iterations():  # of all epochs: the images, and how each of them is augmented
            run.learning_rate = learning_rate(run.step, plan, settings.optimization)
            set_learning_rate(run.optimizer, run.learning_rate)
            run.count(loop.step(*batch))
            if stop := loop.end_step(signals):
                break
        run.save()
        if run.step < plan.total_steps:
            print(f"stopped after iteration {run.step:,}; to continue: the same command with --resume")
            sys.exit(128 + stop)
        loop.end()
    finish(run, loop.evaluate(flip=True)[1] if args.test_flip else None)


def make_plan(args, train_images: int, world: World) -> Plan:
    """The length of the run; an incomplete last batch of an epoch is left out."""
    size, processes = args.batch_size, world.size
    if size % processes or size < 2 * processes > 2:
        wanted = f"a multiple of {processes}, at least {2 * processes}"
        raise DataError(f"--batch-size {size} is for all {processes} processes: pass {wanted}")
    steps_per_epoch = train_images // size
    if steps_per_epoch == 0:
        raise DataError(f"--batch-size {size} is more than the {train_images} training images: lower it")
    sizes = args.sizes or [(args.image_size, args.epochs)]
    image_sizes = tuple(size for size, epochs in sizes for _ in range(epochs))
    return Plan(image_sizes, steps_per_epoch, min(args.epochs * steps_per_epoch, args.max_steps or math.inf))


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
    result = run.result(flip_accuracy)
    if not run.world.is_main:
        return
    run.save_model(run.model, result=result)
    curves = run.folder / "training_curves.png"
    try:  # a figure that fails must not cost the run
        from figures import style, training_curves  # matplotlib would delay the start

        with checkpoint.atomic_file(curves) as file:
            style.save(training_curves.training_curves(run.history, run.metadata.config), file)
    except Exception as error:
        curves.unlink(missing_ok=True)  # of an overwritten run
        print(f"warning: {curves} could not be drawn ({checkpoint.first_line(error)})", file=sys.stderr)
    flipped = f" ({flip_accuracy:.2%} averaged with mirror images)" if flip_accuracy is not None else ""
    memory = f", {result['peak_gpu_bytes'] / 1e9:.1f} GB of GPU memory" if "peak_gpu_bytes" in result else ""
    print(
        f"train accuracy {result['train_accuracy']:.2%} (mean over the last epoch, as trained), test accuracy "
        f"{result['test_accuracy']:.2%}{flipped}{memory}, in {command_line.format_duration(result['seconds'])}"
    )
    files = ", ".join(file.name for file in (run.model, run.last, run.log, curves) if file.exists())
    print(f"{run.folder}: {files}\nnext: python visualizer.py --ckpt {run.model}")


def main(argv=None):
    """The script. Exits with 1 after an error that the user can fix, 2 after wrong usage, 128 + signal when stopped."""
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
