"""A run that was interrupted must equal the one that was not, bit for bit."""

import shutil
import signal
from itertools import cycle

import pytest
import torch
from conftest import ends
from run_checks import assert_same_run, interrupt, kill, lines_of, run_on, without_speed

import train
from runtime import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]


@pytest.fixture
def pictures(narrow_run):
    return narrow_run.parent / "pictures"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def finished(narrow_run, out):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(narrow_run, out)


def interrupt_two_epochs(pictures, out, steps, number=signal.SIGTERM, resumes=None):
    """A run of two epochs that gets a signal in these iterations and is resumed after each, on the host in turns."""
    where = cycle(["device", "host"])
    flags = ["--epochs", "2", "--images-on"]
    return interrupt(lambda *more: run_on(pictures, out, *flags, next(where), *more), steps, number, resumes)


def change_state(out, **changes):
    torch.save(checkpoint.load(out / "last.pt") | changes, out / "last.pt")


class TestInterrupted:
    @pytest.mark.parametrize("steps, number", [({4}, signal.SIGINT), ({1, 2, 3, 4, 5}, signal.SIGTERM)], ids=str)
    def test_it_ends_as_if_it_had_not_been(self, narrow_run, pictures, out, capsys, steps, number):
        """In a log interval, at its end, at an epoch's end, and several times in one epoch."""
        assert interrupt_two_epochs(pictures, out, steps, number) == [128 + number] * len(steps)
        assert "the same command with --resume" in capsys.readouterr().out
        assert_same_run(narrow_run, out)
        first, second = (checkpoint.load(folder / "model.pt")["result"] for folder in (narrow_run, out))
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert first[name] == second[name]

    def test_a_damaged_last_pt_falls_back_on_the_one_before(self, narrow_run, pictures, out, capsys):
        with pytest.MonkeyPatch.context() as patch:  # stopped for good after the third save
            patch.setattr(train.Run, "save_model", lambda *args: pytest.fail("it went on to the end"))
            interrupt_two_epochs(pictures, out, {2, 4, 5}, resumes=2)
        whole = (out / "last.pt").read_bytes()
        (out / "last.pt").write_bytes(whole[: len(whole) // 2])
        assert checkpoint.load(out / "last.prev.pt")["step"] == 4
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert "warning" in capsys.readouterr().err
        assert_same_run(narrow_run, out)
        # the damaged file did not take the place of the good one
        assert checkpoint.load(out / "last.prev.pt")["step"] == 4

    def test_it_is_saved_in_time_in_the_middle_of_everything(self, pictures, tmp_path, out, monkeypatch):
        """Every time it is due, at a log line or not; the state is that of a run from before data were compared."""
        monkeypatch.setattr("training.run.SAVE_EVERY_SECONDS", 0)
        flags = ["--epochs", "2", "--log-every", "100000"]
        kill(lambda: run_on(pictures, out, *flags), 6)
        state = checkpoint.load(out / "last.pt")
        assert state["step"] == 5 and state["since_line"][2] == 5 * 16 and state["in_epoch"][2] == 2 * 16
        del state["fingerprint"]
        torch.save(state, out / "last.pt")
        run_on(pictures, out, *flags, "--resume")
        run_on(pictures, tmp_path / "whole", *flags)
        assert_same_run(tmp_path / "whole", out)

    def test_a_run_from_before_norm_decay_was_off_is_refused_or_continued(self, pictures, tmp_path, out, capsys):
        """Such a run has weight decay on biases and batch norms, and does not know newer flags."""
        flags = ["--epochs", "2", "--norm-decay"]
        run_on(pictures, tmp_path / "whole", *flags)
        interrupt(lambda *more: run_on(pictures, out, *flags, *more), {4}, resumes=0)
        config = checkpoint.load(out / "last.pt")["config"]
        del config["cutmix"]
        change_state(out, config=config)
        ends(capsys, lambda more: run_on(pictures, out, *more), ["--epochs", "2", "--resume"], 1, "--norm-decay was")
        run_on(pictures, out, *flags, "--resume")
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
        assert all(before[name] == after[name] for name in before.keys() - {"seconds"})

    @pytest.mark.parametrize("flags, words", [
        ("--epochs 1", "has done 6 iterations, more than the 3"), ("--seed 3", "--seed"), ("--lr 0.5", "--lr"),
        ("--no-augment", "--augment"), ("--schedule cosine", "--schedule"), ("--sizes 32:2", "--sizes")])  # fmt: skip
    def test_other_settings_are_refused_by_name(self, finished, pictures, capsys, flags, words):
        before = (finished / "last.pt").read_bytes()
        flags = ["--resume", *(["--epochs", "2"] if "--epochs" not in flags else []), *flags.split()]
        ends(capsys, lambda flags: run_on(pictures, finished, *flags), flags, 1, words)
        assert (finished / "last.pt").read_bytes() == before

    def test_another_length_is_refused_where_the_learning_rate_follows_it(self, finished, pictures, capsys):
        config = checkpoint.load(finished / "last.pt")["config"] | {"schedule": "cosine", "lr_gamma": None}
        change_state(finished, config=config)
        flags = "--resume --schedule cosine --epochs 3".split()
        ends(capsys, lambda flags: run_on(pictures, finished, *flags), flags, 1, "--epochs was 2")

    @pytest.mark.parametrize("change", ["an image less", "two classes swapped", "a test image moved"])
    def test_other_images_than_the_run_began_with_are_refused(self, finished, folder, capsys, change):
        if change == "an image less":
            (folder / "train" / "disk" / "5.png").unlink()
        elif change == "two classes swapped":  # names, labels, mean and standard deviation stay
            for old, new in (("disk", "other"), ("ring", "disk"), ("other", "ring")):
                (folder / "train" / old).rename(folder / "train" / new)
        else:
            (folder / "test" / "disk" / "1.png").rename(folder / "test" / "ring" / "9.png")
        change_state(finished, config=checkpoint.load(finished / "last.pt")["config"] | {"data": str(folder)})
        flags = ["--epochs", "2", "--resume"]
        ends(capsys, lambda flags: run_on(folder, finished, *flags), flags, 1, "images have changed")


class TestFiles:
    def test_those_of_others_stay(self, pictures, out):
        out.mkdir()
        for name in (".mine.tmp", ".last.pt.123.tmp"):
            (out / name).touch()
        run_on(pictures, out, "--max-steps", "1")
        assert (out / ".mine.tmp").exists() and not (out / ".last.pt.123.tmp").exists()

    def test_that_of_init_is_not_needed_to_resume(self, narrow_run, pictures, tmp_path, out):
        weights = shutil.copy(narrow_run / "model.pt", tmp_path / "weights.pt")
        run_on(pictures, out, "--max-steps", "1", "--init", str(weights))
        weights.unlink()
        run_on(pictures, out, "--max-steps", "2", "--init", str(weights), "--resume")

    def test_overwrite_keeps_the_old_run_until_the_new_one_is_saved(self, narrow_run, pictures, out):
        run_on(pictures, out, "--epochs", "1")
        before = {name: (out / name).read_bytes() for name in ("last.pt", "model.pt")}
        with pytest.raises(SystemExit):
            run_on(pictures, out, "--epochs", "2", "--lr", "1e38", "--overwrite")
        assert {name: (out / name).read_bytes() for name in before} == before
        run_on(pictures, out, "--epochs", "2", "--overwrite")
        assert_same_run(narrow_run, out)
        assert not (out / "last.prev.pt").exists()
