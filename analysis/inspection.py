"""A network with its test images and metadata: what every analysis starts from."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import SearchResult, TopActivations, check_finite, search
from analysis.pictures import Picture, read_pictures, spread
from analysis.receptive_field import searched_units
from analysis.settings import Settings
from dataset import sources
from dataset.preprocess import Preprocess, mean_and_std, resize
from network import ResNet18
from runtime.checkpoint import Metadata, load_network
from runtime.device import pick_device


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network as its checkpoint gives it, without any image; equal only to itself, so that results can be cached."""

    checkpoint: Path  # the file it was read from
    network: ResNet18  # in evaluation mode, on `device`
    metadata: Metadata  # classes, mean, std, image size, history, ...
    device: torch.device  # of the network and of its inputs
    source: str  # name or folder of the data set
    root: str  # where named data sets are kept


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureInspection(LoadedNetwork):
    """A network that can be shown images."""

    preprocess: Preprocess  # stored images -> inputs of the network
    pictures: tuple[Picture, ...] = ()  # the images to explain one by one

    def inputs(self, images: Tensor) -> Tensor:
        """Stored images (N, 3, H, W) uint8 -> the network's input (N, 3, S, S) on its device."""
        return self.preprocess(images.to(self.device))

    def resized(self, images: Tensor) -> Tensor:
        """Stored images (N, 3, H, W) uint8 -> (N, 3, S, S) in 0..1: what the network sees, before normalisation."""
        return resize(images, self.metadata.image_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInspection(PictureInspection):
    """A network with its test images."""

    images: Tensor  # the test split: (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64 into `label_names`
    label_names: tuple[str, ...]  # the data set's classes; the network's are metadata.classes
    files: list[Path] | None  # of the test images; None for named data sets
    searched: Tensor  # (n,) int64: indices of the test images that are searched

    @property
    def knows_labels(self) -> bool:
        """Whether the test images' classes are the network's, so that predictions can be right or wrong."""
        return self.label_names == self.metadata.classes

    def verdict(self, index: int, prediction: int) -> tuple[str, str, bool | None]:
        """A test image's class, that of the number `prediction`, and whether they agree; None for an unknown class."""
        label, predicted = self.label_names[self.labels[index]], self.metadata.classes[prediction]
        return label, predicted, predicted == label if label in self.metadata.classes else None

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The searched images as inputs of the network, with a progress bar on a terminal."""
        parts = tqdm(self.searched.split(batch_size), "search", unit="batches", leave=False, disable=None)
        return (self.inputs(self.images[part]) for part in parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection(ImageInspection):
    """A network with its test images and their search, as most figures need it."""

    search: SearchResult  # the strongest of the searched images for every channel, and their logits

    def top_images(self, top: TopActivations, channels: int | Sequence[int]) -> Tensor:
        """Indices in the test split of a channel's strongest images, (k,), or of those of n channels, (n, k)."""
        return self.searched[top.indices[channels]]


def load_inspection(
    checkpoint: str | Path, device: str = "auto", source: str | None = None, root: str | None = None
) -> LoadedNetwork:
    """A checkpoint's network and metadata. source, root: where the data are; by default as in training.

    Raises CheckpointError, and OSError for a device that is not there.
    """
    device = pick_device(device)
    network, metadata = load_network(checkpoint)
    network = network.to(device, memory_format=torch.channels_last)
    source = source or metadata.config.get("data", "cifar10")
    root = root or metadata.config.get("root", "data")
    return LoadedNetwork(Path(checkpoint), network, metadata, device, source, root)


def add_preprocessing(loaded: LoadedNetwork) -> PictureInspection:
    """Add `preprocess`. A plain state dict has no metadata: its classes, mean and std are taken from its data.

    Raises DataError when these are missing or have another number of classes.
    """
    metadata = loaded.metadata
    if metadata.mean is None:
        train = sources.load_split(loaded.source, "train", loaded.root, metadata.image_size)
        if len(train.classes) != (outputs := loaded.network.fc.out_features):
            raise sources.DataError(
                f"{loaded.checkpoint} has {outputs} outputs, {loaded.source} has {len(train.classes)} classes: "
                "pass --data with the data it was trained on"
            )
        order = "" if loaded.source in sources.DATASETS else ", the folders in alphabetical order"
        print(f"note: {loaded.checkpoint} names no classes: those of {loaded.source} are taken{order}")
        mean, std = mean_and_std(train.histogram)
        metadata = replace(metadata, classes=tuple(train.classes), mean=tuple(mean), std=tuple(std))
    preprocess = Preprocess(metadata.image_size, metadata.mean, metadata.std, loaded.device)
    return PictureInspection(**vars(loaded) | {"metadata": metadata}, preprocess=preprocess)


def add_test_images(inspection: PictureInspection, limit: int | None = None) -> ImageInspection:
    """Add the test split; `limit` of its images, evenly spread, are searched (default: all). Raises DataError."""
    source = inspection.source
    images, labels, names = sources.load(source, "test", inspection.root, inspection.metadata.image_size)
    if tuple(names) != inspection.metadata.classes:
        print(f"note: the classes of {source} are not those the network was trained on")
    files, searched = sources.list_files(source, "test"), spread(min(limit or len(images), len(images)), len(images))
    return ImageInspection(
        **vars(inspection), images=images, labels=labels, label_names=tuple(names), files=files, searched=searched
    )


def add_pictures(
    inspection: PictureInspection, settings: Settings, files: Sequence[str] | None = None
) -> PictureInspection:
    """Add the images to explain: these files, or the test image settings.image, or `median_image`."""
    if files:
        return replace(inspection, pictures=tuple(read_pictures(files, inspection.metadata.image_size)))
    index, choice = (settings.image, "") if settings.image is not None else median_image(inspection, settings)
    return replace(inspection, pictures=(replace(picture_of(inspection, index), choice=choice),))


def add_search(
    inspection: ImageInspection,
    settings: Settings,
    stages: Sequence[str] | None = None,
    report: Callable[[float], None] | None = None,
) -> Inspection:
    """Add the strongest test images of every channel of these stages, and the logits: one pass over the images.

    stages: by default those of the settings; report: is called early in a long search, with its images per second.
    Raises CheckpointError when activations are not finite.
    """
    batches, stages = inspection.batches(settings.batch_size), stages or settings.stages
    batches = timed(batches, settings.batch_size, report) if report else batches
    inside = searched_units(inspection.network, stages, inspection.metadata.image_size, settings.border)
    count = len(inspection.searched)
    result = search(inspection.network, batches, count, stages, settings.top, with_logits=True, inside=inside)
    for stage, top in result.top.items():
        check_finite(top.scores, f"activations of {stage}")
    return Inspection(**vars(inspection) | {"search": result})


def timed(batches: Iterable[Tensor], batch_size: int, report: Callable[[float], None]) -> Iterator[Tensor]:
    """The same batches; `report` is called with the images per second of eight of them, after the first, slow one."""
    for number, batch in enumerate(batches):
        if number == 1:
            started = time.monotonic()
        if number == 9:
            report(8 * batch_size / max(time.monotonic() - started, 1e-9))
        yield batch


def inspect(
    checkpoint: str | Path,
    settings: Settings,
    device: str = "auto",
    source: str | None = None,
    root: str | None = None,
    stages: Sequence[str] | None = None,
) -> Inspection:
    """All of the above in one call: the network, its test images, one of them as picture, and the search."""
    inspection = add_preprocessing(load_inspection(checkpoint, device, source, root))
    return add_search(add_pictures(add_test_images(inspection, settings.limit), settings), settings, stages)


@dataclass(frozen=True)
class Scores:
    """Of n images whose classes are the network's."""

    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64
    confidence: np.ndarray  # (n,) probability of the predicted class


def score(inspection: Inspection) -> Scores | None:
    """The network's scores; None if the test images' classes are not the network's."""
    if not inspection.knows_labels:
        return None
    labels, logits = inspection.labels[inspection.searched].numpy(), inspection.search.logits
    return Scores(labels, logits.argmax(1).numpy(), logits.softmax(1).amax(1).numpy())


def picture_of(inspection: ImageInspection, index: int) -> Picture:
    """An image of the test split, to explain."""
    label = inspection.label_names[inspection.labels[index]]
    return Picture("", f"test image {index} ({label})", inspection.images[index], label, index)


def pictures_asked_for(inspection: PictureInspection, settings: Settings) -> list[Picture]:
    """The user's files, or the test image of settings.image; none where the figure may choose."""
    return [picture for picture in inspection.pictures if settings.image is not None or isinstance(picture.origin, str)]


@torch.inference_mode()
def median_image(inspection: ImageInspection, settings: Settings) -> tuple[int, str]:
    """An ordinary test image by its index, and one sentence on how it was chosen.

    settings.seed draws a class. Up to 64 searched images of it are classified; of those classified right, the one with
    the median probability is chosen. If there is none, the next of ten classes follows.
    """
    if not inspection.knows_labels:
        return 0, "The image: the first of the test split, whose classes are not the network's."
    order = torch.randperm(len(inspection.label_names), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    for number in order[:10]:
        indices = inspection.searched[inspection.labels[inspection.searched] == number]
        if not len(indices):
            continue
        indices = indices[spread(min(64, len(indices)), len(indices))]
        parts = [inspection.inputs(inspection.images[part]) for part in indices.split(settings.batch_size)]
        confidence, predicted = torch.cat([inspection.network(part).softmax(1).cpu() for part in parts]).max(1)
        if len(right := (predicted == number).nonzero().flatten()):
            middle = right[confidence[right].argsort(stable=True)[(len(right) - 1) // 2]]
            return indices[middle].item(), (
                f"The image: of {len(indices)} test images of a class, {len(right)} are classified right; this one has "
                f"their median probability. Seed {settings.seed} drew the class."
            )
    return 0, "The image: the first of the test split, because none of those tried is classified right."


def one_per_class(inspection: Inspection, count: int) -> list[Picture]:
    """Up to `count` searched images of different classes: of each, the first that is classified right, at 0.5 or more.

    If these are too few, classes without one add their first image that is classified right, then their first image.
    If the test images' classes are not the network's, the predicted classes take their place.
    """
    confidence, predicted = inspection.search.logits.softmax(1).max(1)
    labels = inspection.labels[inspection.searched] if inspection.knows_labels else predicted
    right = predicted == labels
    first: dict[int, int] = {}  # class -> index in the test split
    for candidates in (right & (confidence >= 0.5), right, ~right):
        for row in candidates.nonzero().flatten().tolist():
            first.setdefault(labels[row].item(), inspection.searched[row].item())
    return [picture_of(inspection, index) for index in list(first.values())[:count]]
