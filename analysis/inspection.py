"""What the figures are about: a network, its test images, and what its channels make of them."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import TopActivations, cut, mean_correlation, search, strongest, windows
from dataset import folders, sources
from dataset.preprocess import Preprocess, mean_and_std, resize
from figures.image_grid import limit_of
from network import CHANNELS, STAGES
from reverse_network import ReverseResNet18, isolate
from runtime.checkpoint import CheckpointError, load_network
from runtime.device import pick_device


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
        network, self.info = load_network(args.ckpt)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.image_size, config = self.info.image_size, self.info.config
        self.source = args.data or config.get("data", "cifar10")
        self.root = args.root or config.get("root", "data")
        self.unpooling = "" if args.unpool == "sum" else ", unpooling that overwrites"  # for titles
        self.mirrors = {rule: ReverseResNet18(self.network, rule, args.unpool) for rule in args.rules}
        self.entries: list[dict] = []  # of top9.json
        self._logits: dict[int, Tensor] = {}  # of test images, as far as known

    @cached_property
    def facts(self) -> tuple[list[str], list[float], list[float]]:
        """The classes' names, mean and deviation: the checkpoint's; of a plain state dict only its data can tell."""
        if self.info.mean is not None:
            return list(self.info.classes), self.info.mean, self.info.std
        images, _, classes = sources.load(self.source, "train", self.root, self.image_size)
        if len(classes) != (outputs := self.network.fc.out_features):
            raise sources.DataError(
                f"{self.args.ckpt} has {outputs} outputs, {self.source} has {len(classes)} classes: "
                "pass --data with the data it was trained on"
            )
        return list(classes), *mean_and_std(images)

    @property
    def classes(self) -> list[str]:
        """The names of what the network tells apart."""
        return self.facts[0]

    @cached_property
    def preprocess(self) -> Preprocess:
        """What makes the network's input of stored images."""
        return Preprocess(self.image_size, *self.facts[1:], self.device)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The test split: images, labels, and the names of its classes."""
        images, labels, classes = sources.load(self.source, "test", self.root, self.image_size)
        if list(classes) != self.classes:
            print(f"note: the classes of {self.source} are not those the network was trained on")
        return images, labels, classes

    @property
    def comparable(self) -> bool:
        """Whether the labels of the test images are those the network knows."""
        return list(self.test[2]) == self.classes

    @cached_property
    def files(self) -> list[Path] | None:
        """Where the test images come from; None for a named data set."""
        return sources.list_files(self.source, "test")

    @cached_property
    def searched(self) -> Tensor:
        """Indices of the test images that are searched."""
        count = len(self.test[0])
        limit = min(self.args.limit or count, count)
        return torch.arange(limit) * count // limit

    @property
    def count(self) -> str:
        """What is shown of a channel, for titles."""
        searched = len(self.searched)
        return f"{min(self.args.top, searched)} strongest of {searched:,} test images"

    def batches(self, title: str) -> Iterator[Tensor]:
        """The searched images as the network takes them, with a progress bar on a terminal."""
        images = self.test[0]
        parts = tqdm(self.searched.split(self.args.batch_size), title, unit="batches", leave=False, disable=None)
        return (self.preprocess(images[part].to(self.device)) for part in parts)

    @cached_property
    def top(self) -> dict[str, TopActivations]:
        """The strongest images of every channel of every stage asked for, in one pass."""
        top, logits = search(self.network, self.batches("search"), self.args.stages, self.args.top)
        if logits is not None:
            self._logits = dict(zip(self.searched.tolist(), logits.cpu(), strict=True))
        for stage, found in top.items():
            self.check_finite(found.scores, f"activations of {stage}")
        return top

    def check_finite(self, values: Tensor, what: str) -> Tensor:
        """The values. Raises CheckpointError when one is no number: a figure of them would show nothing true."""
        if not values.isfinite().all():
            raise CheckpointError(f"{self.args.ckpt}: {what} are not finite: pass other weights")
        return values

    @cached_property
    def pictures(self) -> list[Picture]:
        """The images to explain: the user's files, or the first of the test split."""
        if not self.args.images:
            images, labels, classes = self.test
            label = classes[labels[0]]
            return [Picture("", f"test image 0 ({label})", images[0], label)]
        pictures = []
        for file in map(Path, self.args.images):
            used = {picture.folder for picture in pictures}
            stem = file.stem.strip(".") or "image"
            names = (stem, *(f"{stem}-{n}" for n in range(2, len(used) + 3)))
            folder = next(name for name in names if name not in used)
            name = file.name.encode(errors="replace").decode()  # a file's name may be no text
            title = f"{name}, resized and cropped to {self.image_size}x{self.image_size}"
            pictures.append(Picture(folder, title, folders.read_image(file, self.image_size), None))
        return pictures

    def prepare(self, picture: Picture) -> Tensor:
        """A picture as the network takes it: (1, 3, S, S), normalised, on the device."""
        return self.preprocess(picture.image[None].to(self.device))

    def shown(self, picture: Picture) -> np.ndarray:
        """A picture as matplotlib takes it, of the network's size: (S, S, 3) in 0..1."""
        return to_array(resize(picture.image[None], self.image_size)[0])

    def channels(self, stage: str) -> list[int]:
        """The channels of a stage to draw: those asked for, or the ones with the highest peaks."""
        return list(range(CHANNELS[stage])) if self.args.channels == "all" else self.chosen(stage)

    def chosen(self, stage: str) -> list[int]:
        """The same for figures that have room for a few: where all are asked for, the ones with the highest peaks."""
        asked = isinstance(self.args.channels, list)
        return self.args.channels if asked else strongest(self.top[stage].scores[:, 0].cpu())

    def alive_and_dead(self, stage: str, channels: Iterable[int]) -> tuple[list[int], list[int]]:
        """Those of the channels that some searched image excites, and the others."""
        excited = (self.top[stage].scores[:, 0] > 0).tolist()
        parts = [], []
        for channel in channels:
            parts[not excited[channel]].append(channel)
        return parts

    @torch.inference_mode()
    def logits(self, indices: list[int]) -> Tensor:
        """What the network says to test images: (n, classes)."""
        unknown = torch.tensor([index for index in indices if index not in self._logits], dtype=torch.int64)
        parts = unknown.split(self.args.batch_size) if len(unknown) else ()
        for part in tqdm(parts, "predictions", unit="batches", leave=False, disable=None if len(parts) > 1 else True):
            logits = self.network(self.preprocess(self.test[0][part].to(self.device)))
            self._logits |= zip(part.tolist(), logits.cpu(), strict=True)
        return torch.stack([self._logits[index] for index in indices])

    @torch.inference_mode()
    def maps(self, picture: Picture) -> dict[str, Tensor]:
        """What each stage asked for makes of a picture: stage -> (C, h, w)."""
        stages = self.args.stages
        features = self.network.trace(self.prepare(picture), max(stages, key=STAGES.index)).features
        return {stage: self.check_finite(features[stage][0].cpu(), f"activations of {stage}") for stage in stages}

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, stage: str, channels, units) -> dict[str, Tensor]:
        """What a channel an image saw: rule -> (N, 3, S, S), of (N, 3, H, W) uint8 images."""
        trace = self.network.trace(self.preprocess(images.to(self.device)), stage)
        signal = isolate(trace.features[stage], channels, units)
        drawn = {rule: mirror(signal, stage, trace).cpu() for rule, mirror in self.mirrors.items()}
        return {rule: self.check_finite(each, f"reconstructions by {rule}") for rule, each in drawn.items()}

    def reconstruct_maps(self, picture: Picture, stage: str, channels: list[int]) -> dict[str, np.ndarray]:
        """What the whole map of each channel saw in a picture: rule -> (channels, S, S, 3); some channels at a time."""
        size = self.args.batch_size
        parts = [channels[n : n + size] for n in range(0, len(channels), size)]
        drawn = [self.reconstruct(picture.image.expand(len(part), -1, -1, -1), stage, part, "map") for part in parts]
        return {rule: to_array(torch.cat([part[rule] for part in drawn])) for rule in self.mirrors}

    def channel(self, stage: str, channel: int) -> dict:
        """A channel's strongest images and their reconstructions, as figures.top9_channel draws them."""
        images, labels, classes = self.test
        top = self.top[stage]
        positions, indices = top.positions[channel].cpu(), self.searched[top.indices[channel].cpu()]
        units = positions if self.args.units == "peak" else "map"
        drawn = self.reconstruct(images[indices], stage, channel, units)
        predicted = [self.classes[n] for n in self.logits(indices.tolist()).argmax(1)]
        truth = [classes[n] for n in labels[indices]]
        side, corners = windows(list(drawn.values()))
        patches = cut(resize(images[indices], self.image_size), side, corners, outside=0.5)
        pictures = {rule: to_array(cut(each, side, corners, outside=0.0)) for rule, each in drawn.items()}
        scale = {rule: limit_of(each) for rule, each in pictures.items()}
        correlation = {rule: mean_correlation(cut(each, *windows([each]), outside=0.0)) for rule, each in drawn.items()}
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
                "label": truth[rank],
                "predicted": predicted[rank],
                "correct": predicted[rank] == truth[rank] if truth[rank] in self.classes else None,
                "file": str(self.files[index]) if self.files else None,
                "scale": scale,
                "correlation": correlation,
            }
            for rank, index in enumerate(indices.tolist())
        ]
        return {
            "channel": channel,
            "patches": to_array(patches),
            "pictures": pictures,
            "scale": scale,
            "correlation": correlation,
            "entries": entries,
        }


def to_array(pictures: Tensor) -> np.ndarray:
    """(..., 3, H, W) -> (..., H, W, 3), as matplotlib takes pictures."""
    return pictures.movedim(-3, -1).numpy()
