"""Command-line helpers of the scripts: argument types, errors in one line, the output folder."""

import argparse
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

NEGATABLE = {"augment", "norm_decay", "cuda_graph"}  # flags of train.py with a --no- form


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows the default of every flag that has one."""

    def _get_help_string(self, action):
        default = action.default
        if default is None or default is False or default is argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"


def format_duration(seconds: float) -> str:
    """A duration with its unit: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class ArgumentParser(argparse.ArgumentParser):
    """argparse that shows defaults, rejects abbreviations, and reports a usage error in one line with exit code 2.

    reads_files: `@FILE` reads flags from a file, which may have comments (`# ...`) and quotes, as in a shell.
    """

    def __init__(self, description: str, reads_files: bool = False):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.fromfile_prefix_chars = "@" if reads_files else None
        if hasattr(sys.stdout, "reconfigure"):  # what its encoding lacks becomes an escape, as Python does for stderr
            sys.stdout.reconfigure(errors="backslashreplace")

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            self.error(f"{line!r} in a file of flags: {error}")

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


def number(kind: type, least: float = -math.inf, above: float = -math.inf, most: float = math.inf,
           below: float = math.inf) -> Callable[[str], float]:  # fmt: skip
    """A `type=` for argparse: finite, least <= value <= most, above < value < below."""
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
    noun = "whole number" if kind is int else "number"

    def parse(text: str) -> float:
        with suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and least <= value <= most and above < value < below:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} {wanted}".rstrip())

    return parse


def size_and_epochs(text: str) -> tuple[int, int]:
    """A `type=` for argparse: image size and number of epochs at it, "96:20" -> (96, 20)."""
    size, colon, epochs = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIZE:EPOCHS, for example 96:20")
    return number(int, least=32, most=4096)(size), number(int, least=1)(epochs)


def recipe(config: dict[str, Any]) -> list[str]:
    """Settings of train.py as lines for `train.py @FILE`: all of them, so that they do not depend on later defaults."""
    lines = []
    for name, value in config.items():
        flag = name.replace("_", "-")
        if value is True or (value is False and name in NEGATABLE):
            lines.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (list, tuple)):
            words = [":".join(map(str, part)) if name == "sizes" else str(part) for part in value]
            lines += [f"--{flag} {' '.join(words)}"] if value else []
        elif value is not None and value is not False:
            lines.append(f"--{flag} {shlex.quote(str(value))}")
    return lines


@contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """Reports errors that a user can fix as `error: ...` with exit code 1; all others keep their traceback."""
    try:
        yield
        return
    except (*expected, OSError) as error:
        message = " ".join(str(error).split())
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        message = "out of memory: pass a smaller --batch-size"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def output_folder(path: str) -> Path:
    """The folder, created if it is missing. Raises OSError if it is not writable."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"--out {path} is not a writable folder ({error.strerror or error}): pass another") from error
