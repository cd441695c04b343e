"""The report's words and tables: how the network was trained, how well it does, how the figures were drawn."""

import platform
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby

import matplotlib
import numpy
import torch
import torchvision

from analysis.inspection import ImageInspection, LoadedNetwork, PictureInspection
from figures.style import format_percent, plural
from runtime.checkpoint import Metadata
from runtime.command_line import recipe

CLASSES_SHOWN = 30


def training_details(metadata: Metadata) -> Iterator[tuple[str, str]]:
    """What the checkpoint knows of the training: name and value."""
    config, result = metadata.config, metadata.result
    if metadata.classes:
        names = ", ".join(metadata.classes[:CLASSES_SHOWN]) + ", …" * (len(metadata.classes) > CLASSES_SHOWN)
        yield "data", f"{config.get('data', 'not recorded')}; {len(metadata.classes)} classes: {names}"
    if "train_images" in result:
        held_out = " held-out training" if config.get("hold_out") else " test"
        yield "images", f"{result['train_images']:,} training, {result['test_images']:,}{held_out}"
    yield "image size", image_sizes(metadata)
    if not config:
        yield "settings", "not recorded: the checkpoint is a plain state dict"
        return
    yield "batch size", f"{config.get('batch_size')} images per iteration"
    yield "optimizer", optimizer(config)
    yield "learning rate", learning_rate(config)
    if "epoch" in result:
        yield "length", f"{plural(result['epoch'], 'epoch')}, {plural(result['step'], 'iteration')}"
    elif "epochs" in config:
        yield "length", f"{plural(config['epochs'], 'epoch')} planned"
    yield "augmentation", augmentation(config)
    yield "precision", str(result.get("precision", config.get("precision")))
    if "device" in result:
        yield "device", str(result["device"])
    if "seconds" in result:
        yield "time", f"{timedelta(seconds=round(result['seconds']))} (hours:minutes:seconds)"
    if "torch" in result:
        yield "version", f"torch {result['torch']}"
    yield "seed", str(config.get("seed"))
    yield from commands(config)


def image_sizes(metadata: Metadata) -> str:
    """The size of the network's input, and the epochs at each size if it grew during the training."""
    tests = (entry.get("image_size") for entry in metadata.history if entry["kind"] == "test")
    sizes = [(size, len(list(group))) for size, group in groupby(tests)]
    grown = ", ".join(f"{size} ({plural(epochs, 'epoch')})" for size, epochs in sizes)
    return f"{metadata.image_size}x{metadata.image_size}" + f"; trained at {grown}" * (len(sizes) > 1)


def optimizer(config: dict) -> str:
    """SGD with all that differs from its plain form."""
    decay = f"weight decay {config.get('weight_decay'):g}" if config.get("weight_decay") else "no weight decay"
    decay += " (not on biases and batch norms)" if config.get("norm_decay") is False else ""
    parts = ["SGD", f"{'Nesterov ' if config.get('nesterov') else ''}momentum {config.get('momentum')}", decay]
    parts += [f"label smoothing {config['label_smoothing']:g}"] if config.get("label_smoothing") else []
    parts += [f"moving average of the weights ({config['ema_decay']:g})"] if config.get("ema_decay") else []
    return ", ".join(parts)


def learning_rate(config: dict) -> str:
    """The highest learning rate and how it changes."""
    parts = [f"{config.get('lr')} at its peak", f"schedule {config.get('schedule')}"]
    if config.get("lr_gamma"):
        epochs = config.get("lr_step_size") if config.get("schedule") == "step" else 1
        parts.append(f"times {config['lr_gamma']:g} every {epochs} epochs".replace("every 1 epochs", "per epoch"))
    if config.get("lr_warmup_epochs"):
        parts.append(f"linear warm-up over {config['lr_warmup_epochs']:g} epochs")
    return ", ".join(parts)


def augmentation(config: dict) -> str:
    """What is done to the training images, in stored pixels."""
    if not config.get("augment"):
        return "none"
    flip = config.get("flip")
    parts = [f"shift by up to {config['shift']} pixels"] if config.get("shift") else []
    if config.get("scale_crop"):
        parts = [f"random box of {100 * config['scale_crop']:g} % to 100 % of the area"]
    parts += ["horizontal flip" + f" ({flip})" * isinstance(flip, str)] if flip not in (None, False, "none") else []
    parts += [f"cutout of {config['cutout']}x{config['cutout']} pixels"] if config.get("cutout") else []
    return ", ".join(parts) or "none"


def commands(config: dict) -> Iterator[tuple[str, str]]:
    """The command of the training. A shared network holds the lines of its recipe, or several commands."""
    settings = {name: value for name, value in config.items() if name not in ("resume", "overwrite")}
    lines = config.get("recipe") or recipe(settings)
    if lines and lines[0].startswith("python"):
        yield from (("command", line) for line in lines)
        yield "note", "each command continued the one before; the settings above are the last one's"
    else:
        yield "command", f"python train.py {' '.join(lines)}"


def drawing_details(inspection: LoadedNetwork, command: str) -> Iterator[tuple[str, str]]:
    """How the figures were drawn."""
    yield "checkpoint", str(inspection.checkpoint)
    if isinstance(inspection, ImageInspection):
        searched, known = len(inspection.searched), len(inspection.images)
        count = f"{searched:,} of {known:,}, evenly spread" if searched < known else f"all {known:,}"
        yield "test images", f"{count}; {inspection.source}"
    for picture in inspection.pictures if isinstance(inspection, PictureInspection) else ():
        yield "picture", picture.title
    yield "device", str(inspection.device)
    versions = {"Python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (torch, torchvision, numpy, matplotlib)}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "command", command


def accuracies(metadata: Metadata, summary: dict | None) -> Iterator[tuple[str, float | None, float]]:
    """Loss and accuracy in 0..1 of the checkpoint's result, and accuracy on the images searched."""
    result = metadata.result
    tested = "held-out training images" if metadata.config.get("hold_out") else "test images"
    if "train_accuracy" in result:
        name = "training images, mean over the last epoch, augmented as in training"
        yield name, result["train_loss"], result["train_accuracy"]
    if "test_accuracy" in result:
        yield f"{tested}, after the last epoch", result["test_loss"], result["test_accuracy"]
    elif tests := [line for line in metadata.history if line["kind"] == "test"]:
        name = f"{tested}, after epoch {tests[-1].get('epoch')} of an unfinished run"
        yield name, tests[-1]["loss"], tests[-1]["accuracy"]
    if "test_accuracy_flipped" in result:
        yield f"{tested}, averaged with their mirror images", None, result["test_accuracy_flipped"]
    if summary and "accuracy" in summary:
        yield f"the {summary['images_searched']:,} test images of these figures", None, summary["accuracy"]


def lowest_classes(summary: dict | None) -> list[tuple[str, float]]:
    """Class and accuracy in 0..1, of those with test images; of many classes, those with the lowest accuracy."""
    by_class = (summary or {}).get("accuracy_by_class", {})
    rows = [(name, value) for name, value in by_class.items() if value is not None]
    return rows if len(rows) <= CLASSES_SHOWN else sorted(rows, key=lambda row: row[1])[:CLASSES_SHOWN]


def headline(metadata: Metadata, summary: dict | None, figures: int) -> str:
    """The most important numbers in two sentences."""
    result = metadata.result
    if "test_accuracy" in result:
        first = f"Test accuracy {format_percent(result['test_accuracy'], 2)} after {plural(result['epoch'], 'epoch')}."
    else:
        first = "The training is not finished." if metadata.history else "The checkpoint holds no result of a training."
    searched = f", drawn from {summary['images_searched']:,} test images" if summary else ""
    return f"{first} {plural(figures, 'figure')}{searched}."
