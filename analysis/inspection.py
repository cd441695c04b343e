"""A network with its test images and metadata: what every analysis starts from."""

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from analysis.activations import SearchResult, TopActivations, check_finite, search
from analysis.receptive_field import searched_units
from analysis.settings import Settings
from dataset import folders, sources
from dataset.preprocess import Preprocess, mean_and_std, resize
from network import ResNet18
from runtime.checkpoint import Metadata, load_network
from runtime.device import pick_device

CONFIDENT = 0.5  # probability
SLOW_BATCHES, TIMED_BATCHES = 1, 8  # the first of a search are left out of its throughput; those that are timed
CLASSES_TRIED = 10  # by `median_image`, until it finds one with an image that is classified right
IMAGES_OF_A_CLASS = 64  # of which `median_image` chooses


@dataclass(frozen=True)
class Picture:
    """One image to explain.

    folder  where its figures go, below the output folder; "" for the output folder itself
    title   what it is, for captions
    image   (3, S, S) uint8
    label   name of its class, if known
    origin  its index in the test split, or the user's file
    choice  one sentence on how it was chosen, for captions; "" if the user chose it
    """

    folder: str
    title: str
    image: Tensor
    label: str | None
    origin: int | str
    choice: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedNetwork:
    """A network as its checkpoint gives it, without any image; equal only to itself, so that results can be cached.

    checkpoint  the file it was read from
    network     in evaluation mode, on `device`
    metadata    classes, mean, std, image size, history, ...
    device      of the network and of its inputs
    source      name or folder of the data set
    root        where named data sets are kept
    """

    checkpoint: Path
    network: ResNet18
    metadata: Metadata
    device: torch.device
    source: str
    root: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureInspection(LoadedNetwork):
    """A network that can be shown images.

    preprocess  stored images -> inputs of the network
    pictures    the images to explain one by one
    """

    preprocess: Preprocess
    pictures: tuple[Picture, ...] = ()

    def inputs(self, images: Tensor) -> Tensor:
        """Stored images (N, 3, H, W) uint8 -> the network's input (N, 3, S, S) on its device."""
        return self.preprocess(images.to(self.device))

    def resized(self, images: Tensor) -> Tensor:
        """Stored images (N, 3, H, W) uint8 -> (N, 3, S, S) in 0..1: what the network sees, before normalisation."""
        return resize(images, self.metadata.image_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInspection(PictureInspection):
    """A network with its test images.

    images       the test split: (N, 3, H, W) uint8
    labels       (N,) int64 into `label_names`
    label_names  the data set's classes; the network's are metadata.classes
    files        of the test images; None for named data sets
    searched     (n,) int64: indices of the test images that are searched
    """

    images: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    files: list[Path] | None
    searched: Tensor

    @property
    def knows_labels(self) -> bool:
        """Whether the test images' classes are the network's, so that predictions can be right or wrong."""
        return self.label_names == self.metadata.classes

    def verdict(self, index: int, prediction: int) -> tuple[str, str, bool | None]:
        """A test image's class, the class predicted for it, and whether they agree; None for an unknown class.

        index       in the test split
        prediction  number of one of the network's classes
        """
        label, predicted = self.label_names[self.labels[index]], self.metadata.classes[prediction]
        return label, predicted, predicted == label if label in self.metadata.classes else None

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The searched images as inputs of the network, with a progress bar on a terminal."""
        parts = tqdm(self.searched.split(batch_size), "search", unit="batches", leave=False, disable=None)
        return (self.inputs(self.images[part]) for part in parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection(ImageInspection):
    """A network with its test images and their search, as most figures need it.

    search  the strongest of the searched images for every channel, and their logits
    """

    search: SearchResult

    def top_images(self, top: TopActivations, channel: int) -> Tensor:
        """Indices in the test split of a channel's strongest images, (k,)."""
        return self.searched[top.indices[channel].cpu()]


def load_inspection(
    checkpoint: str | Path, device: str = "auto", source: str | None = None, root: str | None = None
) -> LoadedNetwork:
    """A checkpoint's network and metadata.

    source, root: where the data are; by default as in training. Raises CheckpointError, and OSError for a device that
    is not there.
    """
    device = pick_device(device)
    network, metadata = load_network(checkpoint)
    return LoadedNetwork(
        checkpoint=Path(checkpoint),
        network=network.to(device, memory_format=torch.channels_last),
        metadata=metadata,
        device=device,
        source=source or metadata.config.get("data", "cifar10"),
        root=root or metadata.config.get("root", "data"),
    )


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
    return ImageInspection(
        **vars(inspection),
        images=images,
        labels=labels,
        label_names=tuple(names),
        files=sources.list_files(source, "test"),
        searched=spread(min(limit or len(images), len(images)), len(images)),
    )


def add_search(
    inspection: ImageInspection,
    settings: Settings,
    stages: Sequence[str] | None = None,
    report: Callable[[float], None] | None = None,
) -> Inspection:
    """Add the strongest test images of every channel of these stages, and the logits: one pass over the images.

    stages  by default those of the settings
    report  called once, early in a long search, with its throughput in images per second

    Raises CheckpointError when activations are not finite.
    """
    batches, stages = inspection.batches(settings.batch_size), stages or settings.stages
    batches = timed(batches, settings.batch_size, report) if report else batches
    inside = searched_units(inspection.network, stages, inspection.metadata.image_size, settings.border)
    result = search(inspection.network, batches, stages, settings.top, with_logits=True, inside=inside)
    for stage, top in result.top.items():
        check_finite(top.scores, f"activations of {stage}")
    return Inspection(**vars(inspection) | {"search": result})


def timed(batches: Iterable[Tensor], batch_size: int, report: Callable[[float], None]) -> Iterator[Tensor]:
    """The same batches; after the first ones, `report` is called with the images per second that they took."""
    for number, batch in enumerate(batches):
        if number == SLOW_BATCHES:
            started = time.monotonic()
        if number == SLOW_BATCHES + TIMED_BATCHES:
            report(TIMED_BATCHES * batch_size / max(time.monotonic() - started, 1e-9))
        yield batch


def add_pictures(
    inspection: PictureInspection, settings: Settings, files: Sequence[str] | None = None
) -> PictureInspection:
    """Add the images to explain: these files, or the test image settings.image, or `median_image`.

    Raises DataError for a file that is no image.
    """
    if files:
        return replace(inspection, pictures=tuple(read_pictures(files, inspection.metadata.image_size)))
    if settings.image is not None:
        return replace(inspection, pictures=(picture_of(inspection, settings.image),))
    index, choice = median_image(inspection, settings)
    return replace(inspection, pictures=(replace(picture_of(inspection, index), choice=choice),))


@torch.inference_mode()
def median_image(inspection: ImageInspection, settings: Settings) -> tuple[int, str]:
    """An ordinary test image by its index, and one sentence on how it was chosen.

    settings.seed draws a class. Up to IMAGES_OF_A_CLASS searched images of it are classified; of those classified
    right, the one with the median probability is chosen. If there is none, the next class follows.
    """
    if not inspection.knows_labels:
        return 0, "The image: the first of the test split, whose classes are not the network's."
    labels, classes = inspection.labels[inspection.searched], inspection.metadata.classes
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    for number in order[:CLASSES_TRIED]:
        indices = inspection.searched[labels == number]
        if len(indices) > IMAGES_OF_A_CLASS:
            indices = indices[spread(IMAGES_OF_A_CLASS, len(indices))]
        parts = [inspection.inputs(inspection.images[part]) for part in indices.split(settings.batch_size) if len(part)]
        probabilities = [inspection.network(part).softmax(1).cpu() for part in parts]
        confidence, predicted = torch.cat(probabilities or [torch.empty(0, len(classes))]).max(1)
        if len(right := (predicted == number).nonzero().flatten()):
            middle = right[confidence[right].argsort(stable=True)[(len(right) - 1) // 2]]
            return indices[middle].item(), (
                f"The image: of {len(right)} test images of its class that are classified right, the one with the "
                f"median probability; seed {settings.seed} drew the class."
            )
    return 0, "The image: the first of the test split, because none of those tried is classified right."


def pictures_asked_for(inspection: PictureInspection, settings: Settings) -> list[Picture]:
    """The user's files, or the test image of settings.image; none where the figure may choose."""
    is_named = settings.image is not None
    return [picture for picture in inspection.pictures if is_named or isinstance(picture.origin, str)]


def picture_of(inspection: ImageInspection, index: int) -> Picture:
    """An image of the test split, to explain."""
    label = inspection.label_names[inspection.labels[index]]
    return Picture("", f"test image {index} ({label})", inspection.images[index], label, index)


def read_pictures(files: Sequence[str], image_size: int) -> list[Picture]:
    """The user's files, resized and centre-cropped, each with a folder name of its own on any system."""
    pictures: list[Picture] = []
    for file in map(Path, files):
        used = {same_on_some_systems(picture.folder) for picture in pictures}
        stem = file.stem.strip(".") or "image"
        candidates = (stem, *(f"{stem}-{n}" for n in range(2, len(used) + 3)))
        folder = next(name for name in candidates if same_on_some_systems(name) not in used)
        name = file.name.encode(errors="replace").decode()  # a file name need not be valid text
        title = f"{name}, resized and cropped to {image_size}x{image_size}"
        pictures.append(Picture(folder, title, folders.read_image(file, image_size), None, name))
    return pictures


def same_on_some_systems(name: str) -> str:
    """Equal for the names that Windows or macOS takes for one: in small or capital letters, accents composed or not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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


def spread(count: int, total: int) -> Tensor:
    """(count,) int64: numbers below `total`, ascending, one drawn by a seed from each of `count` equal parts.

    Even over a data set sorted by class, and over one whose classes alternate. `count` is at most `total`.
    """
    edges = torch.arange(count + 1) * total // count
    shares = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return edges[:-1] + (shares * edges.diff()).long()


def one_per_class(inspection: Inspection, count: int) -> list[Picture]:
    """Up to `count` searched images of different classes: of each class, the first that is recognised confidently.

    That is, classified correctly with a probability of at least CONFIDENT. If these are too few, classes without one
    add their first correctly classified image, then their first image. If the test images' classes are not the
    network's, the predicted classes take their place.
    """
    confidence, predicted = inspection.search.logits.softmax(1).max(1)
    labels = inspection.labels[inspection.searched] if inspection.knows_labels else predicted
    right = predicted == labels
    first: dict[int, int] = {}  # class -> index in the test split
    for candidates in (right & (confidence >= CONFIDENT), right, ~right):
        for row in candidates.nonzero().flatten().tolist():
            first.setdefault(labels[row].item(), inspection.searched[row].item())
    return [picture_of(inspection, index) for index in list(first.values())[:count]]


def class_to_explain(inspection: PictureInspection, picture: Picture, predicted: int) -> int:
    """The number of the picture's class; of the predicted one if its class is unknown, or not the network's."""
    classes = inspection.metadata.classes
    return classes.index(picture.label) if picture.label in classes else predicted
