"""torch's schedulers and losses are the judges; a run that was interrupted must equal the one that was not."""

import json
import os
import signal

import pytest
import torch

import train
from dataset import sources
from dataset.preprocess import Preprocess
from network import ResNet18
from runtime import checkpoint
from runtime.device import pick_precision
from training.evaluation import evaluate
from training.optimizer import SCHEDULES, learning_rate
from training.progress import format_duration
from training.step import TrainStep


def options(*flags):
    return train.parse_args([*flags])


class TestLearningRate:
    def scheduled(self, scheduler, optimizer, steps, by=1):
        """What a torch scheduler gives at each step, stepping every `by` iterations."""
        rates = []
        for step in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if (step + 1) % by == 0:
                scheduler.step()
        return rates

    def optimizer(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)

    def ours(self, steps, steps_per_epoch, *flags):
        args = options("--lr", "0.2", *flags)
        return [learning_rate(step, steps, steps_per_epoch, args) for step in range(steps)]

    def test_step(self):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.1)
        expected = self.scheduled(scheduler, optimizer, 50 * 4, by=4)
        assert self.ours(50 * 4, 4) == pytest.approx(expected, rel=1e-12)

    def test_exponential_of_report_b(self):
        optimizer = self.optimizer()
        gamma = 0.35 ** (1 / 30)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
        expected = self.scheduled(scheduler, optimizer, 31 * 4, by=4)
        ours = self.ours(31 * 4, 4, "--schedule", "exponential")
        assert ours == pytest.approx(expected, rel=1e-12)
        assert ours[0] == 0.2 and ours[-1] == pytest.approx(0.07)  # 0.1 -> 0.035 at epoch 30, for a rate of 0.1

    def test_warm_up(self):
        plain, warm = (self.ours(40, 4, "--lr-warmup-epochs", epochs) for epochs in ("0", "2.5"))
        assert warm[:10] == pytest.approx([0.02 * step for step in range(1, 11)]) and warm[10:] == plain[10:]

    def test_cosine(self):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
        expected = self.scheduled(scheduler, optimizer, 120)
        assert self.ours(120, 4, "--schedule", "cosine") == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("steps", [120, 97, 7])
    def test_onecycle(self, steps):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, cycle_momentum=False)
        rates = []
        for _ in range(steps):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            if len(rates) < steps:
                scheduler.step()
        assert self.ours(steps, 4, "--schedule", "onecycle") == pytest.approx(rates, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_the_shortest_runs(self, schedule, steps):
        rates = self.ours(steps, 1, "--schedule", schedule)
        assert all(0 < rate <= 0.2 for rate in rates)


class TestRun:
    def test_the_files_it_leaves(self, small_run):
        assert sorted(os.listdir(small_run)) == ["history.jsonl", "last.pt", "model.pt", "training_curves.png"]
        model = checkpoint.load(small_run / "model.pt")
        assert model.keys() == {"model", "classes", "mean", "std", "image_size", "config", "result", "history"}
        assert model["classes"] == ["disk", "ring", "stripes"] and model["image_size"] == 32
        assert model["config"]["batch_size"] == 16
        network, info = checkpoint.load_network(small_run / "last.pt")  # a run's own state can be looked at, too
        assert network.fc.out_features == 3 and info.history == model["history"]

    def test_the_history(self, small_run):
        lines = [json.loads(line) for line in (small_run / "history.jsonl").read_text().splitlines()]
        # 48 images in batches of 16: 3 iterations an epoch
        assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
            ("train", 1, 2), ("test", 1, 3), ("train", 2, 4), ("train", 2, 6), ("test", 2, 6)
        ]  # fmt: skip
        keys = {"kind", "epoch", "step", "loss", "accuracy"}
        assert all(line.keys() == keys for line in lines if line["kind"] == "test")
        assert all(
            line.keys() == keys | {"learning_rate", "images_per_second"} for line in lines if line["kind"] == "train"
        )
        assert all(0 <= line["accuracy"] <= 1 for line in lines)
        assert checkpoint.load(small_run / "model.pt")["history"] == lines

    def test_the_result_is_the_last_epochs(self, small_run, tmp_path):
        model = checkpoint.load(small_run / "model.pt")
        result = model["result"]
        assert result["test_accuracy"] == model["history"][-1]["accuracy"] and result["epoch"] == 2
        # measured again from the weights alone
        network, info = checkpoint.load_network(small_run / "model.pt")
        images, labels, _ = sources.load(str(small_run.parent / "pictures"), "test")
        preprocess = Preprocess(32, info.mean, info.std)
        precision = pick_precision("auto", torch.device("cpu"))
        loss, accuracy = evaluate(network, images, labels, preprocess, precision)
        assert loss == pytest.approx(result["test_loss"], rel=1e-5) and accuracy == result["test_accuracy"]

    def test_same_seed_same_run(self, small_run, tmp_path):
        run_on(small_run.parent / "pictures", tmp_path / "again", "--epochs", "2")
        run_on(small_run.parent / "pictures", tmp_path / "other", "--epochs", "2", "--seed", "1")
        assert_same_run(small_run, tmp_path / "again")
        with pytest.raises(AssertionError):
            assert_same_run(small_run, tmp_path / "other")


def run_on(pictures, out, *flags):
    fixed = "--image-size 32 --batch-size 16 --log-every 2 --device cpu".split()
    train.main(["--data", str(pictures), "--out", str(out), *fixed, *flags])


def without_speed(history):
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in history]


def assert_same_run(a, b):
    """Weights, statistics, momentum and history lines, bit for bit."""
    first, second = (checkpoint.load(out / "last.pt") for out in (a, b))
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    momentum, other = (state["optimizer"]["state"] for state in (first, second))
    assert momentum.keys() == other.keys() and len(momentum) == 62
    for n in momentum:
        assert torch.equal(momentum[n]["momentum_buffer"], other[n]["momentum_buffer"])
    assert without_speed(first["history"]) == without_speed(second["history"])
    lines, others = ([json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()] for out in (a, b))
    assert without_speed(lines) == without_speed(others)


@pytest.fixture
def interrupted(monkeypatch):
    """A run of two epochs that gets a signal in the iterations told, and is resumed after each."""

    def run(pictures, out, steps, number=signal.SIGTERM, resumes=None):
        done, step_before = [0], TrainStep.__call__

        def train_step(*args):
            done[0] += 1
            if done[0] in steps:
                os.kill(os.getpid(), number)
            return step_before(*args)

        monkeypatch.setattr(TrainStep, "__call__", train_step)
        before = signal.signal(number, signal.SIG_DFL)  # it is ignored where the tests run in the background
        codes = []
        for resume in [()] + [("--resume",)] * (len(steps) if resumes is None else resumes):
            try:
                run_on(pictures, out, "--epochs", "2", *resume)
            except SystemExit as stop:
                codes.append(stop.code)
        signal.signal(number, before)
        return codes

    return run


class TestResume:
    @pytest.mark.parametrize("steps", [{1}, {2}, {3}, {4}, {1, 2}, {4, 5}, {1, 2, 3, 4, 5}], ids=str)
    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, small_run, tmp_path, interrupted, capsys, steps):
        """In a log interval, at its end, at an epoch's end, and several times in one epoch."""
        codes = interrupted(small_run.parent / "pictures", tmp_path / "run", steps)
        assert codes == [128 + signal.SIGTERM] * len(steps)
        assert "the same command with --resume" in capsys.readouterr().out
        assert_same_run(small_run, tmp_path / "run")
        first, second = (checkpoint.load(out / "model.pt")["result"] for out in (small_run, tmp_path / "run"))
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert first[name] == second[name]

    def test_ctrl_c(self, small_run, tmp_path, interrupted):
        assert interrupted(small_run.parent / "pictures", tmp_path / "run", {2}, signal.SIGINT) == [130]
        assert_same_run(small_run, tmp_path / "run")

    def test_lines_after_the_last_save_come_once(self, small_run, tmp_path, interrupted):
        """Killed between a line and the next save: the file has a line the checkpoint does not know."""
        pictures, out = small_run.parent / "pictures", tmp_path / "run"
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

    def test_a_damaged_last_pt_falls_back_on_the_one_before(self, small_run, tmp_path, interrupted, capsys):
        pictures, out = small_run.parent / "pictures", tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:  # stopped for good after the third save
            patch.setattr(train.Run, "save_model", lambda *args: pytest.fail("it went on to the end"))
            interrupted(pictures, out, {2, 4, 5}, resumes=2)
        whole = (out / "last.pt").read_bytes()
        (out / "last.pt").write_bytes(whole[: len(whole) // 2])
        assert checkpoint.load(out / "last.prev.pt")["step"] == 4
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert "warning" in capsys.readouterr().err
        assert_same_run(small_run, out)
        # the damaged file did not take the place of the good one
        assert checkpoint.load(out / "last.prev.pt")["step"] == 4

    @pytest.mark.parametrize("shorter", [("--epochs", "1"), ("--max-steps", "1"), ("--max-steps", "5")], ids=" ".join)
    def test_a_longer_run_has_nothing_of_the_shorter_ones_end(self, small_run, tmp_path, shorter):
        pictures, out = small_run.parent / "pictures", tmp_path / "run"
        run_on(pictures, out, "--epochs", "2", *shorter)
        run_on(pictures, out, "--epochs", "2", "--resume")
        assert_same_run(small_run, out)

    def test_a_finished_run_resumed_stays_as_it_is(self, small_run, tmp_path):
        pictures, out = small_run.parent / "pictures", tmp_path / "run"
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

    def test_fewer_iterations_than_done_are_refused(self, small_run, capsys):
        with pytest.raises(SystemExit):
            run_on(small_run.parent / "pictures", small_run, "--epochs", "1", "--resume")
        assert "has done 6 iterations, more than the 3" in capsys.readouterr().err

    def test_another_length_is_refused_where_the_learning_rate_follows_it(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path / "run", "--epochs", "1", "--schedule", "cosine")
        with pytest.raises(SystemExit):
            run_on(folder, tmp_path / "run", "--epochs", "2", "--schedule", "cosine", "--resume")
        assert "--epochs was 1" in capsys.readouterr().err

    def test_other_pictures_than_the_run_began_with_are_refused(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path / "run", "--epochs", "1")
        (folder / "train" / "disk" / "5.png").unlink()
        with pytest.raises(SystemExit):
            run_on(folder, tmp_path / "run", "--epochs", "2", "--resume")
        assert "images have changed" in capsys.readouterr().err

    def test_init_and_its_file_are_not_needed_to_resume(self, small_run, folder, tmp_path):
        weights = tmp_path / "weights.pt"
        weights.write_bytes((small_run / "model.pt").read_bytes())
        run_on(folder, tmp_path / "run", "--epochs", "1", "--init", str(weights))
        weights.unlink()
        run_on(folder, tmp_path / "run", "--epochs", "2", "--init", str(weights), "--resume")

    @pytest.mark.parametrize("flags", [("--seed", "3"), ("--lr", "0.5"), ("--no-augment",), ("--schedule", "cosine")])
    def test_other_settings_are_refused_by_name(self, small_run, capsys, flags):
        before = (small_run / "last.pt").read_bytes()
        with pytest.raises(SystemExit):
            run_on(small_run.parent / "pictures", small_run, "--epochs", "2", "--resume", *flags)
        assert flags[0].replace("--no-", "--") in capsys.readouterr().err
        assert (small_run / "last.pt").read_bytes() == before


class TestRecipe:
    FLAGS = ["--epochs", "2", "--ema-decay", "0.7", "--lr-warmup-epochs", "1", "--cutout", "8", "--no-norm-decay"]

    def test_with_everything_an_interrupted_run_ends_as_if_it_had_not_been(self, folder, tmp_path, monkeypatch):
        run_on(folder, tmp_path / "alone", *self.FLAGS)
        for steps in range(1, 7):  # one iteration at a time
            run_on(folder, tmp_path / "run", *self.FLAGS, "--max-steps", str(steps), *["--resume"][: steps - 1])
        run_on(folder, tmp_path / "run", *self.FLAGS, "--resume")
        assert_same_run(tmp_path / "alone", tmp_path / "run")
        first, second = (checkpoint.load(tmp_path / name / "last.pt")["ema"] for name in ("alone", "run"))
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    def test_the_average_is_what_is_tested_and_handed_on(self, folder, tmp_path):
        run_on(folder, tmp_path, *self.FLAGS)
        state, (network, info) = checkpoint.load(tmp_path / "last.pt"), checkpoint.load_network(tmp_path)
        assert torch.equal(network.fc.weight, state["ema"]["fc.weight"])
        assert not torch.equal(network.fc.weight, state["model"]["fc.weight"])
        images, labels, _ = sources.load(str(folder), "test")
        preprocess = Preprocess(32, info.mean, info.std)
        loss, accuracy = evaluate(network, images, labels, preprocess, pick_precision("auto", torch.device("cpu")))
        assert loss == pytest.approx(info.result["test_loss"], rel=1e-5)

    def test_held_out_images_stand_in_for_the_test_split(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path, "--epochs", "1", "--hold-out", "10", "--test-flip")
        out = capsys.readouterr().out
        assert "38 training and 10 test images" in out and "with mirror images" in out
        result = checkpoint.load(tmp_path / "model.pt")["result"]
        assert 0 <= result["test_accuracy_flipped"] <= 1 and result["step"] == 2


class TestInit:
    def test_going_on_at_another_image_size(self, small_run, tmp_path):
        pictures = small_run.parent / "pictures"
        fixed = "--image-size 48 --epochs 1 --batch-size 16 --lr 1e-9 --weight-decay 0".split()
        train.main(["--data", str(pictures), "--out", str(tmp_path), "--init", str(small_run / "model.pt"), *fixed])
        before, after = (checkpoint.load(out / "model.pt")["model"] for out in (small_run, tmp_path))
        assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)

    def test_other_classes_get_a_new_last_layer(self, small_run):
        network = ResNet18(5)
        last = network.fc.weight.clone()
        checkpoint.load_pretrained(small_run / "model.pt", network)
        assert torch.equal(network.fc.weight, last)
        assert torch.equal(network.conv1.weight, checkpoint.load(small_run / "model.pt")["model"]["conv1.weight"])


@pytest.mark.parametrize("flags", [("--log-every", "2"), ("--log-every", "1000"), ("--max-steps", "1")], ids=" ".join)
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(folder, tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setattr("training.run.SAVE_EVERY", 0)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        run_on(folder, out, "--epochs", "3", "--lr", "1e38", *flags)
    assert stop.value.code == 1 and "lower --lr" in capsys.readouterr().err
    assert not (out / "model.pt").exists() and "NaN" not in (out / "history.jsonl").read_text()
    for file in out.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(file)["model"].values())
    run_on(folder, out, "--epochs", "1", "--overwrite")


def test_overwrite_keeps_the_old_run_until_the_new_one_is_saved(small_run, tmp_path, monkeypatch):
    pictures, out = small_run.parent / "pictures", tmp_path / "run"
    run_on(pictures, out, "--epochs", "1")
    before = {name: (out / name).read_bytes() for name in ("last.pt", "model.pt")}
    with pytest.raises(SystemExit):
        run_on(pictures, out, "--epochs", "2", "--lr", "1e38", "--overwrite")
    assert {name: (out / name).read_bytes() for name in before} == before
    run_on(pictures, out, "--epochs", "2", "--overwrite")
    assert_same_run(small_run, out)
    assert not (out / "last.prev.pt").exists()


def test_bf16_on_a_cpu(folder, tmp_path):
    run_on(folder, tmp_path / "run", "--max-steps", "2", "--precision", "bf16")
    assert checkpoint.load(tmp_path / "run" / "model.pt")["model"]["conv1.weight"].dtype == torch.float32


def test_max_steps_ends_with_a_result(folder, tmp_path, capsys):
    run_on(folder, tmp_path / "run", "--max-steps", "4")
    assert checkpoint.load(tmp_path / "run" / "model.pt")["result"]["step"] == 4
    assert "next: python visualizer.py --ckpt" in capsys.readouterr().out


def test_on_a_cpu_it_says_how_long_it_will_take(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.progress.SLOW_RUN_SECONDS", 0)
    run_on(folder, tmp_path / "run", "--epochs", "2")
    out = capsys.readouterr().out
    assert "this will take about" in out and "for a quick look: --data shapes" in out


def test_cifar10_by_name(fake_cifar10, tmp_path):
    root, _ = fake_cifar10
    train.main(
        ["--root", str(root), "--image-size", "32", "--batch-size", "10", "--epochs", "1", "--out", str(tmp_path)]
    )
    assert checkpoint.load(tmp_path / "model.pt")["classes"][0] == "airplane"


def test_tensorboard_is_named_where_it_is_missing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        run_on(folder, tmp_path / "run", "--tensorboard")
    assert stop.value.code == 1 and "pip install tensorboard" in capsys.readouterr().err


def test_tensorboard_files(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="an optional package")
    run_on(folder, tmp_path / "run", "--tensorboard", "--max-steps", "2")
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("seconds, text", [(5, "5 s"), (600, "10 min"), (46000, "12.8 h")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
