"""The files of an output folder: figures and JSON as they are drawn, and summary.json, which lists them."""

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from dataset.sources import DataError
from figures import style
from figures.registry import NotDrawn, Outcome
from network import ResNet18
from runtime.checkpoint import CheckpointError, atomic_file, first_line


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` in a folder that is created if it is missing. Raises OSError, which says what to do."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        reason, advice = error.strerror or first_line(error), "free space on the disk, or pass another --out"
        raise OSError(f"{path} could not be written ({reason}): {advice}") from error


def write_figures(
    name: str, drawn: Iterator[tuple[Path, Figure | Any]], folder: Path, format: str, dpi: int
) -> Outcome:
    """Write each figure as it is drawn, and anything else as JSON; print the name and the seconds it took.

    An error of the figure is an outcome. Raises OSError if a file cannot be written.
    """
    started, files, reason, has_failed = time.monotonic(), [], "", False
    try:
        for path, content in drawn:
            is_figure = isinstance(content, Figure)
            file = path.with_name(f"{path.name}.{format if is_figure else 'json'}")
            if is_figure:
                with output_file(folder / file) as stream:
                    style.save(content, stream, format, dpi)
                say(f"{folder / file} ({time.monotonic() - started:.1f} s)")
            else:
                write_text(folder / file, json.dumps(content, indent=1, allow_nan=False))
            files.append(file)
            started = time.monotonic()
    except NotDrawn as error:
        reason = str(error)
    except OSError:
        raise
    except Exception as error:  # it must not cost the other figures
        reason, has_failed = say_error(name, error), True
    if reason and not has_failed:
        say(f"{name}: left out, {reason}")
    return Outcome(tuple(files), reason, has_failed)


def say_error(name: str, error: Exception) -> str:
    """Print and return an error in one line; one that a user cannot fix after its traceback."""
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in reason:
        reason = "out of memory: pass a smaller --batch-size"
    elif not isinstance(error, CheckpointError | DataError):
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {reason}"
    say(f"error: {name}: {reason}", sys.stderr)
    return reason


def write_text(file: Path, text: str) -> None:
    """Write a JSON or HTML file whole or not at all, and print its name."""
    with output_file(file) as stream:
        stream.write(text.encode(errors="replace"))  # a file name need not be valid text
    say(str(file))


def write_summary(folder: Path, content: dict, network: ResNet18, files: Iterable[Path]) -> None:
    """Write summary.json: the content, a hash of the network, and the files drawn of it, relative to the folder.

    Files that an earlier summary.json lists as drawn of another network, and that this run did not replace, are
    removed, because they would be taken for this network's. Of the same network, an earlier search's results stay if
    this run has none.
    """
    digest = hashlib.sha256()
    for values in network.state_dict().values():
        digest.update(values.cpu().contiguous().numpy().tobytes())
    before, network_hash = {"files": []}, digest.hexdigest()[:16]
    with suppress(OSError, ValueError, TypeError, KeyError):  # there is none, or it is of another kind
        content_before = json.loads((folder / "summary.json").read_bytes())
        before = content_before if all(isinstance(name, str) for name in content_before["files"]) else before
    listed = {file.as_posix() for file in files}
    if before.get("network") == network_hash:
        content = content | before if "images_searched" in before.keys() - content.keys() else content
        listed.update(before["files"])
    else:
        others = [folder / name for name in set(before["files"]) - listed]
        removed = [file for file in others if file.is_file() and file.resolve().is_relative_to(folder.resolve())]
        for file in removed:
            file.unlink()
        if removed:
            say(f"removed {len(removed)} files of another network, which an earlier run drew")
    content = content | {"network": network_hash, "files": sorted(listed)}
    write_text(folder / "summary.json", json.dumps(content, indent=1, allow_nan=False))


def say(line: str, file=None) -> None:
    """Print a line above the progress bars, at once."""
    tqdm.write(line, file=file)
    (file or sys.stdout).flush()
