"""Run a command with a time limit, its output in a file; on Linux it ends with the process that started it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # as in sys/prctl.h
SAVING_SECONDS = 60  # between SIGTERM and SIGKILL

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    code       exit code; negative: the number of the signal that ended it
    last_line  of its output
    timed_out  whether it was stopped at its time limit
    """

    code: int
    last_line: str
    timed_out: bool

    def reason(self) -> str:
        """Why it failed, in one line."""
        if self.timed_out:
            return f"stopped at its time limit; last line: {self.last_line}"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}; last line: {self.last_line}"
        return self.last_line.removeprefix("error: ") or f"exit code {self.code}"


def run(command: Sequence[str | Path], log: Path, seconds: float | None = None, saves: bool = False,
        environment: dict[str, str] | None = None) -> Outcome:  # fmt: skip
    """Runs a command and appends its output to `log`.

    seconds      time limit; None: no limit
    saves        at the limit, send SIGTERM and wait for the command to save, before it and its children are killed
    environment  variables beside those of this process
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with start(command, log, environment) as process:
        timed_out = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            if saves:
                stop(process, SAVING_SECONDS)
        finally:
            kill(process)
    return Outcome(process.returncode, last_line(log), timed_out)


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


def stop(process: subprocess.Popen, seconds: float) -> None:
    """Sends SIGTERM to a process and waits until it has ended, at most so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


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
