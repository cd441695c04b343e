"""A real process, killed at random moments and resumed each time, must end as one that was left alone."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from children import Child
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


def start(*arguments):
    """train.py in a process of its own."""
    return Child(NARROW, *command(*arguments))


def saved_at(file):
    """When the file was written; 0 while a save has renamed the old file and not yet put the new one in its place."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_a_save(file, process):
    """Until the process has written the file, or has ended; returns the seconds that passed."""
    before, started = saved_at(file), time.monotonic()
    while process.poll() is None and saved_at(file) <= before:
        time.sleep(0.001)
    return time.monotonic() - started


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_at_random_moments(folder, tmp_path, precision):
    """In steps, saves, evaluations, changes of image size and at ends of epochs."""
    flags = ["--precision", precision]
    train.main(command(folder, tmp_path / "alone", *flags))
    out, moments, reached = tmp_path / "killed", random.Random(0), []
    for _ in range(KILLS):
        with start(folder, out, *flags, *(["--resume"] if reached else [])) as process:
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


def test_a_terminal_that_is_closed(folder, tmp_path):
    """The run gets SIGHUP and can write nowhere any more; it still saves, and continues later."""
    process = start(folder, tmp_path / "run")
    any(" iterations on " in line for line in process.stdout)  # reads until training begins
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=200) == 128 + signal.SIGHUP
    step = checkpoint.load(tmp_path / "run" / "last.pt")["step"]
    train.main(command(folder, tmp_path / "run", "--max-steps", str(step + 1), "--resume"))


def test_a_second_run_into_the_same_folder_is_refused(folder, tmp_path, capsys):
    with start(folder, tmp_path / "run") as first:
        first.stdout.readline()
        first.send_signal(signal.SIGSTOP)  # alive, and in the middle of its work
        with pytest.raises(SystemExit) as end:
            train.main(command(folder, tmp_path / "run", "--overwrite"))
        first.kill()
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: another run is writing to") and error.count("\n") == 1
