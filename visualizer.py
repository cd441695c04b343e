"""Draw what a trained ResNet-18 has learned: checkpoint -> plots/*.png, plots/*.json and plots/report.html.

python visualizer.py --ckpt                                 all figures that take seconds, and the report
python visualizer.py --ckpt PATH --images cat.jpg dog.jpg   your own pictures instead, in plots/cat/ and plots/dog/
python visualizer.py --figures top9 --stages conv4_x --channels 3 17 --rules deconvnet guided gradient
"""

import os
import shlex
import signal
import sys
from argparse import BooleanOptionalAction
from dataclasses import fields
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # until main() can be interrupted: loading the libraries takes seconds

    def interrupted(number, frame):
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, interrupted)

import torch
from tqdm import tqdm

from analysis.importance import METHODS
from analysis.inspection import (
    Inspection,
    add_pictures,
    add_preprocessing,
    add_search,
    add_test_images,
    load_inspection,
)
from analysis.settings import CHANNEL_CHOICES, SCALES, Settings
from dataset import sources
from figures import FIGURES, style
from figures.gallery import write_gallery
from figures.output import say, say_error, write_figures, write_summary
from figures.registry import SLOW, Outcome, choose_figures, needs_of, searched_stages
from figures.report import write_report
from figures.scores import summary
from figures.why import class_numbers
from network import CHANNELS, STAGES
from reverse_network import RULES, UNITS, UNPOOLINGS
from runtime.checkpoint import CheckpointError, default_checkpoint
from runtime.command_line import ArgumentParser, format_duration, number, one_line_errors, output_folder
from runtime.device import keep_freed_memory, release_freed_memory

SHORT_RUN_SECONDS = 60  # a run that will take longer says so
QUICK_IMAGES = 1000  # proposed for a search that takes most of the time


def parse_args(argv=None):
    """The flags of the command line; wrong usage ends in one line and exit code 2."""
    defaults = Settings()
    parser = ArgumentParser(__doc__)
    parser.epilog = "figures:\n" + "\n".join(f"  {name:<18}{entry.title}" for name, entry in FIGURES.items())

    add = parser.add_argument_group("network and images").add_argument
    add("--ckpt", nargs="?", metavar="PATH",
        help="a model.pt or last.pt of train.py, or a state dict with torchvision's names (default: "
        "checkpoints/model.pt; before any training, the shipped network)")  # fmt: skip
    add("--data", help=f"{', '.join(sources.DATASETS)}, or a folder; its test split is searched (default: as trained)")
    add("--root", help="folder of CIFAR-10 and of decoded images (default: as trained)")
    add("--images", nargs="+", metavar="FILE", help="pictures to explain instead of a test image; without "
        "--figures, the test split is then not searched")  # fmt: skip
    add("--image", type=number(int, least=0), metavar="N", help="index of the test image to explain (default: one "
        "that is classified right with the median confidence of its class, which --seed draws)")  # fmt: skip
    add("--limit", type=number(int, least=1), help="number of test images to search, evenly spread (default: all)")

    add = parser.add_argument_group("figures").add_argument
    add("--figures", nargs="+", choices=FIGURES, metavar="NAME", help="figures to draw, listed below "
        "(default: all that take seconds)")  # fmt: skip
    add("--stages", nargs="+", choices=STAGES, metavar="STAGE", help=f"some of {', '.join(STAGES)} (default: "
        f"{' '.join(defaults.stages)}, in the gallery all)")  # fmt: skip
    add("--channels", nargs="+", type=channel_choice, default=defaults.channels, metavar="N",
        help="channel numbers of every stage, or one word: different (the 9 strongest that are not similar to each "
        "other), strongest, random (9 drawn by --seed), all")  # fmt: skip
    add("--seed", type=number(int, least=0), default=defaults.seed,
        help="seed of --channels random, of the image to explain, of hierarchy's channels and of correspondence's "
        "squares")  # fmt: skip
    add("--top", type=number(int, least=1, most=25), default=defaults.top, help="images per channel")
    add("--rules", nargs="+", choices=RULES, default=list(defaults.rules), metavar="RULE",
        help=f"rules for the backward pass through a ReLU: some of {', '.join(RULES)}")  # fmt: skip
    add("--unpool", choices=UNPOOLINGS, default=defaults.unpool, help="sum is exact; overwrite is F.max_unpool2d")
    add("--border", action="store_true", help="also search units that see the zero padding")
    add("--scale", choices=SCALES, default=defaults.scale,
        help="color scale of the top-9 reconstructions: one per tile, or one per channel and rule")  # fmt: skip
    add("--units", choices=UNITS, default=defaults.units,
        help="top9: reconstruct from a channel's strongest unit or from its whole map")  # fmt: skip
    add("--classes", nargs=2, metavar="CLASS", help="why: the two classes to compare, by name or number "
        "(default: the two most probable)")  # fmt: skip
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="faithfulness, attributions: importance "
        f"maps to score and to draw, some of {shlex.join(METHODS)} (default: all)")  # fmt: skip
    add("--score-images", type=number(int, least=2), metavar="N", help="faithfulness, attributions: number of test "
        "images to score, each in about 5 s by all methods on two cores; with fewer than 81, also fewer units per "
        "channel (default: 1000; on a CPU a twentieth of those searched, from 2 to 8)")  # fmt: skip
    add("--occluder", type=number(int, least=1), metavar="PIXELS", help="occlusion: side of the square that hides part "
        "of an image, in pixels of the network's input (default: 48 at 224, in proportion)")  # fmt: skip

    add = parser.add_argument_group("output").add_argument
    add("--format", choices=("png", "pdf"), default="png", help="file format of the figures; pdf for LaTeX")
    add("--dpi", type=number(int, least=50, most=1200), default=style.DPI,
        help="dots per inch; figures are up to 7 inches wide")  # fmt: skip
    add("--gallery", action="store_true", help="also write index.html and atlas.json: all channels, or --channels")
    add("--report", action=BooleanOptionalAction, default=True,
        help="report.html: settings, results and the figures of this run on one page")  # fmt: skip
    add("--out", default="plots", help="output folder")

    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=number(int, least=1, most=10**6), default=defaults.batch_size,
        help="images per forward pass")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    args = parser.parse_args(argv)
    if isinstance(args.channels, list) and any(isinstance(channel, str) for channel in args.channels):
        if len(args.channels) > 1:
            parser.error("--channels takes numbers, or one word")
        args.channels = args.channels[0]
    if args.images and args.image is not None:
        parser.error("--image is a test image, --images are your own: pass one of them")
    for stage in args.stages or defaults.stages:
        numbers = args.channels if isinstance(args.channels, list) else []
        if wrong := [channel for channel in numbers if channel >= CHANNELS[stage]]:
            parser.error(f"--channels {wrong[0]}: {stage} has the channels 0 to {CHANNELS[stage] - 1}")
    return args


def channel_choice(text: str) -> int | str:
    """A `type=` for argparse: a channel's number, or one of CHANNEL_CHOICES."""
    return text if text in CHANNEL_CHOICES else number(int, least=0)(text)


def settings_from(args) -> Settings:
    """What is visualised, from the flags of the same names: each name and number once, in the order given."""
    values = {field.name: getattr(args, field.name) for field in fields(Settings)}
    values |= {"stages": args.stages or Settings.stages, "methods": args.methods or Settings.methods}
    once = {name: tuple(dict.fromkeys(values[name])) for name in ("stages", "channels", "rules", "methods")
            if not isinstance(values[name], str)}  # fmt: skip
    return Settings(**values | once | {"classes": args.classes and tuple(args.classes)})


def visualize(args, command: str) -> bool:
    """Draw what was asked for, and print the name of every file. command: as typed, for the report.

    Returns whether all was drawn without an error.
    """
    torch.backends.cudnn.allow_tf32 = False  # the pictures are then as exact as on a CPU
    settings = settings_from(args)
    inspection, names, left_out = load_what_is_needed(args, settings)
    check_settings(settings, names, inspection)
    folder = output_folder(args.out)
    gallery_stages = settings.stages if args.stages else STAGES
    if is_searched := args.gallery or "search" in needs_of(names, bool(args.images)):
        stages = (*settings.stages, *gallery_stages) if args.gallery else settings.stages
        report = partial(forecast, args, names, len(inspection.searched)) if inspection.device.type == "cpu" else None
        inspection = add_search(inspection, settings, searched_stages(names, stages), report)
    numbers = summary(inspection, settings)
    for stage, dead in numbers.get("dead_channels", {}).items():
        if len(dead) == CHANNELS[stage]:
            print(f"{stage}: all channels are zero at all units searched")
    outcomes = {name: Outcome(reason=reason) for name, reason in left_out.items()}
    for name in (bar := tqdm(names, unit="figures", leave=False, disable=None)):
        bar.set_description(name)
        release_freed_memory()  # each figure has tensors of other sizes
        drawn = FIGURES[name].draw(inspection, settings)
        outcomes[name] = write_figures(name, drawn, folder, args.format, args.dpi)
    files = [file for outcome in outcomes.values() for file in (*outcome.files, *outcome.json)]
    is_complete = not any(outcome.failed for outcome in outcomes.values())
    if args.gallery:
        release_freed_memory()
        try:
            pages = write_gallery(inspection, settings, folder, gallery_stages)
            print(*pages[-2:], sep="\n")
            files += [file.relative_to(folder) for file in pages]
        except OSError:
            raise
        except Exception as error:
            is_complete = False
            say_error("gallery", error)
    if args.report and args.format == "png":
        print(write_report(folder, inspection, outcomes, numbers if is_searched else None, command))
        files.append(Path("report.html"))
    elif args.report:
        print("report.html: left out, a page shows PNG files, not PDF")
    write_summary(folder, numbers, inspection.network, files)
    print_hints(args, left_out)
    return is_complete


def forecast(args, names: list[str], searched: int, images_per_second: float) -> None:
    """Print how long a run of a minute or more will take, from the throughput of its search, and how to shorten it."""
    costs = {name: FIGURES[name].passes for name in names}
    seconds = (searched + sum(costs.values())) / images_per_second
    if seconds < SHORT_RUN_SECONDS:
        return
    if searched > max(QUICK_IMAGES, sum(costs.values())):
        shorter = format_duration((QUICK_IMAGES + sum(costs.values())) / images_per_second)
        advice = f"{format_duration(searched / images_per_second)} of it to search {searched:,} test images; "
        advice += f"about {shorter} with --limit {QUICK_IMAGES}"
    else:
        advice = f"most of it for {max(costs, key=costs.get)}; --figures NAME ... draws only what you name"
    gallery = ", and the gallery longer" if args.gallery else ""
    say(f"this will take about {format_duration(seconds)} on this CPU{gallery}, {advice}")


def print_hints(args, left_out: dict[str, str]) -> None:
    """Which flags draw figures that were left out only because they take long, or need the test images."""
    if slow := [name for name, reason in left_out.items() if reason == SLOW]:
        flags = f"--figures {' '.join(slow)}"
        print(f"{', '.join(slow)}: not drawn by default, minutes on a CPU; the same command with {flags}")
    if args.images and "why" in left_out and not args.figures:
        print("why it decides so for these pictures: the same command with --figures why, which needs the test images")


def check_settings(settings: Settings, names: list[str], inspection: Inspection) -> None:
    """A usage error for --classes that the network does not have, or an --occluder larger than its images."""
    size = inspection.metadata.image_size
    try:
        if "why" in names and settings.classes:
            class_numbers(settings.classes, inspection.metadata.classes)
    except ValueError as error:
        ArgumentParser(__doc__).error(f"--classes {error}")
    if "occlusion" in names and (settings.occluder or 0) > size:
        ArgumentParser(__doc__).error(f"--occluder {settings.occluder}: the network's images have {size} pixels")


def load_what_is_needed(args, settings: Settings) -> tuple[Inspection, list[str], dict[str, str]]:
    """The network with the images that the figures need, and what `choose_figures` returns.

    When nothing was asked for that needs the test images, and they are missing, their figures are left out with a
    message.
    """
    inspection = load_inspection(args.ckpt or default_checkpoint(), args.device, args.data, args.root)
    names, left_out = choose_figures(args.figures, bool(args.images), args.gallery)
    needs = needs_of(names, bool(args.images)) | ({"search"} if args.gallery else set())
    try:
        if needs & {"pictures", "search"}:
            inspection = add_preprocessing(inspection)
        if "search" in needs or ("pictures" in needs and not args.images):
            inspection = add_test_images(inspection, settings.limit)
            if (settings.image or 0) >= (count := len(inspection.images)):
                ArgumentParser(__doc__).error(f"--image {settings.image}: the test images are 0 to {count - 1}")
        if "pictures" in needs:
            inspection = add_pictures(inspection, settings, args.images)
    except sources.DataError as error:
        if args.images or args.data or args.root or args.figures or args.gallery:
            raise
        without = [name for name in names if FIGURES[name].needs != "checkpoint"]
        print(f"left out, they need the test images: {', '.join(without)}\n{error}")
        left_out |= dict.fromkeys(without, f"the test images are missing; {error}")
        names = [name for name in names if name not in without]
    return inspection, names, left_out


def main(argv=None):
    """The script. argv: flags, by default sys.argv[1:].

    Exits with 1 after an error that the user can fix or an error in a figure, 2 after wrong usage, 130 after Ctrl+C.
    """
    args = parse_args(argv)
    keep_freed_memory()
    command = shlex.join(["python", "visualizer.py", *(sys.argv[1:] if argv is None else argv)])
    with one_line_errors(sources.DataError, CheckpointError):
        try:
            is_complete = visualize(args, command)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
    if not is_complete:
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
