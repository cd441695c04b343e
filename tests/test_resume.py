"""A run that was interrupted must equal the one that was not, bit for bit."""

import json
import signal

import pytest
import torch
from run_checks import assert_same_run, interrupt, kill, run_on, without_speed

import train
from runtime import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]


def interrupt_two_epochs(pictures, out, steps, number=signal.SIGTERM, resumes=None):
    """A run of two epochs that gets a signal in these iterations and is resumed after each."""
    return interrupt(lambda *flags: run_on(pictures, out, "--epochs", "2", *flags), steps, number, resumes)


def remove_an_image(folder):
    (folder / "train" / "disk" / "5.png").unlink()


def swap_two_classes(folder):
    """Names, labels, mean and standard deviation stay."""
    for old, new in (("disk", "other"), ("ring", "disk"), ("other", "ring")):
        (folder / "train" / old).rename(folder / "train" / new)


def move_a_test_image(folder):
    (folder / "test" / "disk" / "1.png").rename(folder / "test" / "ring" / "9.png")


class TestResume:
    @pytest.mark.parametrize("steps", [{1}, {3}, {4, 5}, {1, 2, 3, 4, 5}], ids=str)
    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, narrow_run, tmp_path, capsys, steps):
        """In a log interval, at its end, at an epoch's end, and several times in one epoch."""
        codes = interrupt_two_epochs(narrow_run.parent / "pictures", tmp_path / "run", steps)
        assert codes == [128 + signal.SIGTERM] * len(steps)
        assert "the same command with --resume" in capsys.readouterr().out
        assert_same_run(narrow_run, tmp_path / "run")
        first, second = (checkpoint.load(out / "model.pt")["result"] for out in (narrow_run, tmp_path / "run"))
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert first[name] == second[name]

    def test_ctrl_c(self, narrow_run, tmp_path):
        assert interrupt_two_epochs(narrow_run.parent / "pictures", tmp_path / "run", {2}, signal.SIGINT) == [130]
        assert_same_run(narrow_run, tmp_path / "run")

    def test_lines_after_the_last_save_come_once(self, narrow_run, tmp_path):
        """Killed between a line and the next save: the file has a line the checkpoint does not know."""
        pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Run, "save_model", lambda *args: (_ for _ in ()).throw(SystemExit(1)))
            with pytest.raises(SystemExit):
                run_on(pictures, out, "--epochs", "1")
        with open(out / "history.jsonl", "a") as file:
            file.write('{"kind": "train", "epoch": 2, "step": 4}\n')
        state = checkpoint.load(out / "last.pt")
        run_on(pictures, out, "--epochs", "2", "--resume")
        lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        assert lines[: len(state["history"])] == state["history"]
        assert [line["step"] for line in lines if line["kind"] == "test"] == [3, 6]
        assert sum(line["step"] == 4 for line in lines) == 1

    def test_a_damaged_last_pt_falls_back_on_the_one_before(self, narrow_run, tmp_path, capsys):
        pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
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

    @pytest.mark.parametrize("shorter", [("--epochs", "1"), ("--max-steps", "1"), ("--max-steps", "5")], ids=" ".join)
    def test_a_longer_run_has_nothing_of_the_shorter_ones_end(self, narrow_run, tmp_path, shorter):
        pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
        run_on(pictures, out, "--epochs", "2", *shorter)
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert_same_run(narrow_run, out)

    def test_a_finished_run_resumed_stays_as_it_is(self, narrow_run, tmp_path):
        pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
        run_on(pictures, out, "--max-steps", "5")
        before = checkpoint.load(out / "model.pt")
        run_on(pictures, out, "--max-steps", "5", "--resume")
        after = checkpoint.load(out / "model.pt")
        assert without_speed(before["history"]) == without_speed(after["history"])
        assert all(before["result"][name] == after["result"][name] for name in before["result"].keys() - {"seconds"})

    def test_a_finished_run_resumed_with_other_lines_gets_none_of_zeros(self, folder, tmp_path):
        run_on(folder, tmp_path / "run", "--epochs", "1", "--log-every", "1")
        before = (tmp_path / "run" / "history.jsonl").read_text()
        run_on(folder, tmp_path / "run", "--epochs", "1", "--resume", "--log-every", "2")
        assert (tmp_path / "run" / "history.jsonl").read_text() == before

    def test_files_of_others_stay(self, folder, tmp_path):
        (tmp_path / "run").mkdir()
        for name in (".mine.tmp", ".last.pt.123.tmp"):
            (tmp_path / "run" / name).touch()
        run_on(folder, tmp_path / "run", "--max-steps", "1")
        assert (tmp_path / "run" / ".mine.tmp").exists() and not (tmp_path / "run" / ".last.pt.123.tmp").exists()

    def test_fewer_iterations_than_done_are_refused(self, narrow_run, capsys):
        with pytest.raises(SystemExit):
            run_on(narrow_run.parent / "pictures", narrow_run, "--epochs", "1", "--resume")
        assert "has done 6 iterations, more than the 3" in capsys.readouterr().err

    def test_another_length_is_refused_where_the_learning_rate_follows_it(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path / "run", "--epochs", "1", "--schedule", "cosine")
        with pytest.raises(SystemExit):
            run_on(folder, tmp_path / "run", "--epochs", "2", "--schedule", "cosine", "--resume")
        assert "--epochs was 1" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [remove_an_image, swap_two_classes, move_a_test_image], ids=lambda f: f.__name__)
    def test_other_images_than_the_run_began_with_are_refused(self, folder, tmp_path, capsys, change):
        run_on(folder, tmp_path / "run", "--epochs", "1")
        change(folder)
        with pytest.raises(SystemExit):
            run_on(folder, tmp_path / "run", "--epochs", "2", "--resume")
        assert "images have changed" in capsys.readouterr().err

    def test_it_is_saved_in_time_in_the_middle_of_everything(self, narrow_run, tmp_path, monkeypatch):
        """Every time it is due, at a log line or not; the state is that of a run from before data were compared."""
        monkeypatch.setattr("training.run.SAVE_EVERY_SECONDS", 0)
        pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
        kill(lambda: run_on(pictures, out, "--epochs", "2", "--log-every", "100000"), 6)
        state = checkpoint.load(out / "last.pt")
        assert state["step"] == 5 and state["since_line"][2] == 5 * 16 and state["in_epoch"][2] == 2 * 16
        del state["fingerprint"]
        torch.save(state, out / "last.pt")
        run_on(pictures, out, "--epochs", "2", "--log-every", "100000", "--resume")
        run_on(pictures, tmp_path / "whole", "--epochs", "2", "--log-every", "100000")
        assert_same_run(tmp_path / "whole", out)

    def test_init_and_its_file_are_not_needed_to_resume(self, narrow_run, folder, tmp_path):
        weights = tmp_path / "weights.pt"
        weights.write_bytes((narrow_run / "model.pt").read_bytes())
        run_on(folder, tmp_path / "run", "--epochs", "1", "--init", str(weights))
        weights.unlink()
        run_on(folder, tmp_path / "run", "--epochs", "2", "--init", str(weights), "--resume")

    def test_a_run_from_before_norm_decay_was_off_is_refused_or_continued(self, narrow_run, tmp_path, capsys):
        """Such a run has weight decay on biases and batch norms, and does not know newer flags."""
        pictures = narrow_run.parent / "pictures"
        run_on(pictures, tmp_path / "whole", "--epochs", "2", "--norm-decay")
        interrupt(lambda *flags: run_on(pictures, tmp_path / "old", "--epochs", "2", "--norm-decay"), {4}, resumes=0)
        state = checkpoint.load(tmp_path / "old" / "last.pt")
        del state["config"]["cutmix"]
        torch.save(state, tmp_path / "old" / "last.pt")
        with pytest.raises(SystemExit):
            run_on(pictures, tmp_path / "old", "--epochs", "2", "--resume")
        assert "--norm-decay was True" in capsys.readouterr().err
        run_on(pictures, tmp_path / "old", "--epochs", "2", "--norm-decay", "--resume")
        assert_same_run(tmp_path / "whole", tmp_path / "old")

    @pytest.mark.parametrize("flags", [("--seed", "3"), ("--lr", "0.5"), ("--no-augment",), ("--schedule", "cosine")])
    def test_other_settings_are_refused_by_name(self, narrow_run, capsys, flags):
        before = (narrow_run / "last.pt").read_bytes()
        with pytest.raises(SystemExit):
            run_on(narrow_run.parent / "pictures", narrow_run, "--epochs", "2", "--resume", *flags)
        assert flags[0].replace("--no-", "--") in capsys.readouterr().err
        assert (narrow_run / "last.pt").read_bytes() == before


def test_overwrite_keeps_the_old_run_until_the_new_one_is_saved(narrow_run, tmp_path, monkeypatch):
    pictures, out = narrow_run.parent / "pictures", tmp_path / "run"
    run_on(pictures, out, "--epochs", "1")
    before = {name: (out / name).read_bytes() for name in ("last.pt", "model.pt")}
    with pytest.raises(SystemExit):
        run_on(pictures, out, "--epochs", "2", "--lr", "1e38", "--overwrite")
    assert {name: (out / name).read_bytes() for name in before} == before
    run_on(pictures, out, "--epochs", "2", "--overwrite")
    assert_same_run(narrow_run, out)
    assert not (out / "last.prev.pt").exists()
