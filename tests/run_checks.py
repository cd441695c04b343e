"""Small runs of train.py, how two runs are compared, and scripts in processes of their own that start at once."""

import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import train
from runtime import checkpoint
from training.step import TrainStep

ROOT = Path(__file__).parent.parent
context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


def run_on(pictures, out, *flags):
    """A run in fp32, unless a flag says otherwise: the default differs between CPUs, as does rounding to bf16."""
    fixed = "--image-size 32 --batch-size 16 --log-every 2 --device cpu --precision fp32".split()
    train.main(["--data", str(pictures), "--out", str(out), *fixed, *flags])


@contextmanager
def before_steps(steps, action):
    """Within the block, `action` is called at the beginning of these iterations, counted from 1 over all runs."""
    done, call = 0, TrainStep.__call__

    def train_step(*args):
        nonlocal done
        done += 1
        if done in steps:
            action()
        return call(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", train_step)
        yield


def interrupt(run, steps, number=signal.SIGTERM, resumes=None):
    """The exit codes of `run`, which gets a signal in these iterations, over all calls; it is resumed after each."""
    codes = []
    before = signal.signal(number, signal.SIG_DFL)  # it is ignored where the tests run in the background
    with before_steps(steps, lambda: os.kill(os.getpid(), number)):
        for resume in [()] + [("--resume",)] * (len(steps) if resumes is None else resumes):
            try:
                run(*resume)
            except SystemExit as stop:
                codes.append(stop.code)
    signal.signal(number, before)
    return codes


def kill(run, step):
    """Calls `run()` and ends it at the beginning of this iteration, counted from 1, without a chance to save."""
    Killed = type("Killed", (BaseException,), {})
    with before_steps({step}, Mock(side_effect=Killed)), pytest.raises(Killed):
        run()


def lines_of(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def without_speed(history):
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in history]


def assert_same_run(a, b):
    """Weights, statistics, momentum and history lines, bit for bit."""
    first, second = (checkpoint.load(out / "last.pt") for out in (a, b))
    tensors, others = (
        {("momentum", n): value["momentum_buffer"] for n, value in state["optimizer"]["state"].items()}
        | {(kind, name): value for kind in ("model", "ema") for name, value in state.get(kind, {}).items()}
        for state in (first, second)
    )
    assert tensors.keys() == others.keys() >= {("momentum", 61), ("model", "fc.bias")}
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert without_speed(first["history"]) == without_speed(second["history"])
    assert without_speed(lines_of(a)) == without_speed(lines_of(b))


class Child:
    """A script in a process and session of its own, used like subprocess.Popen.

    It is forked from a process that has imported torch and train.py, which takes four seconds, once for all tests of a
    worker; still it has its own pid, gets signals, and can be killed. On Windows it is a new Python.

    script       path of a file, or name of a module
    environment  variables beside those of this process; OMP_NUM_THREADS sets the number of threads
    """

    def __init__(self, script, *arguments, cwd=ROOT, environment=None):
        if context.get_start_method() == "forkserver":
            with pytest.MonkeyPatch.context() as patch:  # the server imports what its path leads to when it starts
                patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
                context.set_forkserver_preload(["run_checks", "narrow", "visualizer", "torch.distributed.launcher.api"])
                multiprocessing.forkserver.ensure_running()
        reader, writer = context.Pipe(duplex=False)
        arguments = str(script), list(map(str, arguments)), cwd, environment or {}, writer
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        writer.close()
        self.pid, self.stdout = self._process.pid, open(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        self._limit = threading.Timer(300, self.kill)  # if it hangs
        self._limit.daemon = True
        self._limit.start()

    @property
    def returncode(self):
        """Exit code, or minus the number of a signal; None while it runs."""
        return self._process.exitcode

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
        self._process.join()
        self._limit.cancel()


def start_ranks(script, *arguments):
    """Two processes of one training, with the variables that torchrun sets and one thread each; rank 0 first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    ranks = [{"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [Child(script, *arguments, environment=shared | rank) for rank in ranks]


def _run(script, arguments, cwd, environment, writer):
    """In the child: runs the script as Python does from a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even where the tests run in the background
    if hasattr(os, "setsid"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    os.chdir(cwd)
    sys.argv[1:] = arguments
    run = runpy.run_path if script.endswith(".py") else functools.partial(runpy.run_module, alter_sys=True)
    run(script, run_name="__main__")
