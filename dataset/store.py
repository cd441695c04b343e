"""Decode a folder of images once, into numpy files under `root` that every later run maps into its memory.

    decoded/<key>/train.npy, test.npy   uint8 (N, 3, S, S)
    decoded/<key>/facts.json            classes, labels, color histogram; size and modification time of each file

The key depends on the folder's absolute path, S and the cropping rule. A store may be deleted at any time.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dataset.folders import DataError, Listing, describe_ignored, list_split, read_image, unreadable
from dataset.preprocess import color_histogram
from runtime.checkpoint import atomic_file
from runtime.signals import lock

CROPPING_RULE = "shorter side resized bilinearly, centre crop; 2"  # changes whenever `read_image` or the format does
BLOCK_BYTES = 8 * 2**20  # decoded and written at a time by each thread
BLOCK_IMAGES = 64
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Split:
    """Images and labels of a split, on the CPU.

    images     (N, 3, H, W) uint8; a folder's are memory-mapped, and must not be written to
    labels     (N,) int64 into `classes`
    classes    names
    histogram  `color_histogram` of the images
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    histogram: torch.Tensor


def load_folder(path: Path, split: str, root: Path, image_size: int) -> Split:
    """A split of a folder, decoded if that has not been done or a file has changed since.

    image_size: side that images are resized and centre-cropped to, unless they are all squares of one size that is not
    larger. Raises DataError if an image cannot be read, or the disk is full.
    """
    listing = list_split(path, split)
    if note := describe_ignored(listing):
        print(note, flush=True)
    key = hashlib.sha256("\n".join([os.path.abspath(path), str(image_size), CROPPING_RULE]).encode()).hexdigest()[:16]
    first, cache = (base / "decoded" / key for base in (root, cache_folder()))
    if loaded := _open(first, split, listing) or _open(cache, split, listing):
        return loaded
    for store_folder in (first, cache):
        try:
            return _decode_once(store_folder, split, listing, image_size)
        except OSError as error:
            if error.errno in FULL:
                raise _disk_full(store_folder, f"{path} does not fit") from error
            if error.errno not in READ_ONLY or store_folder == cache:
                raise
            print(f"{first} cannot be written ({error.strerror}): the decoded images go to {cache}", flush=True)
    raise AssertionError("unreachable")


def cache_folder() -> Path:
    """Where torch, too, keeps files that can be made again, for a `root` that is read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet18-mirror"


def _open(store_folder: Path, split: str, listing: Listing) -> Split | None:
    """The stored split, if it is complete and its files are those of the listing."""
    file = store_folder / f"{split}.npy"
    try:
        facts = json.loads((store_folder / "facts.json").read_text(encoding="utf-8"))[split]
        checksum = facts.pop("sha256")
        if checksum != _checksum(facts) or facts["pictures"] != [list(entry) for entry in listing.files]:
            return None
        images = np.load(file, mmap_mode="r")
        # after opening, so that a file put there in the meantime is noticed, too
        if facts["array"] != _identity(file) or (images.dtype, list(images.shape)) != (np.uint8, facts["shape"]):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or damaged in any way
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
        mapped = torch.from_numpy(images)
    return Split(mapped, torch.tensor(listing.labels), listing.classes, torch.tensor(facts["histogram"]))


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _identity(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _decode_once(store_folder: Path, split: str, listing: Listing, image_size: int) -> Split:
    """Decodes the split, unless another process has done it meanwhile."""
    store_folder.mkdir(parents=True, exist_ok=True)
    path = listing.folder.parent
    say_waiting = partial(print, f"waiting for another process that decodes {path}", flush=True)
    with lock(store_folder / "lock", say_waiting) as is_locked:
        if loaded := _open(store_folder, split, listing):
            return loaded
        file = store_folder / f"{split}.npy"
        if is_locked:  # what is outdated, or left by an interrupted process
            for leftover in (file, *store_folder.glob(".*.tmp")):
                leftover.unlink(missing_ok=True)
        side = _common_side(listing.paths, image_size, split)
        shape = (len(listing.files), 3, side, side)
        size = int(np.prod(shape, dtype=np.int64))
        what = f"{len(listing.files):,} {split} images of {path} at {side}x{side}, {_format_bytes(size)}"
        if shutil.disk_usage(store_folder).free < size:
            raise _disk_full(store_folder, what)
        print(f"decoding once: {what}, to {file}", flush=True)
        with atomic_file(file) as stream:
            histogram = _write(stream, listing, shape, split)
        if list_split(path, split) != listing:
            raise DataError(f"{listing.folder} was changed while it was decoded: run again")
        _write_facts(store_folder, split, listing, shape, histogram)
    if loaded := _open(store_folder, split, listing):
        return loaded
    raise DataError(f"{store_folder} was changed by another process: run again")


def _disk_full(store_folder: Path, what: str) -> DataError:
    free = _format_bytes(shutil.disk_usage(store_folder).free)
    return DataError(f"{what}: {free} are free on the disk of {store_folder}; free some space, or pass another --root")


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _common_side(files: list[Path], image_size: int, split: str) -> int:
    """The side of the stored images: that of the files if all are squares of it and it is at most `image_size`."""
    width, height = _size_of(files[0])
    if width != height or width > image_size:
        return image_size
    blocks = _in_blocks(lambda block: {_size_of(files[n]) for n in block}, len(files), BLOCK_IMAGES, f"{split} sizes")
    return width if all(sizes == {(width, width)} for sizes in blocks) else image_size


def _size_of(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:  # reads only the header
            return image.size
    except Exception as error:
        raise unreadable(file, error) from error


def _write(stream, listing: Listing, shape: tuple[int, int, int, int], split: str) -> torch.Tensor:
    """Writes the images in numpy's format; returns their histogram.

    Not through a memory map: a full disk would end the process with a bus error.
    """
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, lock = stream.tell(), threading.Lock()
    side, image_bytes = shape[2], int(np.prod(shape[1:]))

    def decode(block: range) -> torch.Tensor:
        images = torch.empty(len(block), *shape[1:], dtype=torch.uint8)
        for k, n in enumerate(block):
            images[k] = read_image(listing.folder / listing.files[n][0], side)
        with lock:
            stream.seek(start + block.start * image_bytes)
            stream.write(images.numpy())
        return color_histogram(images)

    block_images = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // image_bytes))
    return sum(_in_blocks(decode, shape[0], block_images, f"{split} images"))


def _in_blocks(function: Callable[[range], Any], count: int, size: int, title: str) -> Iterator[Any]:
    """function(block) of consecutive blocks of 0..count-1, one thread per core; stops at the first error."""
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=count, desc=title, leave=False, disable=None, unit=" images") as bar,
    ):
        try:
            for block, result in zip(blocks, pool.map(function, blocks), strict=True):
                bar.update(len(block))
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_facts(store_folder: Path, split: str, listing: Listing, shape: tuple, histogram: torch.Tensor) -> None:
    """Adds a split to facts.json; only this makes it valid."""
    try:
        known = dict(json.loads((store_folder / "facts.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    facts = {
        "array": _identity(store_folder / f"{split}.npy"),
        "shape": list(shape),
        "classes": list(listing.classes),
        "labels": listing.labels,
        "histogram": histogram.tolist(),
        "pictures": [list(entry) for entry in listing.files],
    }
    known |= {"folder": os.path.abspath(listing.folder.parent), split: facts | {"sha256": _checksum(facts)}}
    with atomic_file(store_folder / "facts.json") as stream:
        stream.write(json.dumps(known).encode())
