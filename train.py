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
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from dataset import sources
from dataset.batches import FLIPS, Augmentation, Batches
from dataset.preprocess import Preprocess, mean_and_std
from figures import style, training_curves
from network import ResNet18
from runtime import checkpoint
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder
from runtime.device import keep_freed_memory, pick_device, pick_precision
from runtime.signals import locked, noted_signals
from training.distributed import Processes, joined
from training.evaluation import evaluate, loss_and_accuracy
from training.optimizer import DEFAULT_GAMMA, SCHEDULES, image_size, learning_rate
from training.progress import Progress, format_duration
from training.run import Run, check_continues, earlier_state, event_writer
from training.step import EMA, TrainStep, accelerated, sgd

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


def size_and_epochs(text: str) -> tuple[int, int]:
    """ "96:20" -> (96, 20), for argparse: image size, and number of epochs at it."""
    size, colon, epochs = text.partition(":")
    if not colon:
        raise ArgumentTypeError(f"{text!r} is not SIZE:EPOCHS, for example 96:20")
    return number(int, least=32, most=4096)(size), number(int, least=1)(epochs)


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


def load_data(args, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Training images and labels, test images and labels, uint8 on the device; and the classes' names."""
    images, labels, classes = sources.load(args.data, "train", args.root, args.image_size)
    if args.hold_out:
        if args.hold_out >= len(images):
            raise sources.DataError(
                f"--hold-out {args.hold_out} leaves none of {len(images)} training images: lower it"
            )
        training, test = sources.hold_out(images, labels, args.hold_out)
    else:
        training, test = (images, labels), sources.load(args.data, "test", args.root, args.image_size)[:2]
    on_device = [tuple(values.to(device) for values in split) for split in (training, test)]
    return *on_device, list(classes)


def train(args, processes: Processes) -> None:
    """One run, from the data to the finished model."""
    device, out = pick_device(args.device, processes.local_rank), Path(args.out)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    state = processes.from_first(lambda: earlier_state(out, args.resume, args.overwrite, vars(args)))
    if args.batch_size % processes.count or args.batch_size < 2 * processes.count > 2:
        raise sources.DataError(
            f"--batch-size {args.batch_size} is for all {processes.count} processes: pass a multiple"
        )

    # data: uint8, on the device from here on
    with processes.in_turns():
        training, test, classes = load_data(args, device)
    steps_per_epoch = len(training[0]) // args.batch_size  # an incomplete last batch is left out
    if steps_per_epoch == 0:
        count = len(training[0])
        raise sources.DataError(f"--batch-size {args.batch_size} is more than the {count} training images: lower it")
    total_steps = min(args.epochs * steps_per_epoch, args.max_steps or math.inf)
    mean, std = mean_and_std(training[0])
    if not processes.agree_on((classes, mean, std, len(training[0]), len(test[0]))):
        raise sources.DataError("the processes found different images: give every machine the same data")
    if state:
        check_continues(state, classes, mean, std, steps_per_epoch, total_steps)
    sizes = args.sizes or [(args.image_size, args.epochs)]

    def batches_at(size: int) -> Batches:
        """The cutout hides the same part of an image at every size up to the last, where it is as given."""
        cutout = round(args.cutout * size / args.image_size)
        augmentation = Augmentation(args.shift, args.flip, cutout) if args.augment else Augmentation(0, "none", 0)
        return Batches(*training, Preprocess(size, mean, std, device), args.batch_size, args.seed, augmentation)

    # network and optimizer
    torch.manual_seed(args.seed)
    network = ResNet18(len(classes))
    if args.init and not state:
        if processes.is_first:
            checkpoint.load_pretrained(args.init, network)
        network.load_state_dict(processes.from_first(network.state_dict))
    network.to(device, memory_format=torch.channels_last).train()
    ema = EMA(network, args.ema_decay) if args.ema_decay else None
    optimizer = sgd(network, args.lr, args.momentum, args.weight_decay, args.norm_decay, args.nesterov)
    precision = pick_precision(args.precision, device)

    # the run, new or taken up again
    facts = {"classes": classes, "mean": mean, "std": std, "image_size": args.image_size, "config": vars(args)}
    writer = None
    if args.tensorboard and processes.is_first:
        writer = event_writer(out / "tensorboard", state["step"] + 1 if state else None)
    run = Run(out, network, optimizer, steps_per_epoch, facts, ema, processes, writer)
    run.begin(state)
    del state
    progress = Progress(run.step, total_steps, steps_per_epoch, sizes, args.batch_size, len(test[0]))

    def measure(flip: bool = False) -> tuple[float, float]:
        """Loss and accuracy on the test images, at the image size of the epoch."""
        batches = batches_at(image_size(run.epoch - 1, sizes))
        if ema:
            rows = batches.plan(0)[: math.ceil(BATCH_NORM_IMAGES / args.batch_size)]
            ema.update_batch_norm((batches(each)[0] for each in rows), precision)
        return evaluate(run.tested, *test, batches.preprocess, precision, processes, flip)

    with noted_signals(processes.count == 1) as signals, progress.bar, writer or nullcontext():
        progress.say(
            f"{len(training[0]):,} training and {len(test[0]):,} test images of {len(classes)} classes at "
            f"{', '.join(f'{size}x{size}' for size, _ in sizes)}; "
            f"{total_steps:,} iterations on {processes}{device}, {precision}"
            + (f", from {run.step:,} on" if run.step else "")
        )
        batches = step = None
        while run.step < total_steps:
            epoch, position = divmod(run.step, steps_per_epoch)
            size = image_size(epoch, sizes)
            if position == 0:
                run.in_epoch.zero_()
            if batches is None or size != batches.preprocess.image_size:
                with progress.paused():
                    del step  # with the memory of its graph, and its hooks on the gradients
                    gc.collect()
                    batches = batches_at(size)
                    plan = batches.plan(epoch)[:, processes.share(args.batch_size)]
                    step = TrainStep(network, optimizer, batches, precision, args.label_smoothing, ema)
                    step = accelerated(step, plan[0], args.compile, args.cuda_graph, processes, progress.say)
            elif position == 0:
                plan = batches.plan(epoch)[:, processes.share(args.batch_size)]
            run.set_rate(learning_rate(run.step, total_steps, steps_per_epoch, args))
            run.count(step(plan[position]))

            if progress.advance():
                progress.show(run.epoch, *loss_and_accuracy(run.since_line))
            if device.type == "cpu" and progress.step == progress.first + 3:
                progress.forecast(advise=args.data != "shapes")
            at_line, at_epochs_end = run.step % args.log_every == 0, position + 1 == steps_per_epoch
            if at_line:
                end_line(run, progress, size)
            if at_epochs_end:
                end_epoch(run, progress, measure, size)
                if run.epoch in args.snapshots:
                    run.save_snapshot(size)
            stop, save = run.agree(signals, args.save_every, may_save=at_line or at_epochs_end)
            if stop:
                break
            if save:
                run.save()
        run.save()  # before the lines that are only there because the run ends here: a longer one has no such lines
        if run.step < total_steps:
            instead = " instead of --overwrite" if args.overwrite else ""
            print(f"stopped after iteration {run.step:,}; to go on: the same command with --resume{instead}")
            sys.exit(128 + stop)
        size = image_size(run.epoch - 1, sizes)
        if processes.add(run.since_line)[2] > 0:
            end_line(run, progress, size)
        if run.step % steps_per_epoch:
            end_epoch(run, progress, measure, size)
    finish(run, measure(flip=True)[1] if args.test_flip else None)


def end_line(run: Run, progress: Progress, size: int) -> None:
    """Records and prints the means since the last line."""
    run.check_finite()
    loss, accuracy = run.since_last_line()
    entry = {"kind": "train", "epoch": run.epoch, "step": run.step, "image_size": size}
    entry |= {"loss": loss, "accuracy": accuracy, "learning_rate": run.rate}
    entry["images_per_second"] = round(progress.images_per_second(), 1)
    run.record(entry)
    progress.train_line(entry)


def end_epoch(run: Run, progress: Progress, measure: Callable[[], tuple[float, float]], size: int) -> None:
    """Records and prints the loss and accuracy on the test images."""
    run.check_finite()
    with progress.paused():
        loss, accuracy = measure()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the test loss is {loss} after iteration {run.step}: pass a lower --lr")
    entry = {"kind": "test", "epoch": run.epoch, "step": run.step, "image_size": size}
    entry |= {"loss": loss, "accuracy": accuracy}
    run.record(entry)
    progress.test_line(entry)


def finish(run: Run, flipped: float | None) -> None:
    """Writes model.pt and the curves, and says what came out, where it is, and what to do next.

    flipped: the accuracy when each test image is seen together with its mirror image, if that was asked for
    """
    train_loss, train_accuracy = loss_and_accuracy(run.processes.add(run.in_epoch))
    if not run.processes.is_first:
        return
    test = [entry for entry in run.history if entry["kind"] == "test"][-1]
    result = {
        "epoch": test["epoch"],
        "step": run.step,
        "image_size": test["image_size"],
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "seconds": round(run.seconds, 1),
        "torch": str(torch.__version__),
    }
    seen = f"test accuracy {test['accuracy']:.2%}"
    if flipped is not None:
        result["test_accuracy_flipped"] = flipped
        seen += f" ({flipped:.2%} with mirror images)"
    if torch.cuda.is_available():
        result["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()
        seen += f", {result['peak_gpu_bytes'] / 1e9:.1f} GB of GPU memory"
    folder = run.model.parent
    run.save_model(result)
    with checkpoint.atomic_file(folder / "training_curves.png") as file:
        style.save(training_curves.training_curves(run.history, run.facts["config"]["label_smoothing"]), file)
    print(
        f"train accuracy {train_accuracy:.2%} (mean over the last epoch, as trained), {seen}, "
        f"in {format_duration(run.seconds)}\n"
        f"{folder}: model.pt, last.pt, history.jsonl, training_curves.png\n"
        f"next: python visualizer.py --ckpt {run.model}"
    )


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with (
        one_line_errors(sources.DataError, checkpoint.CheckpointError, FloatingPointError),
        joined(args.device) as processes,
        locked(output_folder(args.out)) if processes.is_first else nullcontext(),
    ):
        train(args, processes)


if __name__ == "__main__":
    main()
