"""Draw what a trained ResNet-18 has learned: checkpoint -> plots/*.png, plots/*.json and plots/report.html.

python visualizer.py --ckpt                                 all figures that are fast to draw, and the report
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

if __name__ == "__main__":  # until main() can be interrupted: loading the libraries takes seconds
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"interrupted\n") and os._exit(130))

import torch
from tqdm import tqdm

from analysis.importance import METHODS
from analysis.inspection import (
    LoadedNetwork,
    add_pictures,
    add_preprocessing,
    add_search,
    add_test_images,
    load_inspection,
)
from analysis.settings import CHANNEL_CHOICES, SCALES, Settings
from dataset import sources
from figures import FIGURES, output, style
from figures.gallery import write_gallery
from figures.registry import SLOW, Outcome, choose_figures, needs_of
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
        "that is classified right with the median probability of its class; --seed draws the class)")  # fmt: skip
    add("--limit", type=number(int, least=1), help="number of test images to search, evenly spread (default: all)")

    add = parser.add_argument_group("figures").add_argument
    add("--figures", nargs="+", choices=FIGURES, metavar="NAME", help="some of those below (default: the quick ones)")
    add("--stages", nargs="+", choices=STAGES, help="layers to show (default: "
        f"{' '.join(defaults.stages)}, in the gallery all)")  # fmt: skip
    add("--channels", nargs="+", default=[defaults.channels], metavar="N",
        type=lambda text: text if text in CHANNEL_CHOICES else number(int, least=0)(text),
        help="channel numbers of every stage, or one word: different (the 9 strongest that are not similar to each "
        "other), strongest, random (9 drawn by --seed), all")  # fmt: skip
    add("--seed", type=number(int, least=0), default=defaults.seed, help="seed of --channels random, of the image to "
        "explain, of hierarchy's channels and of correspondence's squares")  # fmt: skip
    add("--top", type=number(int, least=1, most=25), default=defaults.top, help="images per channel")
    add("--rules", nargs="+", choices=RULES, default=list(defaults.rules), help="backward rules of the ReLUs")
    add("--unpool", choices=UNPOOLINGS, default=defaults.unpool, help="sum is exact; overwrite is F.max_unpool2d")
    add("--border", action="store_true", help="also search units that see the zero padding")
    add("--scale", choices=SCALES, default=defaults.scale, help="top9: a color scale per tile, or per channel and rule")
    add("--units", choices=UNITS, default=defaults.units, help="top9: reconstruct the strongest unit or the whole map")
    add("--classes", nargs=2, metavar="CLASS", help="why: the two classes to compare, by name or number "
        "(default: the two most probable)")  # fmt: skip
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="faithfulness, attributions: importance "
        f"maps to score and to draw, some of {shlex.join(METHODS)} (default: all)")  # fmt: skip
    add("--score-images", type=number(int, least=2), metavar="N", help="faithfulness, attributions: test images to "
        "score, each in about 5 s on two cores; fewer than 81 also reduce the units per channel (default: those "
        "searched, up to 1000; on a CPU a twentieth of them, from 2 to 8)")  # fmt: skip
    add("--occluder", type=number(int, least=1), metavar="PIXELS", help="occlusion: square's side (default: 48 at 224)")

    add = parser.add_argument_group("output").add_argument
    add("--format", choices=("png", "pdf"), default="png", help="file format of the figures; pdf for LaTeX")
    add("--dpi", type=number(int, least=50, most=1200), default=style.DPI, help="dots per inch, of up to 7 inches")
    add("--gallery", action="store_true", help="also write index.html and atlas.json: all channels, or --channels")
    add("--report", action=BooleanOptionalAction, default=True, help="write report.html: settings, results and figures")
    add("--out", default="plots", help="output folder")

    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=number(int, least=1, most=10**6), default=defaults.batch_size, help="images at a time")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    args = parser.parse_args(argv)
    numbers = [channel for channel in args.channels if isinstance(channel, int)]
    if len(numbers) < len(args.channels) > 1:
        parser.error("--channels takes numbers, or one word")
    args.channels = numbers or args.channels[0]
    if args.images and args.image is not None:
        parser.error("--image is a test image, --images are your own: pass one of them")
    for stage in args.stages or defaults.stages:
        if wrong := [channel for channel in numbers if channel >= CHANNELS[stage]]:
            parser.error(f"--channels {wrong[0]}: {stage} has the channels 0 to {CHANNELS[stage] - 1}")
    return args


def settings_from(args) -> Settings:
    """What is visualised, from the flags of the same names: each name and number once, in the order given."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value if name == "classes" else dict.fromkeys(value))
    return Settings(**{name: value for name, value in given.items() if value is not None})


def visualize(args, command: str) -> bool:
    """Draw what was asked for, and say whether there was no error. command: as typed, for the report."""
    torch.backends.cudnn.allow_tf32 = False  # the pictures are then as exact as on a CPU
    settings = settings_from(args)
    inspection, names, left_out = load_what_is_needed(args, settings)
    folder = output_folder(args.out)
    gallery_stages = () if not args.gallery else settings.stages if args.stages else STAGES
    if is_searched := args.gallery or "search" in needs_of(names, bool(args.images)):
        stages = {*settings.stages, *gallery_stages, *(stage for name in names for stage in FIGURES[name].stages)}
        report = partial(forecast, args, names, len(inspection.searched)) if inspection.device.type == "cpu" else None
        inspection = add_search(inspection, settings, sorted(stages, key=STAGES.index), report)
    numbers = summary(inspection, settings)
    for stage, dead in numbers.get("dead_channels", {}).items():
        if len(dead) == CHANNELS[stage]:
            print(f"{stage}: all channels are zero at all units searched")
    outcomes = {name: Outcome(reason=reason) for name, reason in left_out.items()}
    for name in (bar := tqdm(names, unit="figures", leave=False, disable=None)):
        bar.set_description(name)
        release_freed_memory()  # each figure has tensors of other sizes
        figures = FIGURES[name].draw(inspection, settings)
        outcomes[name] = output.write_figures(name, figures, folder, args.format, args.dpi)
    files = [file for outcome in outcomes.values() for file in outcome.files]
    is_complete = not any(outcome.failed for outcome in outcomes.values())
    if args.gallery:
        release_freed_memory()
        try:
            files += write_gallery(inspection, settings, folder, gallery_stages)
        except OSError:
            raise
        except Exception as error:
            is_complete = False
            output.say_error("gallery", error)
    if args.report and args.format == "png":  # a page cannot show PDF files
        files.append(write_report(folder, inspection, outcomes, numbers if is_searched else None, command))
    output.write_summary(folder, numbers, inspection.network, files)
    if slow := [name for name, reason in left_out.items() if reason == SLOW]:
        print("not drawn by default, minutes on a CPU: the same command with --figures", *slow)
    if args.images and "why" in left_out and not args.figures:
        print("why it decides so for these pictures: the same command with --figures why, which needs the test images")
    return is_complete


def forecast(args, names: list[str], searched: int, images_per_second: float) -> None:
    """Print how long a run of a minute or more will take, from the throughput of its search, and how to shorten it."""
    costs = {name: FIGURES[name].passes for name in names}
    drawing, search = sum(costs.values()) / images_per_second, searched / images_per_second
    if drawing + search < SHORT_RUN_SECONDS:
        return
    advice = f"most of it for {max(costs, key=costs.get)}; --figures NAME ... draws only what you name"
    if searched > QUICK_IMAGES and search > drawing:
        shorter = format_duration(QUICK_IMAGES / images_per_second + drawing)
        advice = f"{format_duration(search)} of it to search {searched:,} test images; "
        advice += f"about {shorter} with --limit {QUICK_IMAGES}"
    gallery = ", and the gallery longer" if args.gallery else ""
    output.say(f"this will take about {format_duration(drawing + search)} on this CPU{gallery}, {advice}")


def load_what_is_needed(args, settings: Settings) -> tuple[LoadedNetwork, list[str], dict[str, str]]:
    """The network with the images that the figures need, and what `choose_figures` returns.

    When nothing was asked for that needs the test images, and they are missing, their figures are left out with a
    message. A flag that the network or its images do not allow is a usage error.
    """
    usage_error = ArgumentParser(__doc__).error
    inspection = load_inspection(args.ckpt or default_checkpoint(), args.device, args.data, args.root)
    names, left_out = choose_figures(args.figures, bool(args.images), args.gallery)
    needs = needs_of(names, bool(args.images)) | ({"search"} if args.gallery else set())
    try:
        if needs & {"pictures", "search"}:
            inspection = add_preprocessing(inspection)
        if "search" in needs or ("pictures" in needs and not args.images):
            inspection = add_test_images(inspection, settings.limit)
            if (settings.image or 0) >= (count := len(inspection.images)):
                usage_error(f"--image {settings.image}: the test images are 0 to {count - 1}")
        if "pictures" in needs:
            inspection = add_pictures(inspection, settings, args.images)
    except sources.DataError as error:
        if args.images or args.data or args.root or args.figures or args.gallery:
            raise
        without = [name for name in names if FIGURES[name].needs != "checkpoint"]
        print(f"left out, they need the test images: {', '.join(without)}\n{error}")
        left_out |= dict.fromkeys(without, f"the test images are missing; {error}")
        names = [name for name in names if name not in without]
    try:
        if "why" in names and settings.classes:
            class_numbers(settings.classes, inspection.metadata.classes)
    except ValueError as error:
        usage_error(f"--classes {error}")
    if "occlusion" in names and (settings.occluder or 0) > (size := inspection.metadata.image_size):
        usage_error(f"--occluder {settings.occluder}: the network's images have {size} pixels")
    return inspection, names, left_out


def main(argv=None):
    """The script. argv: flags, by default sys.argv[1:].

    Exits with 1 after an error that the user can fix or an error in a figure, 2 after wrong usage, 130 after Ctrl+C.
    """
    args = parse_args(argv)
    keep_freed_memory()
    command = shlex.join(["python", "visualizer.py", *(sys.argv[1:] if argv is None else argv)])
    with one_line_errors(sources.DataError, CheckpointError):
        if not visualize(args, command):
            sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
