"""Shows what a trained ResNet-18 has learned: checkpoint -> plots/*.png and plots/top9.json.

python visualizer.py --ckpt                                 every figure of checkpoints/model.pt
python visualizer.py --ckpt PATH --images cat.jpg dog.jpg   one's own pictures instead, in plots/cat/ and plots/dog/
python visualizer.py --figures top9 --stages conv4_x --channels 3 17 --rules deconvnet guided gradient
"""

import json
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import checkpoint
import data
import figures
from activations import TopActivations, mean_correlation, search, top_activations, windows
from command_line import ArgumentParser, number, one_line_errors, output_folder, pick_device
from network import CHANNELS, STAGES
from reverse_network import RULES, UNITS, UNPOOLINGS, ReverseResNet18, isolate

__all__ = ["top_activations"]  # part of this module's interface, used by others
STRONGEST = 9  # channels drawn where none are asked for


def parse_args(argv=None):
    parser = ArgumentParser("Draw what a trained ResNet-18 has learned.")

    add = parser.add_argument_group("what is looked at").add_argument
    add("--ckpt", nargs="?", default="checkpoints/model.pt", const="checkpoints/model.pt", metavar="PATH",
        help="a model.pt or last.pt of train.py, or a state dict with torchvision's names")  # fmt: skip
    add("--data", help=f"{', '.join(data.DATASETS)}, or a folder; its test split is searched (default: as trained)")
    add("--root", help="folder of CIFAR-10 (default: as trained)")
    add("--images", nargs="+", metavar="FILE", help="pictures to look at instead of the first test image; without "
        "--figures, the test split is then not searched")  # fmt: skip
    add("--limit", type=number(int, least=1), help="search only so many test images, evenly spread")

    add = parser.add_argument_group("what is drawn").add_argument
    add("--figures", nargs="+", choices=FIGURES, metavar="NAME", help=f"some of {', '.join(FIGURES)} (default: all)")
    add("--stages", nargs="+", choices=STAGES, default=["conv1", "conv5_x"], help="stages of the network")
    add("--channels", nargs="+", type=number(int, least=0), metavar="N",
        help=f"channels of every stage (default: the {STRONGEST} with the highest activation)")  # fmt: skip
    add("--top", type=number(int, least=1, most=25), default=9, help="images a channel")
    add("--rules", nargs="+", choices=RULES, default=["deconvnet", "guided"], help="ways back through a ReLU")
    add("--unpool", choices=UNPOOLINGS, default="sum", help="sum is exact; overwrite is F.max_unpool2d")
    add("--units", choices=UNITS, default="peak", help="top 9: reconstruct the strongest unit or the whole map")

    add = parser.add_argument_group("machine and output").add_argument
    add("--batch-size", type=number(int, least=1), default=64, help="images at once in the search")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--out", default="plots", help="folder for the figures and top9.json")

    args = parser.parse_args(argv)
    for stage in args.stages:
        if wrong := [channel for channel in args.channels or [] if channel >= CHANNELS[stage]]:
            parser.error(f"--channels {wrong[0]}: {stage} has the channels 0 to {CHANNELS[stage] - 1}")
    return args


class Picture(NamedTuple):
    """One image to be explained: where its figures go, what it is, (3, S, S) uint8, and its class where known."""

    folder: str
    title: str
    image: Tensor
    label: str | None


class Subject:
    """What the figures are about: a network and its test images. What costs time is made once, when it is needed."""

    def __init__(self, args):
        self.args, self.device = args, pick_device(args.device)
        network, self.info = checkpoint.load_network(args.ckpt)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.image_size, config = self.info["image_size"], self.info["config"]
        self.source = args.data or config.get("data", "cifar10")
        self.root = args.root or config.get("root", "data")
        if self.info["mean"] is None:  # a plain state dict: only its data can tell
            images, _, classes = data.load(self.source, "train", self.root, self.image_size)
            mean, std = data.statistics(images)
            self.info |= {"mean": mean, "std": std, "classes": classes}
        self.classes = list(self.info["classes"])
        if len(self.classes) != network.fc.out_features:
            raise data.DataError(
                f"{args.ckpt} has {network.fc.out_features} outputs, {self.source} has {len(self.classes)} classes: "
                "pass --data with the data it was trained on"
            )
        self.preprocess = data.Preprocess(self.image_size, self.info["mean"], self.info["std"], self.device)
        self.mirrors = {rule: ReverseResNet18(self.network, rule, args.unpool) for rule in args.rules}
        self.entries: list[dict] = []  # of top9.json

    @cached_property
    def test(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The test split: images, labels, and the names of its classes."""
        images, labels, classes = data.load(self.source, "test", self.root, self.image_size)
        if list(classes) != self.classes:
            print(f"note: the classes of {self.source} are not those the network was trained on")
        return images, labels, classes

    @cached_property
    def files(self) -> list[Path] | None:
        return data.list_files(self.source, "test")

    @cached_property
    def searched(self) -> Tensor:
        """Indices of the test images that are searched."""
        count = len(self.test[0])
        limit = min(self.args.limit or count, count)
        return torch.arange(limit) * count // limit

    @cached_property
    def top(self) -> dict[str, TopActivations]:
        """The strongest images of every channel of every stage asked for, in one pass."""
        images = self.test[0]
        parts = tqdm(self.searched.split(self.args.batch_size), "search", unit="batches", leave=False, disable=None)
        batches = (self.preprocess(images[part].to(self.device)) for part in parts)
        return search(self.network, batches, self.args.stages, self.args.top)

    @cached_property
    def pictures(self) -> list[Picture]:
        """The images to explain: the user's files, or the first of the test split."""
        if not self.args.images:
            images, labels, classes = self.test
            label = classes[labels[0]]
            return [Picture("", f"test image 0: {label}", images[0], label)]
        pictures = []
        for file in map(Path, self.args.images):
            used = [picture.folder for picture in pictures]
            folder = file.stem if file.stem not in used else f"{file.stem}-{len(pictures)}"
            title = f"{file.name}, resized and cropped to {self.image_size}x{self.image_size}"
            pictures.append(Picture(folder, title, data.read_image(file, self.image_size), None))
        return pictures

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, stage: str, channels, units) -> tuple[dict[str, Tensor], Tensor]:
        """What a channel an image saw: rule -> (N, 3, S, S), and the logits, of (N, 3, H, W) uint8 images."""
        trace = self.network.trace(self.preprocess(images.to(self.device)))
        signal = isolate(trace.features[stage], channels, units)
        drawn = {rule: mirror(signal, stage, trace).cpu() for rule, mirror in self.mirrors.items()}
        return drawn, self.network.classify(trace.features["conv5_x"])

    def channel(self, stage: str, channel: int) -> dict:
        """A channel's strongest images and their reconstructions, as figures.top9_channel draws them."""
        images, labels, classes = self.test
        top = self.top[stage]
        positions, indices = top.positions[channel].cpu(), self.searched[top.indices[channel].cpu()]
        units = positions if self.args.units == "peak" else "map"
        drawn, logits = self.reconstruct(images[indices], stage, channel, units)
        predicted = logits.argmax(1).tolist()
        shown = windows(list(drawn.values()))
        resized = data.resize(images[indices], self.image_size)
        patches = np.stack([to_array(image[:, y, x]) for image, (y, x) in zip(resized, shown, strict=True)])
        cropped = {
            rule: np.stack([to_array(one[:, y, x]) for one, (y, x) in zip(each, shown, strict=True)])
            for rule, each in drawn.items()
        }
        scale = {rule: figures.limit_of(each) for rule, each in cropped.items()}
        correlation = {rule: mean_correlation(each) for rule, each in cropped.items()}
        width = top.map_size[1]
        entries = [
            {
                "stage": stage,
                "channel": channel,
                "rank": rank + 1,
                "index": index,
                "activation": top.scores[channel, rank].item(),
                "row": positions[rank].item() // width,
                "column": positions[rank].item() % width,
                "label": classes[labels[index]],
                "predicted": self.classes[predicted[rank]],
                "file": str(self.files[index]) if self.files else None,
                "scale": scale,
                "correlation": correlation,
            }
            for rank, index in enumerate(indices.tolist())
        ]
        return {
            "channel": channel,
            "patches": patches,
            "pictures": cropped,
            "scale": scale,
            "correlation": correlation,
            "entries": entries,
        }


def to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), as matplotlib takes pictures."""
    return image.permute(1, 2, 0).numpy()


# --- the figures: each yields (file name without .png, Figure) ---------------------------------------------------------


def draw_training_curves(subject: Subject) -> Iterator[tuple[str, Figure]]:
    if subject.info["history"]:
        yield "training_curves", figures.training_curves(subject.info["history"])
    else:
        print("training_curves: left out, this checkpoint has no history")


def draw_filters(subject: Subject) -> Iterator[tuple[str, Figure]]:
    weights = subject.network.conv1.weight.detach().cpu().contiguous().numpy()
    yield "conv1_filters", figures.filters(weights)
    for channel, name in enumerate(("red", "green", "blue")):
        yield f"conv1_filters_{name}", figures.filter_channel(weights[:, channel], name)


def draw_input(subject: Subject) -> Iterator[tuple[str, Figure]]:
    for picture in subject.pictures:
        with torch.inference_mode():
            logits = subject.network(subject.preprocess(picture.image[None].to(subject.device)))
        probabilities = logits.softmax(1)[0].cpu().numpy()
        resized = to_array(data.resize(picture.image[None], subject.image_size)[0])
        figure = figures.input_image(resized, picture.title, subject.classes, probabilities, picture.label)
        yield f"{picture.folder}/input", figure


def draw_feature_maps(subject: Subject) -> Iterator[tuple[str, Figure]]:
    for picture in subject.pictures:
        with torch.inference_mode():
            features = subject.network.trace(subject.preprocess(picture.image[None].to(subject.device))).features
        for stage in subject.args.stages:
            maps = features[stage][0].cpu().contiguous().numpy()
            yield f"{picture.folder}/{stage}_feature_maps", figures.feature_maps(maps, f"{stage}, {picture.title}")


def draw_reconstructions(subject: Subject) -> Iterator[tuple[str, Figure]]:
    for picture in subject.pictures:
        for stage in subject.args.stages:
            with torch.inference_mode():
                batch = subject.preprocess(picture.image[None].to(subject.device))
                maps = subject.network.trace(batch, stage).features[stage][0].cpu()
            channels = subject.args.channels or strongest(maps.amax((1, 2)))
            copies = picture.image.expand(len(channels), -1, -1, -1)
            drawn, _ = subject.reconstruct(copies, stage, channels, "map")
            pictures = {rule: np.stack([to_array(one) for one in each]) for rule, each in drawn.items()}
            resized = to_array(data.resize(picture.image[None], subject.image_size)[0])
            title = f"{stage}, {picture.title}: whole maps reconstructed, each on a scale of its own around grey"
            figure = figures.reconstructions(resized, maps[channels].numpy(), pictures, channels, title)
            yield f"{picture.folder}/{stage}_reconstructions", figure


def draw_top9(subject: Subject) -> Iterator[tuple[str, Figure]]:
    args = subject.args
    units = "strongest unit" if args.units == "peak" else "whole map"
    for stage in args.stages:
        chosen = args.channels or strongest(subject.top[stage].scores[:, 0].cpu())
        channels = []
        for number_ in chosen:
            channels.append(subject.channel(stage, number_))
            subject.entries += channels[-1]["entries"]
            title = f"{stage}, channel {number_}: the {args.top} images with the strongest unit, from its {units}"
            yield f"{stage}_top9_channel_{number_}", figures.top9_channel(channels[-1], title)
        searched = f"{len(subject.searched):,} test images"
        title = f"{stage}: the {args.top} strongest of {searched} for each channel, reconstructed from the {units}"
        yield f"{stage}_top9", figures.top9_overview(channels, title)


def strongest(peaks: Tensor) -> list[int]:
    """The channels with the highest peaks, (C,), in this order."""
    return peaks.sort(descending=True, stable=True).indices[:STRONGEST].tolist()


FIGURES = {
    "training_curves": draw_training_curves,
    "filters": draw_filters,
    "input": draw_input,
    "feature_maps": draw_feature_maps,
    "reconstructions": draw_reconstructions,
    "top9": draw_top9,
}


def visualize(args) -> None:
    """Draws what was asked for."""
    subject = Subject(args)
    folder = output_folder(args.out)
    names = args.figures or [name for name in FIGURES if not (name == "top9" and args.images)]
    for name in names:
        started = time.monotonic()
        for path, figure in FIGURES[name](subject):
            file = folder / f"{path}.png".lstrip("/")
            file.parent.mkdir(exist_ok=True)
            with checkpoint.atomic_file(file) as stream:
                figure.savefig(stream, format="png", dpi=200)
            print(f"{file} ({time.monotonic() - started:.1f} s)", flush=True)
            started = time.monotonic()
    if subject.entries:
        with checkpoint.atomic_file(folder / "top9.json") as stream:
            stream.write(json.dumps(subject.entries, indent=1).encode())
        print(folder / "top9.json")


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors(data.DataError, checkpoint.CheckpointError):
        visualize(args)


if __name__ == "__main__":
    main()
