"""Small runs of train.py, and how two runs are compared; shared by the tests of training."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch

import train
from runtime import checkpoint
from training.step import TrainStep


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
    """Calls `run(*flags)`, sends a signal in these iterations, counted over all calls, and resumes after each.

    Returns the exit codes of the interrupted calls. resumes: how often to resume, if not after every signal.
    """
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


class Killed(BaseException):
    """Ends a run without any chance to save."""


def kill(run, step):
    """Calls `run()` and kills it at the beginning of this iteration, counted from 1."""

    def end():
        raise Killed

    with before_steps({step}, end), pytest.raises(Killed):
        run()


def lines_of(out):
    """The lines of a run's history.jsonl."""
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def without_speed(history):
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in history]


def assert_same_run(a, b):
    """Weights, statistics, momentum and history lines, bit for bit."""
    first, second = (checkpoint.load(out / "last.pt") for out in (a, b))
    momentum, other = (
        {n: value["momentum_buffer"] for n, value in state["optimizer"]["state"].items()} for state in (first, second)
    )
    assert len(momentum) == 62
    for tensors, others in ((first["model"], second["model"]), (momentum, other),
                            (first.get("ema", {}), second.get("ema", {}))):  # fmt: skip
        assert tensors.keys() == others.keys()
        for name, value in tensors.items():
            assert torch.equal(value, others[name]), name
    assert without_speed(first["history"]) == without_speed(second["history"])
    assert without_speed(lines_of(a)) == without_speed(lines_of(b))
