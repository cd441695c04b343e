"""A run that was interrupted, or killed at any moment, must equal the one that was not, bit for bit."""

import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import ends
from run_checks import Child, assert_same_run, interrupt, kill, lines_of, run_on, without_speed

import train
from runtime import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and folders that can be locked")
NARROW = Path(__file__).parent / "narrow.py"


@pytest.fixture
def pictures(narrow_run):
    return narrow_run.parent / "pictures"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def interrupt_two_epochs(pictures, out, steps, number=signal.SIGTERM, resumes=None):
    """A run of two epochs that gets a signal in these iterations and is resumed after each, on the host in turns."""
    where = cycle(["device", "host"])
    flags = ["--epochs", "2", "--images-on"]
    return interrupt(lambda *more: run_on(pictures, out, *flags, next(where), *more), steps, number, resumes)


class TestInterrupted:
    @pytest.mark.parametrize("steps, number", [({4}, signal.SIGINT), ({1, 2, 3, 4, 5}, signal.SIGTERM)], ids=str)
    def test_it_ends_as_if_it_had_not_been(self, narrow_run, pictures, out, capsys, steps, number):
        """In a log interval, at its end, at an epoch's end, and several times in one epoch."""
        assert interrupt_two_epochs(pictures, out, steps, number) == [128 + number] * len(steps)
        assert "the same command with --resume" in capsys.readouterr().out
        assert_same_run(narrow_run, out)
        first, second = (checkpoint.load(folder / "model.pt")["result"] for folder in (narrow_run, out))
        assert all(first[name] == second[name] for name in first.keys() - {"seconds"})

    def test_a_damaged_last_pt_falls_back_on_the_one_before(self, narrow_run, pictures, out, capsys):
        with pytest.MonkeyPatch.context() as patch:  # stopped for good after the third save
            patch.setattr(train.Run, "save_model", lambda *args: pytest.fail("it went on to the end"))
            interrupt_two_epochs(pictures, out, {2, 4, 5}, resumes=2)
        whole = (out / "last.pt").read_bytes()
        (out / "last.pt").write_bytes(whole[: len(whole) // 2])
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert "warning" in capsys.readouterr().err
        assert_same_run(narrow_run, out)
        # the damaged file did not take the place of the good one
        assert checkpoint.load(out / "last.prev.pt")["step"] == 4

    def test_it_is_saved_in_time_in_the_middle_of_everything(self, pictures, tmp_path, out, monkeypatch):
        """When it is due, at a log line or not; resumed from a state that knew neither CutMix nor hashes."""
        monkeypatch.setattr("training.loop.SAVE_EVERY_SECONDS", 0)
        flags = "--epochs 2 --log-every 100000 --scale-crop 0.3 --norm-decay --images-on".split()
        kill(lambda: run_on(pictures, out, *flags, "device"), 6)
        state = checkpoint.load(out / "last.pt")
        assert state["step"] == 5 and state["since_line"][2] == 5 * 16 and state["in_epoch"][2] == 2 * 16
        del state["fingerprint"], state["config"]["cutmix"]
        torch.save(state, out / "last.pt")
        run_on(pictures, out, *flags, "host", "--resume")
        run_on(pictures, tmp_path / "whole", *flags, "device")
        assert_same_run(tmp_path / "whole", out)


class TestFinished:
    @pytest.mark.parametrize("shorter", [("--epochs", "1"), ("--max-steps", "5")], ids=" ".join)
    def test_a_longer_run_has_nothing_of_the_shorter_ones_end(self, narrow_run, pictures, out, shorter):
        """Nor lines that were written after the last save: the file has one that the checkpoint does not know."""
        run_on(pictures, out, "--epochs", "2", *shorter)
        with open(out / "history.jsonl", "a") as file:
            file.write('{"kind": "train", "epoch": 2, "step": 4}\n')
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert_same_run(narrow_run, out)

    def test_resumed_it_stays_as_it_is(self, pictures, out):
        """And gets no line of zeros, where others are due."""
        run_on(pictures, out, "--max-steps", "5", "--log-every", "1")
        before, lines = checkpoint.load(out / "model.pt")["result"], lines_of(out)
        run_on(pictures, out, "--max-steps", "5", "--log-every", "2", "--resume")
        after = checkpoint.load(out / "model.pt")["result"]
        assert without_speed(lines_of(out)) == without_speed(lines)
        assert after.pop("seconds") >= before.pop("seconds") and after == before

    @pytest.mark.parametrize("flags, words", [
        ("--epochs 1", "6 iterations are done, more than the 3"), ("--epochs 2 --seed 3", "--seed was 0"),
        ("--epochs 2 --norm-decay", "--norm-decay was False"), ("--epochs 2 --sizes 32:2", "--sizes"),
        ("--epochs 3 --schedule cosine", "--epochs was 2")])  # it depends on the length  # fmt: skip
    def test_other_settings_are_refused_by_name(self, narrow_run, pictures, out, capsys, flags, words):
        before = (shutil.copytree(narrow_run, out) / "last.pt").read_bytes()
        ends(capsys, lambda flags: run_on(pictures, out, "--resume", *flags), flags.split(), 1, words)
        assert (out / "last.pt").read_bytes() == before

    @pytest.mark.parametrize("moves", [
        [("train/disk/5.png", "5.png")], [("test/disk/1.png", "test/ring/9.png")],
        # names, labels, mean and standard deviation stay
        [("train/disk", "disk"), ("train/ring", "train/disk"), ("disk", "train/ring")]])  # fmt: skip
    def test_other_images_than_the_run_began_with_are_refused(self, narrow_run, folder, out, capsys, moves):
        for old, new in moves:
            (folder / old).rename(folder / new)
        state = checkpoint.load(shutil.copytree(narrow_run, out) / "last.pt")
        torch.save(state | {"config": state["config"] | {"data": str(folder)}}, out / "last.pt")
        flags = ["--epochs", "2", "--resume"]
        ends(capsys, lambda flags: run_on(folder, out, *flags), flags, 1, "images have changed")


def test_files_of_others_and_of_init(narrow_run, pictures, tmp_path, out):
    """Other files than those of killed writes stay; to resume, the weights of --init are not needed."""
    out.mkdir()
    for name in (".mine.tmp", ".last.pt.123.tmp"):
        (out / name).touch()
    weights = shutil.copy(narrow_run / "model.pt", tmp_path / "weights.pt")
    run_on(pictures, out, "--max-steps", "1", "--init", str(weights))
    assert (out / ".mine.tmp").exists() and not (out / ".last.pt.123.tmp").exists()
    weights.unlink()
    run_on(pictures, out, "--max-steps", "2", "--init", str(weights), "--resume")


def test_overwrite_keeps_the_old_run_until_the_new_one_is_saved(narrow_run, pictures, out):
    run_on(pictures, out, "--epochs", "1", "--snapshots", "1")
    before = {name: (out / name).read_bytes() for name in ("last.pt", "model.pt")}
    with pytest.raises(SystemExit):
        run_on(pictures, out, "--epochs", "2", "--lr", "1e38", "--overwrite")
    assert {name: (out / name).read_bytes() for name in before} == before
    run_on(pictures, out, "--epochs", "2", "--overwrite")
    assert_same_run(narrow_run, out)
    assert not (out / "last.prev.pt").exists() and not checkpoint.snapshots(out)


def kill_command(pictures, out, *flags):
    """60 iterations at three image sizes, 3 per epoch, each of them saved."""
    fixed = "--sizes 32:8 40:8 48:4 --batch-size 16 --log-every 5 --save-every 1 --cutmix 0.5 --device cpu".split()
    return ["--data", str(pictures), "--out", str(out), *fixed, *flags]


def wait_for_a_save(file, process):
    """Until the process has written the file, or has ended; returns the seconds that passed."""
    before, started = file.stat().st_mtime_ns if file.exists() else 0, time.monotonic()
    while process.returncode is None:
        with suppress(FileNotFoundError):  # between two renames of a save
            if file.stat().st_mtime_ns > before:
                break
        time.sleep(0.001)
    return time.monotonic() - started


@needs_posix
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_at_random_moments(folder, tmp_path, precision):
    """In steps, saves, evaluations, changes of image size and at ends of epochs."""
    flags = ["--precision", precision]
    train.main(kill_command(folder, tmp_path / "alone", *flags))
    out, moments, reached = tmp_path / "killed", random.Random(0), []
    for _ in range(4):
        with Child(NARROW, *kill_command(folder, out, *flags, *(["--resume"] if reached else []))) as process:
            wait_for_a_save(out / "last.pt", process)  # so that each goes further than the one before
            seconds = wait_for_a_save(out / "last.pt", process)
            time.sleep(seconds * moments.uniform(0, 5))  # somewhere in the next five iterations
            process.kill()
        # killed between two renames, the last one's place is empty
        last = out / "last.pt" if (out / "last.pt").exists() else out / "last.prev.pt"
        reached.append(checkpoint.load(last)["step"])
    assert reached[0] < 60 and len(set(reached)) >= 2, f"the kills came too early or too late: {reached}"
    train.main(kill_command(folder, out, *flags, "--resume"))
    assert_same_run(tmp_path / "alone", out)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


@needs_posix
def test_a_second_run_is_refused_and_a_closed_terminal_saves(folder, tmp_path, capsys):
    """The first run gets SIGHUP and can write nowhere any more; it still saves, and continues later."""
    first = Child(NARROW, *kill_command(folder, tmp_path / "run"))
    any(" iterations on " in line for line in first.stdout)  # reads until training begins
    os.kill(first.pid, signal.SIGSTOP)  # alive, and in the middle of its work
    ends(capsys, train.main, kill_command(folder, tmp_path / "run", "--overwrite"), 1, "another run is writing to")
    os.kill(first.pid, signal.SIGHUP)
    first.stdout.close()
    os.kill(first.pid, signal.SIGCONT)
    with first:
        pass
    assert first.returncode == 128 + signal.SIGHUP
    step = checkpoint.load(tmp_path / "run" / "last.pt")["step"]
    train.main(kill_command(folder, tmp_path / "run", "--max-steps", str(step + 1), "--resume"))
