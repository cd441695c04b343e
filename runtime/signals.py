"""What may come between a run and its end: another run in the same folder, and signals."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder. The system lifts the lock even of a process that was killed.

    Raises CheckpointError when another process holds it. Does nothing on Windows, where folders cannot be locked.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another run is writing to {folder}: wait for its end, or pass another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def noted_signals(second_ends: bool = True) -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP, so that the iteration at hand can be finished.

    second_ends: a second one ends at once. Not so under torchrun, which hands on what a terminal sends to all anyway.
    """
    noted = []

    def note(number, frame):
        if noted and second_ends:
            raise KeyboardInterrupt
        if noted:
            return
        noted.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone, and writing to it would be an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        os.write(2, b"\nstopping after this iteration or evaluation; once more stops at once, without saving\n")

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # as nohup wants it
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
