"""Scripts in processes of their own that start at once: forked from a process that has imported torch.

A new Python computes for four seconds until it has imported train.py. The fork server does it once for all tests of a
worker. A child is still a process of its own: it has its own pid, gets signals, and can be killed. Where there is no
fork server (Windows), a child is a new Python.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 300  # then a child that hangs is killed
PRELOADED = ["children", "narrow", "visualizer", "torch.distributed.launcher.api"]
context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


class Child:
    """A script in a process and session of its own, used like subprocess.Popen.

    script       path of a file, or name of a module
    environment  variables beside those of this process; OMP_NUM_THREADS sets the number of threads
    """

    def __init__(self, script, *arguments, cwd=ROOT, environment=None):
        _start_server()
        reader, writer = context.Pipe(duplex=False)
        arguments = str(script), list(map(str, arguments)), cwd, environment or {}, writer
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        writer.close()
        self.pid, self.stdout = self._process.pid, open(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        self._limit = threading.Timer(LIMIT_SECONDS, self.kill)
        self._limit.daemon = True
        self._limit.start()

    @property
    def returncode(self):
        """Exit code, minus the number of a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a child", timeout)
        self._limit.cancel()
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def finish(self, code=0):
        """Waits for its end, which must have this exit code, and returns what it printed."""
        with self:
            text = self.stdout.read()
        assert self.returncode == code, text
        return text

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0]:
            self.kill()
        self.stdout.close()
        self.wait()


def start_ranks(script, *arguments):
    """Two processes of one training, with the variables that torchrun sets and one thread each; rank 0 first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    ranks = [{"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [Child(script, *arguments, environment=shared | rank) for rank in ranks]


def _start_server():
    """The server imports what its path leads to when it starts."""
    if context.get_start_method() == "forkserver":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
            context.set_forkserver_preload(PRELOADED)
            multiprocessing.forkserver.ensure_running()


def _run(script, arguments, cwd, environment, writer):
    """In the child: runs the script as Python does from a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even where the tests run in the background
    for name in {"SIGHUP", "SIGTERM"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    if hasattr(os, "setsid"):
        os.setsid()
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(cwd)
    sys.argv[1:] = arguments
    if script.endswith(".py"):
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
