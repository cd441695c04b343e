"""torch's schedulers and losses are the judges; a run that was interrupted must equal the one that was not."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from narrow import NarrowResNet18
from run_checks import assert_same_run, kill, run_on

import train
from dataset import sources
from dataset.preprocess import Preprocess
from runtime import checkpoint
from training.evaluation import evaluate
from training.progress import format_duration

pytestmark = pytest.mark.usefixtures("narrow")


class TestRun:
    def test_the_files_it_leaves(self, narrow_run):
        assert sorted(os.listdir(narrow_run)) == ["history.jsonl", "last.pt", "model.pt", "training_curves.png"]
        model = checkpoint.load(narrow_run / "model.pt")
        assert model.keys() == {"model", "classes", "mean", "std", "image_size", "config", "result", "history"}
        assert model["classes"] == ("disk", "ring", "stripes") and model["image_size"] == 32
        assert model["config"]["batch_size"] == 16
        network, info = checkpoint.load_network(narrow_run / "last.pt")  # a run's own state can be looked at, too
        assert network.fc.out_features == 3 and info.history == model["history"]

    def test_the_history(self, narrow_run):
        lines = [json.loads(line) for line in (narrow_run / "history.jsonl").read_text().splitlines()]
        # 48 images in batches of 16: 3 iterations per epoch
        assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
            ("train", 1, 2), ("test", 1, 3), ("train", 2, 4), ("train", 2, 6), ("test", 2, 6)
        ]  # fmt: skip
        keys = {"kind", "epoch", "step", "image_size", "loss", "accuracy"}
        assert all(line.keys() == keys for line in lines if line["kind"] == "test")
        assert all(
            line.keys() == keys | {"learning_rate", "images_per_second"} for line in lines if line["kind"] == "train"
        )
        assert all(0 <= line["accuracy"] <= 1 for line in lines)
        assert checkpoint.load(narrow_run / "model.pt")["history"] == lines

    def test_the_result_is_the_last_epochs(self, narrow_run, tmp_path):
        model = checkpoint.load(narrow_run / "model.pt")
        result = model["result"]
        assert result["test_accuracy"] == model["history"][-1]["accuracy"] and result["epoch"] == 2
        # measured again from the weights alone
        network, info = checkpoint.load_network(narrow_run / "model.pt")
        images, labels, _ = sources.load(str(narrow_run.parent / "pictures"), "test")
        preprocess = Preprocess(32, info.mean, info.std)
        loss, accuracy = evaluate(network, images, labels, preprocess)
        assert loss == pytest.approx(result["test_loss"], rel=1e-5) and accuracy == result["test_accuracy"]

    @pytest.mark.slow
    def test_same_seed_same_run(self, narrow_run, tmp_path):
        run_on(narrow_run.parent / "pictures", tmp_path / "again", "--epochs", "2")
        run_on(narrow_run.parent / "pictures", tmp_path / "other", "--epochs", "2", "--seed", "1")
        assert_same_run(narrow_run, tmp_path / "again")
        with pytest.raises(AssertionError):
            assert_same_run(narrow_run, tmp_path / "other")


@pytest.mark.slow
class TestRecipe:
    def test_held_out_images_stand_in_for_the_test_split(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path, "--epochs", "1", "--hold-out", "10", "--test-flip")
        out = capsys.readouterr().out
        assert "38 training and 10 test images" in out and "with mirror images" in out
        result = checkpoint.load(tmp_path / "model.pt")["result"]
        assert 0 <= result["test_accuracy_flipped"] <= 1 and result["step"] == 2


class TestInit:
    def test_going_on_at_another_image_size(self, narrow_run, tmp_path):
        pictures = narrow_run.parent / "pictures"
        fixed = "--image-size 48 --epochs 1 --batch-size 16 --lr 1e-9 --weight-decay 0".split()
        train.main(["--data", str(pictures), "--out", str(tmp_path), "--init", str(narrow_run / "model.pt"), *fixed])
        before, after = (checkpoint.load(out / "model.pt")["model"] for out in (narrow_run, tmp_path))
        assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)

    def test_other_classes_get_a_new_last_layer(self, narrow_run):
        network = NarrowResNet18(5)
        last = network.fc.weight.clone()
        checkpoint.load_pretrained(narrow_run / "model.pt", network)
        assert torch.equal(network.fc.weight, last)
        assert torch.equal(network.conv1.weight, checkpoint.load(narrow_run / "model.pt")["model"]["conv1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--log-every", "2"), ("--log-every", "1000"), ("--max-steps", "1")], ids=" ".join)
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(folder, tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setattr("training.run.SAVE_EVERY_SECONDS", 0)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        run_on(folder, out, "--epochs", "3", "--lr", "1e38", *flags)
    assert stop.value.code == 1 and "lower --lr" in capsys.readouterr().err
    assert not (out / "model.pt").exists() and "NaN" not in (out / "history.jsonl").read_text()
    for file in out.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(file)["model"].values())
    run_on(folder, out, "--epochs", "1", "--overwrite")


def test_bf16_keeps_the_weights_in_float32(folder, tmp_path):
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
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        run_on(folder, tmp_path / "run", "--tensorboard")
    assert stop.value.code == 1 and "pip install tensorboard" in capsys.readouterr().err


def test_tensorboard_has_every_number_of_the_history_once(folder, tmp_path):
    """Interrupted after a line that it writes again; then overwritten, which removes the old events."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    flags = ["--epochs", "2", "--save-every", "3", "--tensorboard"]
    kill(lambda: run_on(folder, out, *flags), 5)
    run_on(folder, out, *flags, "--resume")

    def assert_events_are_the_history():
        events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
        found = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        expected = {}
        for line in map(json.loads, (out / "history.jsonl").read_text().splitlines()):
            for name in line.keys() - {"kind", "epoch", "step"}:
                value = pytest.approx(line[name], rel=1e-6)
                expected.setdefault(f"{line['kind']}/{name}", []).append((line["step"], value))
        assert found == expected and len(found["train/loss"]) == len(found["test/accuracy"]) + 1

    assert_events_are_the_history()
    run_on(folder, out, *flags, "--overwrite", "--seed", "1")
    assert_events_are_the_history()
    assert len(list((out / "tensorboard").iterdir())) == 1
    run_on(folder, out, "--max-steps", "1", "--overwrite")
    assert not list((out / "tensorboard").iterdir())


def test_a_broken_figure_does_not_cost_the_run(folder, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise SyntaxError("invalid syntax")

    monkeypatch.setattr("figures.training_curves.training_curves", fails)
    run_on(folder, tmp_path / "run", "--max-steps", "1")
    said = capsys.readouterr()
    assert "training_curves.png could not be drawn (invalid syntax)" in said.err and "next: python" in said.out
    assert checkpoint.load(tmp_path / "run" / "model.pt")["result"]["step"] == 1
    monkeypatch.setitem(sys.modules, "figures", None)
    run_on(folder, tmp_path / "other", "--max-steps", "1")
    assert (tmp_path / "other" / "model.pt").exists() and "could not be drawn" in capsys.readouterr().err


def test_below_17_pixels_it_is_fp32_and_says_so(folder, tmp_path, capsys):
    run_on(folder, tmp_path / "run", "--max-steps", "2", "--precision", "bf16", "--image-size", "8")
    assert "fp32, because bf16 gradients are wrong on CPUs below 17 pixels" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / "model.pt")["result"]["precision"] == "fp32"


def test_a_lower_learning_rate_is_not_proposed_where_it_cannot_help(narrow_run, tmp_path, capsys):
    """The first loss, before any update, is that of the weights passed to --init."""
    state = checkpoint.load(narrow_run / "model.pt")
    state["model"]["fc.weight"] *= 1e38
    torch.save(state, tmp_path / "weights.pt")
    flags = ["--epochs", "1", "--init", str(tmp_path / "weights.pt")]
    for more, advice in (([], "pass other weights to --init"), (["--precision", "bf16"], "pass --precision fp32")):
        with pytest.raises(SystemExit):
            run_on(narrow_run.parent / "pictures", tmp_path / "run", *flags, *more)
        error = capsys.readouterr().err
        assert advice in error and "--lr" not in error


def test_an_interrupt_before_training_ends_in_one_word(folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_data", interrupted)
    with pytest.raises(SystemExit) as stop:
        run_on(folder, tmp_path / "run")
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_an_interrupt_while_torch_is_imported_ends_in_one_word(tmp_path):
    """A torch that interrupts its own import."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, train.__file__],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in the background
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("seconds, text", [(5, "5 s"), (600, "10 min"), (46000, "12.8 h")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
