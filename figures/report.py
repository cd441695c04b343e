"""report.html: settings, results and every figure of a run on one page, in the order of a course report.

The page needs no server, no script and no network: its pictures are the files beside it, so the folder can be moved.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy
import torch
import torchvision
from PIL import Image

from analysis.inspection import ImageInspection, LoadedNetwork
from figures import FIGURES
from figures.output import write_text
from figures.registry import SECTIONS, Outcome
from figures.style import html_template
from network import CHANNELS
from runtime.checkpoint import Metadata
from runtime.command_line import recipe

PAGE = html_template(Path(__file__).with_suffix(".html"))
PRINTED_INCHES = (7.0, 8.0)  # what an A4 page has room for beside margins, a heading and a caption
PARTS_SHOWN = 24  # of a figure's files; the others are listed
CLASSES_SHOWN = 30
FIRST_SHOWN = ("hierarchy", "top9", "filters")  # the first of these that is drawn is on the first screen
# a row of the details -> names in the checkpoint's config, most of them flags of train.py, and result
RECORDED = {
    "images": ("train_images", "test_images", "hold_out", "image_size", "sizes"),
    "iterations": ("init", "batch_size", "epochs", "step", "seed"),
    "optimizer (SGD)": ("momentum", "nesterov", "weight_decay", "norm_decay", "label_smoothing", "ema_decay"),
    "learning rate": ("lr", "schedule", "lr_step_size", "lr_gamma", "lr_warmup_epochs"),
    "augmentation": ("augment", "shift", "flip", "cutout", "cutmix", "scale_crop"),
    "machine": ("device", "precision", "torch", "seconds"),
}


def write_report(
    folder: Path, inspection: LoadedNetwork, outcomes: Mapping[str, Outcome], summary: dict | None, command: str
) -> Path:
    """Write report.html into the folder of the figures; its path below this folder.

    outcomes  of every figure of the registry, by name
    summary   content of summary.json, if the test images were searched
    command   that drew the figures
    """
    ordered = sorted(FIGURES, key=lambda name: SECTIONS.index(FIGURES[name].section))
    figures = {name: figure_content(folder, name, outcomes[name]) for name in ordered}
    drawn = [figure for figure in figures.values() if figure["pictures"] or figure["single"]]
    for number, figure in enumerate(drawn, 1):
        figure["number"] = number
    metadata, rows = inspection.metadata, accuracies(inspection.metadata, summary)
    text = PAGE.render(
        title=f"ResNet-18 on {Path(metadata.config.get('data', inspection.source)).name}",
        accuracy=next((row for row in rows if not row[0].startswith("training images")), None),
        first=next((figures[name] for name in FIRST_SHOWN if figures[name]["pictures"]), None),
        training=training_details(metadata),
        drawing=drawing_details(inspection, command),
        accuracies=rows,
        summary=summary,
        classes_shown=CLASSES_SHOWN,
        channels=CHANNELS,
        drawn=drawn,
        missing=[figure for figure in figures.values() if figure["reason"]],
        single=[picture | {"figure": figure["number"]} for figure in drawn for picture in figure["single"]],
        parts_shown=PARTS_SHOWN,
    )
    write_text(folder / "report.html", text)
    return Path("report.html")


def figure_content(folder: Path, name: str, outcome: Outcome) -> dict[str, Any]:
    """A figure's registry entry, pictures (those of a single channel are an appendix), and main numbers in words."""
    entry = FIGURES[name]
    pictures = [picture_content(folder, file) for file in outcome.files if file.suffix != ".json"]
    return vars(entry) | {
        "name": name,
        "pictures": [picture for picture in pictures if "_channel_" not in picture["stem"]],
        "single": [picture for picture in pictures if "_channel_" in picture["stem"]],
        "reason": outcome.reason,
    }


def picture_content(folder: Path, file: Path) -> dict[str, Any]:
    """Name and URL of a picture, and its width and height in pixels of CSS, at most as large as A4 allows."""
    with Image.open(folder / file) as picture:
        dpi = picture.info.get("dpi", (300, 300))
        inches = [pixels / per_inch for pixels, per_inch in zip(picture.size, dpi, strict=True)]
    scale = min(1, *(most / size for most, size in zip(PRINTED_INCHES, inches, strict=True)))
    size = [round(96 * scale * length) for length in inches]
    return {"name": file.as_posix(), "stem": file.stem, "url": quote(os.fsencode(file.as_posix())), "size": size}


def training_details(metadata: Metadata) -> Iterator[tuple[str, str]]:
    """What the checkpoint knows of the training: name and value, with settings and results as they were recorded."""
    config = metadata.config
    recorded = {"image_size": metadata.image_size} | config | metadata.result
    if metadata.classes:
        names = ", ".join(metadata.classes[:CLASSES_SHOWN]) + ", …" * (len(metadata.classes) > CLASSES_SHOWN)
        yield "data", f"{config.get('data', 'not recorded')}; {len(metadata.classes)} classes: {names}"
    for title, names in RECORDED.items():
        values = {name: recorded[name] for name in names if recorded.get(name) is not None}
        if values.get("augment") is False:
            values = {"augment": False}  # the others were not used
        if shown := [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]:
            yield title, ", ".join(shown).replace(" True", " yes").replace(" False", " no")
    if not config:
        yield "settings", "not recorded: the checkpoint is a plain state dict"
        return
    # a shared network holds the lines of its recipe, or several commands, of which each continued the one before
    settings = {name: value for name, value in config.items() if name not in ("resume", "overwrite")}
    lines = config.get("recipe") or recipe(settings)
    for line in lines if lines and lines[0].startswith("python") else [f"python train.py {' '.join(lines)}"]:
        yield "command", line


def drawing_details(inspection: LoadedNetwork, command: str) -> Iterator[tuple[str, str]]:
    """How the figures were drawn."""
    yield "checkpoint", str(inspection.checkpoint)
    if isinstance(inspection, ImageInspection):
        searched, known = len(inspection.searched), len(inspection.images)
        yield "test images", f"{searched:,} of {known:,}, evenly spread; {inspection.source}"
    yield from (("picture", picture.title) for picture in getattr(inspection, "pictures", ()))
    yield "device", str(inspection.device)
    versions = (f"{module.__name__} {module.__version__}" for module in (torch, torchvision, numpy, matplotlib))
    yield "versions", ", ".join((f"Python {platform.python_version()}", *versions))
    yield "command", command


def accuracies(metadata: Metadata, summary: dict | None) -> list[tuple[str, float | None, float]]:
    """Loss and accuracy in 0..1 of the checkpoint's result, and accuracy on the images searched."""
    result, summary, when = metadata.result, summary or {}, "the last epoch"
    tested = "held-out training images" if metadata.config.get("hold_out") else "test images"
    tests = [line for line in metadata.history if line["kind"] == "test"]
    if "test_accuracy" not in result and tests:
        when = f"epoch {tests[-1].get('epoch')} of an unfinished run"
        result = {"test_loss": tests[-1]["loss"], "test_accuracy": tests[-1]["accuracy"]}
    rows = {
        "training images, mean over the last epoch, augmented as in training": ("train_loss", "train_accuracy"),
        f"{tested}, after {when}": ("test_loss", "test_accuracy"),
        f"{tested}, averaged with their mirror images": ("", "test_accuracy_flipped"),
    }
    known = [(name, result.get(loss), result[share]) for name, (loss, share) in rows.items() if share in result]
    if "accuracy" in summary:
        known.append((f"the {summary['images_searched']:,} test images of these figures", None, summary["accuracy"]))
    return known
