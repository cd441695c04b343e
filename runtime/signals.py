"""What can interrupt a run: another run in the same folder, and signals."""

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
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; the system releases the lock of a killed process.

    Raises CheckpointError if another process holds it. Does nothing where folders cannot be locked, as on Windows and
    some network file systems, of which a line tells.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another run is writing to {folder}: wait, or pass another --out") from error
        except OSError as error:
            print(f"note: {folder} cannot be locked ({error.strerror}): let no second run write to it")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def graceful_shutdown(alone: bool = True, says: bool = True) -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in a list, so that the current iteration can finish.

    alone  a second signal ends the process at once; not under torchrun, which forwards a terminal's signals that the
           processes get anyway
    says   print a message, in one of several processes
    """
    received = []

    def receive(number, frame):
        if received and alone:
            raise KeyboardInterrupt
        if received:
            return
        received.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone; writing to it would be an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if says:
            second = "; a second signal stops at once, without saving" if alone else ""
            os.write(2, f"\nstopping after this iteration or evaluation{second}\n".encode())

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, receive) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
