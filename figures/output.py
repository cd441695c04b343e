"""The files of an output folder: figures and JSON as they are drawn, and summary.json, which lists them."""

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    started, files, json_files, json_content = time.monotonic(), [], [], None
    reason, failed = "", False
    try:
        for path, content in drawn:
            if not isinstance(content, Figure):
                json_content = content
                json_files.append(path.with_name(f"{path.name}.json"))
                write_json(folder / json_files[-1], content)
                continue
            file = path.with_name(f"{path.name}.{format}")
            with output_file(folder / file) as stream:
                style.save(content, stream, format, dpi)
            say(f"{folder / file} ({time.monotonic() - started:.1f} s)")
            files.append(file)
            started = time.monotonic()
        reason = "" if files else "its channels are zero at all units searched"
    except NotDrawn as error:
        reason = str(error)
    except OSError:
        raise
    except Exception as error:  # it must not cost the other figures
        reason, failed = say_error(name, error), True
    if reason and not failed:
        say(f"{name}: left out, {reason}")
    return Outcome(tuple(files), tuple(json_files), json_content, reason, failed)


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


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, and print its name."""
    with output_file(file) as stream:
        stream.write(json.dumps(content, indent=1, allow_nan=False).encode())
    say(str(file))


def write_summary(folder: Path, content: dict, network: ResNet18, files: Iterable[Path]) -> None:
    """Write summary.json: the content, a hash of the network, and the files drawn of it, relative to the folder.

    Files that an earlier summary.json lists as drawn of another network, and that this run did not replace, are
    removed, because they would be taken for this network's. Of the same network, an earlier search's results stay if
    this run has none.
    """
    before, digest = read_summary(folder), weights_digest(network)
    listed = {file.as_posix() for file in files}
    if before.get("network") == digest:
        content = content if "images_searched" in content else content | before
        listed.update(before["files"])
    else:
        removed = remove_files(folder, set(before.get("files", ())) - listed)
        if removed:
            say(f"removed {removed} files of another network, which an earlier run drew")
    write_json(folder / "summary.json", content | {"network": digest, "files": sorted(listed)})


def read_summary(folder: Path) -> dict:
    """The content of summary.json; {} if there is none, or none of this kind."""
    try:
        content = json.loads((folder / "summary.json").read_bytes())
        return content if all(isinstance(name, str) for name in content["files"]) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def remove_files(folder: Path, names: Iterable[str]) -> int:
    """Remove the files of these names that lie in the folder; how many there were."""
    inside = [folder / name for name in names if (folder / name).resolve().is_relative_to(folder.resolve())]
    present = [file for file in inside if file.is_file()]
    for file in present:
        file.unlink()
    return len(present)


def weights_digest(network: ResNet18) -> str:
    """A hash of all parameters and buffers: equal for copies of a network, whatever their file is called."""
    digest = hashlib.sha256()
    for values in network.state_dict().values():
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def say(line: str, file=None) -> None:
    """Print a line above the progress bars, at once."""
    tqdm.write(line, file=file)
    (file or sys.stdout).flush()
