"""Run a command with a time limit, its output in a file; on Linux it ends with the process that started it."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # as in sys/prctl.h
POLL_SECONDS = 0.2
SAVING_SECONDS = 60  # between SIGTERM and SIGKILL

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    code       exit code; negative: the number of the signal that ended it
    last_line  of its output
    timed_out  whether it was stopped at its time limit
    satisfied  whether it was stopped because it had done enough
    """

    code: int
    last_line: str
    timed_out: bool
    satisfied: bool

    def reason(self) -> str:
        """Why it failed, in one line."""
        if self.timed_out:
            return f"stopped at its time limit; last line: {self.last_line}"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}; last line: {self.last_line}"
        return self.last_line.removeprefix("error: ") or f"exit code {self.code}"


def run(command: Sequence[str | Path], log: Path, seconds: float = math.inf, saves: bool = False,
        until: Callable[[], bool] | None = None, environment: dict[str, str] | None = None) -> Outcome:  # fmt: skip
    """Runs a command and appends its output to `log`; at the end no child of its is left.

    seconds      time limit
    saves        at the limit, send SIGTERM and wait for the command to save, before it is killed
    until        end it by SIGTERM as soon as this returns true
    environment  variables beside those of this process
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline, timed_out, satisfied = time.monotonic() + seconds, False, False
    with start(command, log, environment) as process:
        try:
            while not timed_out and not satisfied and not ended_within(process, POLL_SECONDS):
                satisfied = until is not None and until()
                timed_out = not satisfied and time.monotonic() > deadline
            if satisfied or (timed_out and saves):
                process.terminate()
                ended_within(process, SAVING_SECONDS)
        finally:
            kill(process)
    return Outcome(process.returncode, last_line(log), timed_out, satisfied)


def start(command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts a command in a session of its own, its output appended to `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if _libc else None,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        )


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ended_within(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a process ends within this many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def kill(process: subprocess.Popen) -> None:
    """Ends a process and its children at once; harmless if they have ended."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    else:
        process.kill()
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a file that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    return next((line for line in reversed(lines) if line), "")
