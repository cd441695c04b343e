"""Train ResNet-18; visualizer.py then shows what it has learned.

python train.py                                           CIFAR-10 at 224x224, 50 epochs
python train.py --data shapes --image-size 64 --epochs 4  a first try on a laptop, without a download
python train.py --data FOLDER                             pictures in FOLDER/train/<class>/, FOLDER/test/<class>/
python train.py --resume                                  go on with a run that was interrupted
"""

import math
import sys
from argparse import BooleanOptionalAction
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import checkpoint
import data
import figures
from command_line import ArgumentParser, number, one_line_errors, output_folder, pick_device
from network import ResNet18
from progress import Progress, duration
from run import Run, check_continues, earlier_state, event_writer, locked, noted_signals
from schedule import DEFAULT_GAMMA, SCHEDULES, learning_rate

EVALUATION_PIXELS = 128 * 224 * 224  # at once: about 1 GB on the device


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
    add("--augment", action=BooleanOptionalAction, default=True, help="shift by up to 4 pixels and flip, in training")

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=count, default=50, help="passes over the training images")
    add("--batch-size", type=number(int, least=2), default=32, help="images an iteration")
    add("--lr", type=positive, default=0.025, help="learning rate at its highest")
    add("--momentum", type=share, default=0.9, help="of SGD, 0 to 1")
    add("--weight-decay", type=number(float, least=0), default=5e-4, help="on all parameters")
    add("--label-smoothing", type=share, default=0.0, help="share of the label given to all classes, 0 to 1")
    add("--schedule", choices=SCHEDULES, default="step", help="how the learning rate changes")
    add("--lr-step", type=count, default=20, help="epochs from step to step of --schedule step")
    add("--gamma", type=positive, help="factor of a step (default: 0.1) or of an epoch of --schedule exponential "
        "(default: 0.9656, which is 0.35 in 30 epochs)")  # fmt: skip
    add("--max-steps", type=count, help="stop after so many iterations")
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="of weights, order and augmentation")
    add("--init", metavar="CKPT", help="start from these weights: to fine-tune, or to go on at another image size")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on GPUs that have it")

    add = parser.add_argument_group("what is written").add_argument
    add("--out", default="checkpoints", help="folder for last.pt, model.pt, history.jsonl, training_curves.png")
    add("--log-every", type=count, default=300, help="iterations from line to line")
    add("--save-every", type=count, help="iterations from save to save (default: once a minute, at a line's end)")
    add("--resume", action="store_true", help="go on exactly where the run in --out was interrupted")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--tensorboard", action="store_true", help="write event files too (needs the package tensorboard)")

    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: pass one of the two")
    if args.gamma is None:
        args.gamma = DEFAULT_GAMMA.get(args.schedule)
    return args


def sums_of(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Of a batch with this mean loss: sum of losses, number of correct answers, number of images; (3,), no waiting."""
    count = torch.full_like(loss, len(labels))
    return torch.stack([loss * count, (logits.argmax(1) == labels).sum().to(loss.dtype), count]).detach()


def loss_and_accuracy(sums: Tensor) -> tuple[float, float]:
    """Means from added `sums_of` batches; here the host waits for the device."""
    loss, correct, images = sums.tolist()
    return loss / max(images, 1), correct / max(images, 1)


@torch.inference_mode()
def evaluate(network: ResNet18, images: Tensor, labels: Tensor, preprocess, autocast) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0..1) over all images (N, 3, H, W) uint8, each counted once."""
    network.eval()
    sums = torch.zeros(3, device=images.device)
    batch_size = max(1, EVALUATION_PIXELS // preprocess.image_size**2)
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    for batch, target in tqdm(batches, "evaluation", leave=False, disable=None):
        with autocast:
            logits = network(preprocess(batch))
        sums += sums_of(F.cross_entropy(logits.float(), target), logits, target)
    network.train()
    return loss_and_accuracy(sums)


def starting_weights(network: ResNet18, path: str) -> None:
    """Takes over a checkpoint's weights; not those of the last layer when it has another number of classes."""
    weights = checkpoint.load_network(path)[0].state_dict()
    if weights["fc.weight"].shape != network.fc.weight.shape:
        print(f"{path} has {len(weights['fc.weight'])} classes, the data {network.fc.out_features}: a new last layer")
        weights |= {f"fc.{name}": value for name, value in network.fc.state_dict().items()}
    network.load_state_dict(weights)


def train_step(network, optimizer, inputs: Tensor, target: Tensor, label_smoothing: float, autocast) -> Tensor:
    """One iteration on normalised images (N, 3, H, W) and labels (N,); returns their `sums_of`."""
    with autocast:
        logits = network(inputs)
    loss = F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return sums_of(loss, logits, target)


def pick_precision(name: str, device: torch.device) -> str:
    """Makes of "auto" bf16 on GPUs that compute in it (from NVIDIA's Ampere on), and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return name


def train(args) -> None:
    """One run, from the data to the finished model."""
    device, out = pick_device(args.device), Path(args.out)
    state = earlier_state(out, args.resume, args.overwrite, vars(args))
    writer = event_writer(out / "tensorboard", state["step"] + 1 if state else None) if args.tensorboard else None

    # data: uint8, on the device from here on
    images, labels, classes = data.load(args.data, "train", args.root, args.image_size)
    test_images, test_labels, _ = data.load(args.data, "test", args.root, args.image_size)
    steps_per_epoch = len(images) // args.batch_size  # an incomplete last batch is left out
    if steps_per_epoch == 0:
        raise data.DataError(f"--batch-size {args.batch_size} is more than the {len(images)} training images: lower it")
    total_steps = min(args.epochs * steps_per_epoch, args.max_steps or math.inf)
    mean, std = data.statistics(images)
    if state:
        check_continues(state, list(classes), mean, std, steps_per_epoch, total_steps)
    preprocess = data.Preprocess(args.image_size, mean, std, device)
    images, labels, test_images, test_labels = (x.to(device) for x in (images, labels, test_images, test_labels))

    # network and optimizer
    torch.manual_seed(args.seed)
    network = ResNet18(len(classes))
    if args.init and not state:
        starting_weights(network, args.init)
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=device.type != "mps"
    )
    precision = pick_precision(args.precision, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    # the run, new or taken up again
    facts = {"classes": list(classes), "mean": mean, "std": std, "image_size": args.image_size, "config": vars(args)}
    run = Run(out, network, optimizer, steps_per_epoch, facts, writer)
    run.begin(state)
    del state
    evaluations = math.ceil(total_steps / steps_per_epoch) - run.step // steps_per_epoch
    progress = Progress(run.step, total_steps, args.epochs, args.batch_size, evaluations * len(test_images))

    with noted_signals() as signals, progress.bar, writer or nullcontext():
        progress.say(
            f"{len(images):,} training and {len(test_images):,} test images of {len(classes)} classes at "
            f"{args.image_size}x{args.image_size}; {total_steps:,} iterations on {device}, {precision}"
            + (f", from {run.step:,} on" if run.step else "")
        )
        while run.step < total_steps:
            epoch, position = divmod(run.step, steps_per_epoch)
            if position == 0:
                run.in_epoch.zero_()
            if position == 0 or progress.step == progress.first:
                order = data.epoch_order(len(images), args.seed, epoch).to(device)
            chosen = order[position * args.batch_size : (position + 1) * args.batch_size]
            batch, target = images[chosen], labels[chosen]
            if args.augment:
                batch = data.crop_and_flip(batch, args.seed, run.step)
            optimizer.param_groups[0]["lr"] = learning_rate(run.step, total_steps, steps_per_epoch, args)
            run.count(train_step(network, optimizer, preprocess(batch), target, args.label_smoothing, autocast))

            if progress.advance():
                progress.show(run.epoch, *loss_and_accuracy(run.since_line))
            if device.type == "cpu" and progress.step == progress.first + 3:
                progress.forecast(advise=args.data != "shapes")
            at_line, at_epochs_end = run.step % args.log_every == 0, position + 1 == steps_per_epoch
            if at_line:
                end_line(run, progress)
            if at_epochs_end:
                end_epoch(run, progress, test_images, test_labels, preprocess, autocast)
            if signals:
                break
            run.save_if_due(args.save_every, may_save=at_line or at_epochs_end)
        run.save()  # before the lines that are only there because the run ends here: a longer one has no such lines
        if run.step < total_steps:
            instead = " instead of --overwrite" if args.overwrite else ""
            print(f"stopped after iteration {run.step:,}; to go on: the same command with --resume{instead}")
            sys.exit(128 + signals[0])
        if run.since_line[2] > 0:
            end_line(run, progress)
        if run.step % steps_per_epoch != 0:
            end_epoch(run, progress, test_images, test_labels, preprocess, autocast)
    finish(run, out)


def end_line(run: Run, progress: Progress) -> None:
    """Records and prints the means since the last line."""
    run.check_finite()
    loss, accuracy = loss_and_accuracy(run.since_line)
    run.since_line.zero_()
    entry = {"kind": "train", "epoch": run.epoch, "step": run.step, "loss": loss, "accuracy": accuracy}
    entry["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    entry["images_per_second"] = round(progress.images_per_second(), 1)
    run.record(entry)
    progress.train_line(entry)


def end_epoch(run: Run, progress: Progress, images: Tensor, labels: Tensor, preprocess, autocast) -> None:
    """Records and prints the loss and accuracy on the test images."""
    run.check_finite()
    with progress.evaluation(len(images)):
        loss, accuracy = evaluate(run.network, images, labels, preprocess, autocast)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the test loss is {loss} after iteration {run.step}: pass a lower --lr")
    entry = {"kind": "test", "epoch": run.epoch, "step": run.step, "loss": loss, "accuracy": accuracy}
    run.record(entry)
    progress.test_line(entry)


def finish(run: Run, out) -> None:
    """Writes model.pt and the curves, and says what came out, where it is, and what to do next."""
    train_loss, train_accuracy = loss_and_accuracy(run.in_epoch)
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
    run.save_model(result)
    with checkpoint.atomic_file(out / "training_curves.png") as file:
        figures.save(figures.training_curves(run.history), file)
    print(
        f"train accuracy {train_accuracy:.2%} (mean over the last epoch, as trained), "
        f"test accuracy {test['accuracy']:.2%}, in {duration(run.seconds)}\n"
        f"{out}: model.pt, last.pt, history.jsonl, training_curves.png\n"
        f"next: python visualizer.py --ckpt {run.model}"
    )


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    with one_line_errors(data.DataError, checkpoint.CheckpointError, FloatingPointError):
        with locked(output_folder(args.out)):
            train(args)


if __name__ == "__main__":
    main()
