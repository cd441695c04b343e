"""A real process, killed at random moments and resumed each time, must end as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_folder
from run_checks import assert_same_run

from runtime import checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and folders that can be locked")
ROOT = Path(__file__).parent.parent
KILLS = 6


def start(pictures, out, *flags):
    fixed = "--image-size 32 --batch-size 16 --epochs 8 --log-every 5 --save-every 1 --device cpu".split()
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(pictures), "--out", str(out), *fixed, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed)


def heed():
    """Signals as a terminal's process has them, even where the tests run under nohup or in the background."""
    for name in ("SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def wait_for_a_save(file, process):
    """Until the process has written the file, or has ended."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > before):
        time.sleep(0.005)


def finish(process):
    """What a process still prints; it must end well."""
    with process:
        text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    return text


def test_a_run_killed_at_random_moments(tmp_path):
    """In steps, saves, evaluations and at ends of epochs: a state is written every iteration."""
    pictures = write_folder(tmp_path / "pictures")  # 3 iterations an epoch
    finish(start(pictures, tmp_path / "alone"))

    out, delays = tmp_path / "killed", random.Random(0)
    reached = []
    for _ in range(KILLS):
        with start(pictures, out, *(["--resume"] if reached else [])) as process:
            wait_for_a_save(out / "last.pt", process)  # so that each goes further than the one before
            time.sleep(delays.uniform(0, 1))
            process.kill()
        # killed between two renames, the last one's place is empty
        last = out / "last.pt" if (out / "last.pt").exists() else out / "last.prev.pt"
        reached.append(checkpoint.load(last)["step"])
    assert len(set(reached)) >= 3, f"the kills came too early or too late to tell anything: {reached}"

    finish(start(pictures, out, "--resume"))
    assert_same_run(tmp_path / "alone", out)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_a_terminal_that_is_closed(tmp_path):
    """The run gets SIGHUP and can write nowhere any more; it still saves, and goes on later."""
    pictures = write_folder(tmp_path / "pictures")
    process = start(pictures, tmp_path / "run")
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=100) == 128 + signal.SIGHUP
    assert (tmp_path / "run" / "last.pt").exists()
    finish(start(pictures, tmp_path / "run", "--resume"))


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    pictures = write_folder(tmp_path / "pictures")
    first = start(pictures, tmp_path / "run")
    first.stdout.readline()
    first.send_signal(signal.SIGSTOP)  # alive, and in the middle of its work
    with start(pictures, tmp_path / "run", "--overwrite") as second:
        text, _ = second.communicate(timeout=100)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1 and text.startswith("error: another run is writing to") and text.count("\n") == 1
    finish(first)
