"""What a run of train.py leaves behind and says, and how it ends."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ends
from narrow import NarrowResNet18
from run_checks import kill, lines_of, run_on

import train
from dataset import sources
from dataset.preprocess import Preprocess
from runtime import checkpoint
from training.distributed import ALONE
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
        assert network.fc.out_features == 3 and info.history == model["history"] == lines_of(narrow_run)

    def test_the_history(self, narrow_run):
        lines, keys = lines_of(narrow_run), {"kind", "epoch", "step", "image_size", "loss", "accuracy"}
        more = {"train": {"learning_rate", "images_per_second"}, "test": set()}
        # 48 images in batches of 16: 3 iterations per epoch
        assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
            ("train", 1, 2), ("test", 1, 3), ("train", 2, 4), ("train", 2, 6), ("test", 2, 6)
        ]  # fmt: skip
        assert all(line.keys() == keys | more[line["kind"]] and 0 <= line["accuracy"] <= 1 for line in lines)

    def test_the_result_is_that_of_the_weights(self, narrow_run):
        network, info = checkpoint.load_network(narrow_run / "model.pt")
        images, labels, _ = sources.load(str(narrow_run.parent / "pictures"), "test")
        loss, accuracy = evaluate(network, images, labels, Preprocess(32, info.mean, info.std))
        assert loss == pytest.approx(info.result["test_loss"], rel=1e-5) and info.result["epoch"] == 2
        assert accuracy == info.result["test_accuracy"] == info.history[-1]["accuracy"]

    def test_its_weights_follow_the_seed(self):
        first, again, other = (
            train.make_network(train.parse_args(["--seed", seed]), 3, True, ALONE).fc.weight for seed in "112"
        )
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_a_short_one_in_bf16_on_a_cpu(self, folder, tmp_path, capsys, monkeypatch):
        """It says how long it will take, keeps the weights in float32, and ends with a result."""
        monkeypatch.setattr("training.progress.SLOW_RUN_SECONDS", 0)
        run_on(folder, tmp_path / "run", "--max-steps", "4", "--precision", "bf16")
        out, model = capsys.readouterr().out, checkpoint.load(tmp_path / "run" / "model.pt")
        assert "this will take about" in out and "for a quick look: --data shapes" in out
        assert "next: python visualizer.py --ckpt" in out
        assert model["result"]["step"] == 4 and model["model"]["conv1.weight"].dtype == torch.float32

    def test_below_17_pixels_it_is_fp32_and_says_so(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path / "run", "--max-steps", "2", "--precision", "bf16", "--image-size", "8")
        assert "below 17 pixels" in capsys.readouterr().out
        assert checkpoint.load(tmp_path / "run" / "model.pt")["result"]["precision"] == "fp32"

    @pytest.mark.slow
    def test_held_out_images_stand_in_for_the_test_split(self, folder, tmp_path, capsys):
        run_on(folder, tmp_path, "--epochs", "1", "--hold-out", "10", "--test-flip")
        out = capsys.readouterr().out
        assert "38 training and 10 test images" in out and "with mirror images" in out
        result = checkpoint.load(tmp_path / "model.pt")["result"]
        assert 0 <= result["test_accuracy_flipped"] <= 1 and result["step"] == 2


class TestInit:
    def test_going_on_at_another_image_size(self, narrow_run, tmp_path):
        """And with new classes, except for the last layer."""
        flags = "--image-size 48 --lr 1e-9 --weight-decay 0 --max-steps 1 --init".split()
        run_on(narrow_run.parent / "pictures", tmp_path, *flags, str(narrow_run / "model.pt"))
        before, after = (checkpoint.load(out / "model.pt")["model"] for out in (narrow_run, tmp_path))
        assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)
        network = NarrowResNet18(5)
        last = network.fc.weight.clone()
        checkpoint.load_pretrained(narrow_run / "model.pt", network)
        assert torch.equal(network.fc.weight, last) and torch.equal(network.conv1.weight, before["conv1.weight"])

    def test_a_lower_learning_rate_is_not_proposed_where_it_cannot_help(self, narrow_run, tmp_path, capsys):
        """The first loss, before any update, is that of the weights passed to --init."""
        state = checkpoint.load(narrow_run / "model.pt")
        state["model"]["fc.weight"] *= 1e38
        torch.save(state, tmp_path / "weights.pt")
        flags = ["--epochs", "1", "--init", str(tmp_path / "weights.pt")]

        def run(flags):
            run_on(narrow_run.parent / "pictures", tmp_path / "run", *flags)

        assert "--lr" not in ends(capsys, run, flags, 1, "other weights to --init")
        assert "--lr" not in ends(capsys, run, [*flags, "--precision", "bf16"], 1, "--precision fp32")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--log-every", "1000"), ("--max-steps", "1")], ids=" ".join)
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(folder, tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setattr("training.run.SAVE_EVERY_SECONDS", 0)
    out = tmp_path / "run"
    flags = ["--epochs", "3", "--lr", "1e38", *flags]
    ends(capsys, lambda flags: run_on(folder, out, *flags), flags, 1, "lower --lr")
    assert not (out / "model.pt").exists() and "NaN" not in (out / "history.jsonl").read_text()
    for file in out.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(file)["model"].values())


def test_cifar10_by_name(fake_cifar10, tmp_path):
    root, _ = fake_cifar10
    flags = "--image-size 32 --batch-size 10 --max-steps 1 --root".split()
    train.main([*flags, str(root), "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "model.pt")["classes"][0] == "airplane"


def test_tensorboard_is_named_where_it_is_missing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    flags = ["--tensorboard"]
    ends(capsys, lambda flags: run_on(folder, tmp_path / "run", *flags), flags, 1, "pip install tensorboard")


def test_tensorboard_has_every_number_of_the_history_once(folder, tmp_path):
    """Interrupted after a line that it writes again; then overwritten, which removes the old events."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    flags = ["--epochs", "2", "--save-every", "3", "--tensorboard"]
    kill(lambda: run_on(folder, out, *flags), 5)
    run_on(folder, out, *flags, "--resume")

    def assert_events_are_the_history():
        events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
        scalars = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
        }
        expected = {}
        for line in lines_of(out):
            for name in line.keys() - {"kind", "epoch", "step"}:
                value = pytest.approx(line[name], rel=1e-6)
                expected.setdefault(f"{line['kind']}/{name}", []).append((line["step"], value))
        assert scalars == expected and len(scalars["train/loss"]) == len(scalars["test/accuracy"]) + 1

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
