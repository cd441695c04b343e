"""What can interrupt a run: another run in the same folder, and signals."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder. Raises CheckpointError if another process holds the lock."""

    def refuse():
        raise CheckpointError(f"another run is writing to {folder}: wait, or pass another --out")

    with lock(folder, refuse):
        yield


@contextmanager
def lock(path: Path, when_held: Callable[[], None]) -> Iterator[bool]:
    """Locks a folder, or a file that is made if it is missing; the system releases the lock of a killed process.

    If another process holds it, calls `when_held`, then waits. Yields False where there are no locks: on Windows, and
    some network file systems.
    """
    if fcntl is None:
        yield False
        return
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT  # NFS locks only files that may be written
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            when_held()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def graceful_shutdown(second_ends: bool = True, verbose: bool = True) -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in a list, so that the current iteration can finish.

    second_ends  a second signal ends the process at once; not under torchrun, which forwards a terminal's signals that
                 the processes get anyway
    verbose      print a message, in one of several processes
    """
    received = []

    def receive(number, frame):
        if received:
            if second_ends:
                raise KeyboardInterrupt
            return
        received.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone; writing to it would be an error
            for terminal in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if verbose:
            second = "; a second signal stops at once, without saving" if second_ends else ""
            os.write(2, f"\nstopping after this iteration or evaluation{second}\n".encode())

    signals = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
    ignored = {number for number in signals if signal.getsignal(number) == signal.SIG_IGN}  # SIGHUP, by nohup
    before = {number: signal.signal(number, receive) for number in signals - ignored}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
