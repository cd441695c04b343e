"""Train ResNet-18; visualizer.py then shows what it has learned.

python train.py                                           CIFAR-10 at 224x224, 50 epochs
python train.py --data shapes --image-size 64 --epochs 4  a first try on a laptop, without a download
python train.py --data FOLDER                             pictures in FOLDER/train/<class>/, FOLDER/test/<class>/
python train.py --resume                                  go on with a run that was interrupted
torchrun --nproc_per_node=2 train.py                      by two GPUs, each with half of every batch
"""

import math
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import data
import score_figures
import style
from batches import Batches
from command_line import ArgumentParser, number, one_line_errors, output_folder
from evaluation import evaluate, loss_and_accuracy
from interruptions import locked, noted_signals
from machine import keep_freed_memory, pick_device, pick_precision
from network import ResNet18
from processes import Processes, joined
from progress import Progress, duration
from run import Run, check_continues, earlier_state, event_writer
from schedule import DEFAULT_GAMMA, SCHEDULES, learning_rate
from step import Average, TrainStep, accelerated, sgd


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    count, positive, share = number(int, least=1), number(float, above=0), number(float, least=0, below=1)

    add = parser.add_argument_group("data").add_argument
    add("--data", default="cifar10", help=f"{', '.join(data.DATASETS)}, or a folder with train/ and test/<class>/*")
    add("--root", default="data", help="folder that CIFAR-10 is downloaded to and read from")
    add(
        "--image-size",
        type=number(int, least=8, most=4096),
        default=224,
        help="pixels a side, as the network sees them",
    )
    add("--augment", action=BooleanOptionalAction, default=True, help="shift, flip and cut out, as far as set below")
    add("--shift", type=number(int, least=0, most=4096), default=4, help="at most, in pixels before resizing")
    add("--flip", action=BooleanOptionalAction, default=True, help="left to right, half of the time")
    add("--cutout", type=number(int, least=0, most=4096), default=0, help="side of a square left out, in pixels")
    add("--hold-out", type=number(int, least=0), default=0,
        help="so many training images are not trained on but stand in for the test images")  # fmt: skip

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=count, default=50, help="passes over the training images")
    add("--batch-size", type=number(int, least=2), default=32, help="images an iteration")
    add("--lr", type=positive, default=0.025, help="learning rate at its highest")
    add("--momentum", type=share, default=0.9, help="of SGD, 0 to 1")
    add("--weight-decay", type=number(float, least=0), default=5e-4, help="pull towards 0")
    add("--decay-on", choices=("all", "weights"), default="all", help="weights: not on biases and batch norms")
    add("--label-smoothing", type=share, default=0.0, help="share of the label given to all classes, 0 to 1")
    add("--schedule", choices=SCHEDULES, default="step", help="how the learning rate changes")
    add("--lr-step", type=count, default=20, help="epochs from step to step of --schedule step")
    add("--gamma", type=positive, help="factor of a step (default: 0.1) or of an epoch of --schedule exponential "
        "(default: 0.9656, which is 0.35 in 30 epochs)")  # fmt: skip
    add("--warm-up", type=number(float, least=0), default=0.0, help="epochs in which the learning rate grows from 0")
    add("--average", type=share, default=0.0, metavar="DECAY",
        help="of a moving average of the weights, an iteration, which is then tested and kept; 0: none")  # fmt: skip
    add("--max-steps", type=count, help="stop after so many iterations")
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="of weights, order and augmentation")
    add("--init", metavar="CKPT", help="start from these weights: to fine-tune, or to go on at another image size")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on GPUs that have it")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--capture", action="store_true", help="replay an iteration as one CUDA graph")

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
    if args.gamma is None:
        args.gamma = DEFAULT_GAMMA.get(args.schedule)
    return args


def load_data(args, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Training images and labels, test images and labels, uint8 on the device; and the classes' names."""
    images, labels, classes = data.load(args.data, "train", args.root, args.image_size)
    if args.hold_out:
        if args.hold_out >= len(images):
            raise data.DataError(f"--hold-out {args.hold_out} leaves none of {len(images)} training images: lower it")
        training, test = data.hold_out(images, labels, args.hold_out)
    else:
        training, test = (images, labels), data.load(args.data, "test", args.root, args.image_size)[:2]
    on_device = [tuple(values.to(device) for values in split) for split in (training, test)]
    return *on_device, list(classes)


def train(args, processes: Processes) -> None:
    """One run, from the data to the finished model."""
    device, out = pick_device(args.device, processes.local_rank), Path(args.out)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    state = processes.from_first(lambda: earlier_state(out, args.resume, args.overwrite, vars(args)))
    if args.batch_size % processes.count or args.batch_size < 2 * processes.count > 2:
        raise data.DataError(f"--batch-size {args.batch_size} is for all {processes.count} processes: pass a multiple")

    # data: uint8, on the device from here on
    with processes.in_turns():
        training, test, classes = load_data(args, device)
    steps_per_epoch = len(training[0]) // args.batch_size  # an incomplete last batch is left out
    if steps_per_epoch == 0:
        count = len(training[0])
        raise data.DataError(f"--batch-size {args.batch_size} is more than the {count} training images: lower it")
    total_steps = min(args.epochs * steps_per_epoch, args.max_steps or math.inf)
    mean, std = data.statistics(training[0])
    if not processes.agree_on((classes, mean, std, len(training[0]), len(test[0]))):
        raise data.DataError("the processes found different images: give every machine the same data")
    if state:
        check_continues(state, classes, mean, std, steps_per_epoch, total_steps)
    preprocess = data.Preprocess(args.image_size, mean, std, device)
    augmentation = (args.shift, args.flip, args.cutout) if args.augment else (0, False, 0)
    batches = Batches(*training, preprocess, args.batch_size, args.seed, *augmentation)

    # network and optimizer
    torch.manual_seed(args.seed)
    network = ResNet18(len(classes))
    if args.init and not state:
        if processes.is_first:
            checkpoint.take_over(args.init, network)
        network.load_state_dict(processes.from_first(network.state_dict))
    network.to(device, memory_format=torch.channels_last).train()
    average = Average(network, args.average) if args.average else None
    optimizer = sgd(network, args.lr, args.momentum, args.weight_decay, args.decay_on)
    precision = pick_precision(args.precision, device)

    # the run, new or taken up again
    facts = {"classes": classes, "mean": mean, "std": std, "image_size": args.image_size, "config": vars(args)}
    writer = None
    if args.tensorboard and processes.is_first:
        writer = event_writer(out / "tensorboard", state["step"] + 1 if state else None)
    run = Run(out, network, optimizer, steps_per_epoch, facts, average, processes, writer)
    run.begin(state)
    del state
    evaluations = math.ceil(total_steps / steps_per_epoch) - run.step // steps_per_epoch
    progress = Progress(run.step, total_steps, args.epochs, args.batch_size, evaluations, len(test[0]))
    measure = partial(evaluate, run.tested, *test, preprocess, precision, processes)

    with noted_signals(processes.count == 1) as signals, progress.bar, writer or nullcontext():
        progress.say(
            f"{len(training[0]):,} training and {len(test[0]):,} test images of {len(classes)} classes at "
            f"{args.image_size}x{args.image_size}; {total_steps:,} iterations on {processes}{device}, {precision}"
            + (f", from {run.step:,} on" if run.step else "")
        )
        plan = batches.plan(run.step // steps_per_epoch)[:, processes.share(args.batch_size)]
        step = TrainStep(network, optimizer, batches, precision, args.label_smoothing, average)
        step = accelerated(step, plan[0], args.compile, args.capture, processes, progress.say)
        while run.step < total_steps:
            epoch, position = divmod(run.step, steps_per_epoch)
            if position == 0:
                run.in_epoch.zero_()
                plan = batches.plan(epoch)[:, processes.share(args.batch_size)]
            run.set_rate(learning_rate(run.step, total_steps, steps_per_epoch, args))
            run.count(step(plan[position]))

            if progress.advance():
                progress.show(run.epoch, *loss_and_accuracy(run.since_line))
            if device.type == "cpu" and progress.step == progress.first + 3:
                progress.forecast(advise=args.data != "shapes")
            at_line, at_epochs_end = run.step % args.log_every == 0, position + 1 == steps_per_epoch
            if at_line:
                end_line(run, progress)
            if at_epochs_end:
                end_epoch(run, progress, measure)
                if run.epoch in args.snapshots:
                    run.save_snapshot()
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
        if processes.add(run.since_line)[2] > 0:
            end_line(run, progress)
        if run.step % steps_per_epoch:
            end_epoch(run, progress, measure)
    finish(run, measure(mirrored=True)[1] if args.test_flip else None)


def end_line(run: Run, progress: Progress) -> None:
    """Records and prints the means since the last line."""
    run.check_finite()
    loss, accuracy = run.since_last_line()
    entry = {"kind": "train", "epoch": run.epoch, "step": run.step, "loss": loss, "accuracy": accuracy}
    entry["learning_rate"] = run.rate
    entry["images_per_second"] = round(progress.images_per_second(), 1)
    run.record(entry)
    progress.train_line(entry)


def end_epoch(run: Run, progress: Progress, measure: Callable[[], tuple[float, float]]) -> None:
    """Records and prints the loss and accuracy on the test images."""
    run.check_finite()
    with progress.evaluation():
        loss, accuracy = measure()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the test loss is {loss} after iteration {run.step}: pass a lower --lr")
    entry = {"kind": "test", "epoch": run.epoch, "step": run.step, "loss": loss, "accuracy": accuracy}
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
        style.save(score_figures.training_curves(run.history, run.facts["config"]["label_smoothing"]), file)
    print(
        f"train accuracy {train_accuracy:.2%} (mean over the last epoch, as trained), {seen}, "
        f"in {duration(run.seconds)}\n"
        f"{folder}: model.pt, last.pt, history.jsonl, training_curves.png\n"
        f"next: python visualizer.py --ckpt {run.model}"
    )


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with (
        one_line_errors(data.DataError, checkpoint.CheckpointError, FloatingPointError),
        joined(args.device) as processes,
        locked(output_folder(args.out)) if processes.is_first else nullcontext(),
    ):
        train(args, processes)


if __name__ == "__main__":
    main()
