"""Draw what a trained ResNet-18 has learned: checkpoint -> plots/*.png and plots/top9.json.

python visualizer.py --ckpt                                 every figure of checkpoints/model.pt
python visualizer.py --ckpt PATH --images cat.jpg dog.jpg   one's own pictures instead, in plots/cat/ and plots/dog/
python visualizer.py --figures top9 --stages conv4_x --channels 3 17 --rules deconvnet guided gradient
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure

from analysis.activations import strongest, top_activations
from analysis.inspection import Subject
from dataset import sources
from figures import drawing, style, training_curves
from figures.gallery import write_gallery
from figures.image_grid import limit_of
from figures.rules import draw_branches, draw_evolution, draw_rules, draw_sanity, draw_unpooling
from figures.scores import draw_confusion_matrix, draw_mistakes, summary
from network import CHANNELS, STAGES
from reverse_network import RULES, UNITS, UNPOOLINGS
from runtime import checkpoint
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder
from runtime.device import keep_freed_memory

__all__ = ["top_activations"]  # part of this module's interface, used by others
A_PAGE = 18  # channels of an overview


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)

    add = parser.add_argument_group("what is looked at").add_argument
    add("--ckpt", nargs="?", default="checkpoints/model.pt", const="checkpoints/model.pt", metavar="PATH",
        help="a model.pt or last.pt of train.py, or a state dict with torchvision's names")  # fmt: skip
    add("--data", help=f"{', '.join(sources.DATASETS)}, or a folder; its test split is searched (default: as trained)")
    add("--root", help="folder of CIFAR-10 (default: as trained)")
    add("--images", nargs="+", metavar="FILE", help="pictures to look at instead of the first test image; without "
        "--figures, the test split is then not searched")  # fmt: skip
    add("--limit", type=number(int, least=1), help="search only so many test images, evenly spread (default: all)")

    add = parser.add_argument_group("what is drawn").add_argument
    add("--figures", nargs="+", choices=FIGURES, metavar="NAME", help=f"some of {', '.join(FIGURES)} (default: all)")
    add("--stages", nargs="+", choices=STAGES, default=["conv1", "conv5_x"], help="stages of the network")
    add("--channels", nargs="+", type=channel_number, metavar="N",
        help="channels of every stage, or all (default: the 9 with the highest activation)")  # fmt: skip
    add("--top", type=number(int, least=1, most=25), default=9, help="images a channel")
    add("--rules", nargs="+", choices=RULES, default=["deconvnet", "guided"], help="ways back through a ReLU")
    add("--unpool", choices=UNPOOLINGS, default="sum", help="sum is exact; overwrite is F.max_unpool2d")
    add("--units", choices=UNITS, default="peak", help="top 9: reconstruct the strongest unit or the whole map")

    add("--format", choices=("png", "pdf"), default="png", help="of the figures; pdf for LaTeX")
    add("--dpi", type=number(int, least=50, most=1200), default=style.DPI, help="dots an inch, of 7 inches")
    add("--gallery", action="store_true", help="also a page of all channels, or those asked for: index.html in --out")

    add = parser.add_argument_group("machine and output").add_argument
    add("--batch-size", type=number(int, least=1, most=10**6), default=24, help="images at once in the search")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--out", default="plots", help="folder for the figures and top9.json")

    args = parser.parse_args(argv)
    if "all" in (args.channels or []):
        args.channels = "all"
    for name in ("stages", "channels", "rules", "figures"):
        if isinstance(getattr(args, name), list):
            setattr(args, name, list(dict.fromkeys(getattr(args, name))))  # each once, in the order given
    for stage in args.stages:
        asked = [] if args.channels == "all" else args.channels or []
        if wrong := [channel for channel in asked if channel >= CHANNELS[stage]]:
            parser.error(f"--channels {wrong[0]}: {stage} has the channels 0 to {CHANNELS[stage] - 1}")
    return args


def channel_number(text: str) -> int | str:
    """A channel's number, or "all", for argparse."""
    return text if text == "all" else number(int, least=0)(text)


# --- the figures: each yields (path without .png, Figure) -------------------------------------------------------------


def draw_training_curves(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """Loss and accuracy while it was trained, where the checkpoint knows."""
    smoothing = subject.info.config.get("label_smoothing", 0)
    if subject.info.history:
        yield Path("training_curves"), training_curves.training_curves(subject.info.history, smoothing)
    else:
        print("training_curves: left out, this checkpoint has no history")


def draw_filters(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The first layer's filters, in colour and by input channel."""
    weights = subject.network.conv1.weight.detach().cpu().contiguous().numpy()
    yield Path("conv1_filters"), drawing.filters(weights)
    limit = limit_of(weights)
    for channel, name in enumerate(("red", "green", "blue")):
        yield Path(f"conv1_filters_{name}"), drawing.filter_channel(weights[:, channel], name, limit)


def draw_input(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """Each picture to explain, with the network's prediction."""
    for picture in subject.pictures:
        with torch.inference_mode():
            logits = subject.network(subject.prepare(picture))
        probabilities = logits.softmax(1)[0].cpu().numpy()
        figure = drawing.input_image(
            subject.shown(picture), picture.title, subject.classes, probabilities, picture.label
        )
        yield Path(picture.folder, "input"), figure


def draw_feature_maps(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """All maps of the stages asked for, of each picture to explain."""
    for picture in subject.pictures:
        for stage, maps in subject.maps(picture).items():
            figure = drawing.feature_maps(maps.contiguous().numpy(), f"{stage} of {picture.title}")
            yield Path(picture.folder, f"{stage}_feature_maps"), figure


def draw_reconstructions(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The strongest channels of each picture to explain, each map beside its reconstructions."""
    for picture in subject.pictures:
        for stage, maps in subject.maps(picture).items():
            asked = isinstance(subject.args.channels, list)
            channels = subject.args.channels if asked else strongest(maps.amax((1, 2)))
            pictures = subject.reconstruct_maps(picture, stage, channels)
            which = "channels asked for" if asked else "strongest channels"
            title = f"{stage} of {picture.title}: the {which}, reconstructed from their whole maps{subject.unpooling}"
            figure = drawing.reconstructions(subject.shown(picture), maps[channels].numpy(), pictures, channels, title)
            yield Path(picture.folder, f"{stage}_reconstructions"), figure


def draw_top9(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The strongest test images of some channels: each channel large, then all; leaves top9.json its entries."""
    units = ("strongest unit" if subject.args.units == "peak" else "whole map") + subject.unpooling
    for stage in subject.args.stages:
        title = f"{stage}: the {subject.count} for each channel, reconstructed from the {units}"
        numbers, dead = subject.alive_and_dead(stage, subject.channels(stage))
        if dead:
            print(f"{stage}: no image excites {len(dead)} channels: {' '.join(map(str, dead))}")
        pages = [numbers[n : n + A_PAGE] for n in range(0, len(numbers), A_PAGE)]
        for page, on_page in enumerate(pages, 1):
            channels = []
            for channel in on_page:
                channels.append(subject.channel(stage, channel))
                subject.entries += channels[-1]["entries"]
                of_one = f"{stage}, channel {channel}: the {subject.count}, reconstructed from the {units}"
                yield Path(f"{stage}_top9_channel_{channel}"), drawing.top9_channel(channels[-1], of_one)
            name = f"{stage}_top9" + (f"_page_{page}" if len(pages) > 1 else "")
            yield Path(name), drawing.top9_overview(channels, title)


OF_PICTURES = {"input": draw_input, "feature_maps": draw_feature_maps, "reconstructions": draw_reconstructions}
OF_THE_TEST_SPLIT = {
    "top9": draw_top9,
    "rules": draw_rules,
    "branches": draw_branches,
    "unpooling": draw_unpooling,
    "sanity": draw_sanity,
    "evolution": draw_evolution,
    "confusion_matrix": draw_confusion_matrix,
    "mistakes": draw_mistakes,
}
FIGURES = {"training_curves": draw_training_curves, "filters": draw_filters, **OF_PICTURES, **OF_THE_TEST_SPLIT}


def visualize(args) -> None:
    """Draws what was asked for, and says what was written."""
    torch.backends.cudnn.allow_tf32 = False  # pictures as exact as on a CPU
    subject = Subject(args)
    names = what_to_draw(subject)
    folder = output_folder(args.out)
    for name in names:
        started = time.monotonic()
        for path, figure in FIGURES[name](subject):
            file = folder / f"{path}.{args.format}"
            file.parent.mkdir(exist_ok=True)
            with checkpoint.atomic_file(file) as stream:
                style.save(figure, stream, args.format, args.dpi)
            print(f"{file} ({time.monotonic() - started:.1f} s)", flush=True)
            started = time.monotonic()
    if args.gallery:
        print(write_gallery(subject, folder))
    if "top9" in names:
        write_json(folder / "top9.json", subject.entries)
    if args.gallery or OF_THE_TEST_SPLIT.keys() & names:
        write_json(folder / "summary.json", summary(subject))


def what_to_draw(subject: Subject) -> list[str]:
    """The figures asked for, or all that go with --images, once it is known that their images can be read.

    Where nothing was asked for that needs test images, and they are not there, their figures are left out, with a word.
    """
    args = subject.args
    names = args.figures or [name for name in FIGURES if not (args.images and name in OF_THE_TEST_SPLIT)]
    try:
        if args.gallery or OF_THE_TEST_SPLIT.keys() & names:
            _ = subject.preprocess, subject.test
        if OF_PICTURES.keys() & names:
            _ = subject.preprocess, subject.pictures
    except sources.DataError as error:
        if args.images or args.data or args.root or args.figures or args.gallery:
            raise
        without = [name for name in names if name in OF_PICTURES or name in OF_THE_TEST_SPLIT]
        print(f"left out, they need the test images: {', '.join(without)}\n{error}")
        return [name for name in names if name not in without]
    return names


def write_json(file: Path, content) -> None:
    """Writes a file whole or not at all, and says so."""
    with checkpoint.atomic_file(file) as stream:
        stream.write(json.dumps(content, indent=1, allow_nan=False).encode())
    print(file)


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with one_line_errors(sources.DataError, checkpoint.CheckpointError):
        visualize(args)


if __name__ == "__main__":
    main()
