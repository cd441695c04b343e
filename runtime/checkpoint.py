"""Checkpoints of tensors and plain types, written atomically.

Every file is read with `torch.load(weights_only=True)`, so a file from elsewhere cannot execute code.
"""

import errno
import os
import pickle
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from network import ResNet18

TRAINED = Path("checkpoints/model.pt")  # in the working directory
SHIPPED = Path(__file__).parent.parent / "checkpoints" / "resnet18-cifar10.pt"
SNAPSHOT = "snapshot_{}.pt"  # {}: epoch
IS_WINDOWS = os.name == "nt"
HISTORY_KEYS = {"kind", "step", "loss", "accuracy"}
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys of the state dict in other scripts' files
WRAPPING_MODULES = {"module", "_orig_mod", "model", "net"}  # of DataParallel, torch.compile, Lightning, in names


class CheckpointError(ValueError):
    """A checkpoint cannot be used or written; the message says what to do."""


@contextmanager
def atomic_file(path: str | Path, keep_previous: bool = False) -> Iterator[BinaryIO]:
    """A file that replaces `path` if the block succeeds; otherwise `path` is unchanged.

    keep_previous: keep the replaced file as `<name>.prev<suffix>`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            with _where_supported():
                os.fsync(file.fileno())
        if keep_previous and path.exists():
            _replace(path, previous(path))
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # not on Windows: the new name survives a power failure
        with _where_supported():
            descriptor = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _replace(source: Path, target: Path) -> None:
    """os.replace; on Windows it fails while another process reads the target, so it is tried for five seconds."""
    for _ in range(100 if IS_WINDOWS else 0):
        with suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(0.05)
    os.replace(source, target)


@contextmanager
def _where_supported() -> Iterator[None]:
    """Tolerates a file system that cannot flush a file or a folder, as some network file systems."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def save(state: dict[str, Any], path: str | Path, keep_previous: bool = False) -> None:
    """Writes a dict of tensors and plain types atomically. Raises CheckpointError if it cannot be written."""
    try:
        with atomic_file(path, keep_previous) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        advice = "make its folder writable, or free some space"
        raise CheckpointError(f"{path} could not be written ({first_line(error)}): {advice}") from error


def previous(path: Path) -> Path:
    """last.pt -> last.prev.pt, the checkpoint before it."""
    return path.with_suffix(f".prev{path.suffix}")


def snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots in a folder: epoch -> file, in order."""
    files = {file.stem.partition("_")[2]: file for file in folder.glob(SNAPSHOT.format("*"))}
    return dict(sorted((int(epoch), file) for epoch, file in files.items() if epoch.isdecimal()))


def load(path: str | Path) -> dict[str, Any]:
    """The dict in a file, or in a folder's model.pt, on the CPU. Raises CheckpointError if it cannot be read safely."""
    path = Path(path)
    if path.is_dir() and (path / "model.pt").exists():
        path = path / "model.pt"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: run train.py first, or pass the path of one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "not a checkpoint of tensors and plain types (its contents were not executed)"
        raise CheckpointError(f"{path} is {what}: pass a model.pt of train.py, or a state dict") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(f"{path} is damaged or not a checkpoint: pass another, or train again") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint: pass a model.pt of train.py")
    return state


def default_checkpoint() -> Path:
    """The trained network of the working directory; before any training the one that comes with the project."""
    if TRAINED.exists() or not SHIPPED.exists():
        return TRAINED
    shipped = SHIPPED.relative_to(Path.cwd()) if SHIPPED.is_relative_to(Path.cwd()) else SHIPPED
    print(f"{TRAINED} does not exist yet: showing the network that comes with the project, {shipped}")
    return shipped


@dataclass(frozen=True)
class Metadata:
    """A network's metadata; classes, mean and std of a plain state dict are None, or ImageNet's of 1000 outputs."""

    classes: tuple[str, ...] | None = None  # names, one per output
    mean: tuple[float, ...] | None = None  # of the training images by channel (R, G, B), in 0..1
    std: tuple[float, ...] | None = None
    image_size: int = 224  # side of the network's input, pixels
    config: dict[str, Any] = field(default_factory=dict)  # settings of the training, by the names of train.py's flags
    result: dict[str, Any] = field(default_factory=dict)  # of a finished one: test_accuracy (0..1), seconds, step, ...
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of history.jsonl


def load_network(path: str | Path) -> tuple[ResNet18, Metadata]:
    """A network in evaluation mode on the CPU, and its metadata.

    path: a file written by train.py, or a state dict with torchvision's names, in the usual wrappers or without. Of a
    last.pt with a moving average this is the average, which its test accuracy belongs to.
    Raises CheckpointError for anything that is not a ResNet-18 with finite weights and two outputs or more.
    """
    state = load(path)
    is_own = {"model", "image_size", "history"} <= state.keys()
    weights = _plain_weights({"model": state.get("ema", state["model"])} if is_own else state)
    last = weights.get("fc.weight")
    if not isinstance(last, Tensor) or last.ndim != 2 or len(last) < 2:
        raise CheckpointError(f"{path} is not torchvision's ResNet-18 with two outputs or more (see fc.weight)")
    network = ResNet18(len(last))
    try:
        network.load_state_dict(weights)  # batch counters, which files from before 2018 lack, are added
    except RuntimeError as error:
        difference = textwrap.shorten(" ".join(str(error).splitlines()[1:2]), 200, placeholder=" ...")
        raise CheckpointError(f"{path} is not torchvision's ResNet-18: {difference}") from error
    check_finite(network.state_dict(), path)
    if not is_own:
        return network.eval(), _metadata_of_weights(len(last))
    metadata = {entry.name: state.get(entry.name) for entry in fields(Metadata)}
    if missing := [name for name, value in metadata.items() if value is None]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: pass a model.pt of train.py")
    if not _is_valid(metadata := Metadata(**metadata)):
        raise CheckpointError(f"{path} has been changed since train.py wrote it: pass an unchanged one")
    if (named := len(metadata.classes)) != len(last):
        raise CheckpointError(f"{path} names {named} classes for {len(last)} outputs")
    classes = tuple(map(one_line, metadata.classes))
    return network.eval(), replace(metadata, classes=classes, mean=tuple(metadata.mean), std=tuple(metadata.std))


def _plain_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict inside the usual wrappers; its names without wrapping modules, unless two would be the same."""
    for _ in WRAPPERS:
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    weights = {str(name): value for name, value in state.items() if name != "n_averaged"}  # of AveragedModel
    names = [".".join(part for part in name.split(".") if part not in WRAPPING_MODULES) for name in weights]
    return dict(zip(names, weights.values(), strict=True)) if len(set(names)) == len(names) else weights


def _is_valid(metadata: Metadata) -> bool:
    """Whether everything has the type and range that train.py writes."""
    types = {"image_size": int, "config": dict, "result": dict, "history": list}
    return (
        all(isinstance(getattr(metadata, name), kind) for name, kind in types.items())
        and all(isinstance(name, str) for name in metadata.classes)
        and [type(value) for value in (*metadata.mean, *metadata.std)] == [float] * 6
        and min(metadata.std) > 0
        and 8 <= metadata.image_size <= 4096
        and all(isinstance(line, dict) and line.keys() >= HISTORY_KEYS for line in metadata.history)
        and all("learning_rate" in line for line in metadata.history if line["kind"] == "train")
    )


def _metadata_of_weights(outputs: int) -> Metadata:
    if outputs != 1000:
        return Metadata()
    from torchvision.models import ResNet18_Weights  # slow to import

    weights = ResNet18_Weights.IMAGENET1K_V1
    transforms = weights.transforms()
    return Metadata(tuple(weights.meta["categories"]), tuple(transforms.mean), tuple(transforms.std))


def load_pretrained(path: str | Path, network: ResNet18) -> None:
    """Loads a checkpoint's weights, without those of the last layer if it has another number of classes."""
    weights = load_network(path)[0].state_dict()
    if weights["fc.weight"].shape != network.fc.weight.shape:
        print(f"{path} has {len(weights['fc.weight'])} classes, the data {network.fc.out_features}: a new last layer")
        weights |= {f"fc.{name}": value for name, value in network.fc.state_dict().items()}
    network.load_state_dict(weights)


def check_finite(weights: dict[str, Tensor], path: str | Path) -> None:
    """Raises CheckpointError if a weight is NaN or infinite."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values: pass an earlier checkpoint")


def one_line(name: str) -> str:
    """A name for labels: without line breaks and other characters that cannot be printed."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def first_line(error: BaseException) -> str:
    """The first line of an error message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
