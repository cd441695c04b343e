"""Decode a folder of images once, into numpy files under `root` that every later run maps into its memory.

    decoded/<key>/train.npy, test.npy   uint8 (N, 3, S, S)
    decoded/<key>/facts.json            classes, labels, color histogram; size and modification time of each file

The key depends on the folder's absolute path, S and the cropping rule. A store may be deleted at any time.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from dataset.folders import DataError, Listing, describe_ignored, list_split, open_image, read_image
from dataset.preprocess import color_histogram
from runtime.checkpoint import atomic_file
from runtime.signals import lock

CROPPING_RULE = "shorter side resized bilinearly, centre crop; 2"  # changes whenever `read_image` or the format does
BLOCK_IMAGES, BLOCK_BYTES = 64, 8 * 2**20  # at most, decoded and written at a time by each thread


@dataclass(frozen=True)
class Split:
    """Images and labels of a split, on the CPU."""

    images: torch.Tensor  # (N, 3, H, W) uint8; a folder's are memory-mapped, and must not be written to
    labels: torch.Tensor  # (N,) int64 into `classes`
    classes: tuple[str, ...]  # names
    histogram: torch.Tensor  # `color_histogram` of the images


def load_folder(path: Path, split: str, root: Path, image_size: int) -> Split:
    """A split of a folder, decoded if that has not been done or a file has changed since.

    image_size: side that images are resized and centre-cropped to, unless they are all squares of one size that is not
    larger. Raises DataError if an image cannot be read, or the decoded ones cannot be written.
    """
    listing = list_split(path, split)
    if note := describe_ignored(listing):
        print(note, flush=True)
    key = hashlib.sha256("\n".join([os.path.abspath(path), str(image_size), CROPPING_RULE]).encode()).hexdigest()[:16]
    store = root / "decoded" / key
    try:
        return _open(store, split, listing) or _decode_once(store, split, listing, image_size)
    except OSError as error:
        advice = "free some space, or pass another --root"
        raise DataError(f"decoded images cannot be written to {store} ({error.strerror or error}): {advice}") from error


def _open(store: Path, split: str, listing: Listing) -> Split | None:
    """The stored split, if it is complete and its files are those of the listing."""
    file = store / f"{split}.npy"
    try:
        facts = json.loads((store / "facts.json").read_text(encoding="utf-8"))[split]
        checksum = facts.pop("sha256")
        images = np.load(file, mmap_mode="r")  # first, so that a file put there in the meantime is noticed, too
        expected = [list(entry) for entry in listing.files], _identity(file)
        if checksum != _checksum(facts) or (facts["pictures"], facts["array"]) != expected:
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
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _decode_once(store: Path, split: str, listing: Listing, image_size: int) -> Split:
    """Decodes the split, unless another process has done it meanwhile."""
    store.mkdir(parents=True, exist_ok=True)
    path, file = listing.folder.parent, store / f"{split}.npy"
    with lock(store / "lock", lambda: print(f"waiting for another process that decodes {path}", flush=True)) as locked:
        if loaded := _open(store, split, listing):
            return loaded
        if locked:  # what is outdated, or left by an interrupted process
            for leftover in (file, *store.glob(".*.tmp")):
                leftover.unlink(missing_ok=True)
        side = _common_side(listing.paths, image_size, split)
        shape = (len(listing.files), 3, side, side)
        size = math.prod(shape)
        what = f"{len(listing.files):,} {split} images of {path} at {side}x{side}, {size / 1e6:,.1f} MB"
        print(f"decoding once: {what}, to {file}", flush=True)
        if shutil.disk_usage(store).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_file(file) as stream:
            histogram = _write_images(stream, listing, shape, split)
        _write_facts(store, split, listing, shape, histogram)
    if loaded := _open(store, split, listing):
        return loaded
    raise DataError(f"{store} was changed by another process: run again")


def _common_side(files: list[Path], image_size: int, split: str) -> int:
    """The side of the stored images: that of the files if all are squares of it and it is at most `image_size`."""

    def sizes_of(block: range) -> set[tuple[int, int]]:
        sizes = set()
        for n in block:
            with open_image(files[n]) as image:  # reads only the header
                sizes.add(image.size)
        return sizes

    ((width, height),) = sizes_of(range(1))
    if width != height or width > image_size:
        return image_size
    blocks = _in_blocks(sizes_of, len(files), BLOCK_IMAGES, f"{split} sizes")
    return width if set().union(*blocks) == {(width, width)} else image_size


def _write_images(stream: BinaryIO, listing: Listing, shape: tuple[int, int, int, int], split: str) -> torch.Tensor:
    """Writes the images in numpy's format; returns their histogram.

    Not through a memory map: a full disk would end the process with a bus error.
    """
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, writing, image_bytes = stream.tell(), threading.Lock(), math.prod(shape[1:])

    def decode(block: range) -> torch.Tensor:
        images = torch.stack([read_image(path, shape[2]) for path in paths[block.start : block.stop]])
        with writing:
            stream.seek(start + block.start * image_bytes)
            stream.write(images.numpy())
        return color_histogram(images)

    paths, block_images = listing.paths, max(1, min(BLOCK_IMAGES, BLOCK_BYTES // image_bytes))
    return sum(_in_blocks(decode, shape[0], block_images, f"{split} images"))


def _in_blocks(function: Callable[[range], Any], count: int, size: int, title: str) -> list[Any]:
    """function(block) of consecutive blocks of 0..count-1, one thread per core; stops at the first error."""
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    progress = {"total": len(blocks), "unit_scale": size, "unit": " images", "leave": False, "disable": None}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(function, blocks), title, **progress))


def _write_facts(store: Path, split: str, listing: Listing, shape: tuple, histogram: torch.Tensor) -> None:
    """Adds a split to facts.json; only this makes it valid."""
    known = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads((store / "facts.json").read_text(encoding="utf-8")))
    facts = {
        "array": _identity(store / f"{split}.npy"),
        "shape": list(shape),
        "classes": list(listing.classes),
        "labels": listing.labels,
        "histogram": histogram.tolist(),
        "pictures": [list(entry) for entry in listing.files],
    }
    known |= {"folder": os.path.abspath(listing.folder.parent), split: facts | {"sha256": _checksum(facts)}}
    with atomic_file(store / "facts.json") as stream:
        stream.write(json.dumps(known).encode())
