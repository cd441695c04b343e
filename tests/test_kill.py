"""A real process, killed at random moments and resumed each time, must end as one that was left alone."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from children import Child
from conftest import ends
from run_checks import assert_same_run

import train
from runtime import checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals and folders that can be locked"),
    pytest.mark.usefixtures("narrow"),
]
NARROW = Path(__file__).parent / "narrow.py"
KILLS = 4


def command(pictures, out, *flags):
    """60 iterations at three image sizes, 3 per epoch, each of them saved."""
    fixed = "--sizes 32:8 40:8 48:4 --batch-size 16 --log-every 5 --save-every 1 --cutmix 0.5 --device cpu".split()
    return ["--data", str(pictures), "--out", str(out), *fixed, *flags]


def saved_at(file):
    """When the file was written; 0 while a save has renamed the old file and not yet put the new one in its place."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_a_save(file, process):
    """Until the process has written the file, or has ended; returns the seconds that passed."""
    before, started = saved_at(file), time.monotonic()
    while process.returncode is None and saved_at(file) <= before:
        time.sleep(0.001)
    return time.monotonic() - started


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_at_random_moments(folder, tmp_path, precision):
    """In steps, saves, evaluations, changes of image size and at ends of epochs."""
    flags = ["--precision", precision]
    train.main(command(folder, tmp_path / "alone", *flags))
    out, moments, reached = tmp_path / "killed", random.Random(0), []
    for _ in range(KILLS):
        with Child(NARROW, *command(folder, out, *flags, *(["--resume"] if reached else []))) as process:
            wait_for_a_save(out / "last.pt", process)  # so that each goes further than the one before
            seconds = wait_for_a_save(out / "last.pt", process)
            time.sleep(seconds * moments.uniform(0, 5))  # somewhere in the next five iterations
            process.kill()
        # killed between two renames, the last one's place is empty
        last = out / "last.pt" if (out / "last.pt").exists() else out / "last.prev.pt"
        reached.append(checkpoint.load(last)["step"])
    assert reached[0] < 60 and len(set(reached)) >= 2, f"the kills came too early or too late: {reached}"
    train.main(command(folder, out, *flags, "--resume"))
    assert_same_run(tmp_path / "alone", out)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_a_second_run_is_refused_and_a_closed_terminal_saves(folder, tmp_path, capsys):
    """The first run gets SIGHUP and can write nowhere any more; it still saves, and continues later."""
    first = Child(NARROW, *command(folder, tmp_path / "run"))
    any(" iterations on " in line for line in first.stdout)  # reads until training begins
    first.send_signal(signal.SIGSTOP)  # alive, and in the middle of its work
    ends(capsys, train.main, command(folder, tmp_path / "run", "--overwrite"), 1, "another run is writing to")
    first.send_signal(signal.SIGHUP)
    first.stdout.close()
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=200) == 128 + signal.SIGHUP
    step = checkpoint.load(tmp_path / "run" / "last.pt")["step"]
    train.main(command(folder, tmp_path / "run", "--max-steps", str(step + 1), "--resume"))
