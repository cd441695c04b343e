"""What a run of train.py leaves behind and says, how it ends, and how it grows in image size."""

import os
import re
import signal
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import ends
from narrow import NarrowResNet18, make_narrow
from run_checks import assert_same_run, interrupt, kill, lines_of, run_on

import train
from dataset import sources
from dataset.preprocess import Preprocess
from runtime import checkpoint
from training.evaluation import evaluate
from training.loop import Loop
from training.optimizer import Plan

pytestmark = pytest.mark.usefixtures("narrow")


def test_the_files_it_leaves(narrow_run):
    assert sorted(os.listdir(narrow_run)) == ["history.jsonl", "last.pt", "model.pt", "training_curves.png"]
    model = checkpoint.load(narrow_run / "model.pt")
    assert model.keys() == {"model", "classes", "mean", "std", "image_size", "config", "result", "history"}
    assert model["classes"] == ("disk", "ring", "stripes") and model["config"]["batch_size"] == 16
    network, info = checkpoint.load_network(narrow_run / "last.pt")  # a run's own state can be looked at, too
    assert network.fc.out_features == 3 and info.history == model["history"] == (lines := lines_of(narrow_run))
    # 48 images in batches of 16: 3 iterations per epoch
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
        ("train", 1, 2), ("test", 1, 3), ("train", 2, 4), ("train", 2, 6), ("test", 2, 6)]  # fmt: skip
    keys = {"kind", "epoch", "step", "image_size", "loss", "accuracy"}
    assert lines[-1].keys() == keys and lines[0].keys() == keys | {"learning_rate", "images_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize("size, precision", [("32", "bf16"), ("8", "fp32")])  # at 8, bf16 would be wrong
def test_a_short_one_with_held_out_images_and_a_broken_figure(folder, tmp_path, capsys, monkeypatch, size, precision):
    """It says how long it will take, keeps the weights in float32, and ends with a result."""
    monkeypatch.setattr("training.loop.SLOW_RUN_SECONDS", 0)
    monkeypatch.setattr("figures.training_curves.training_curves", Mock(side_effect=SyntaxError("invalid syntax")))
    flags = "--max-steps 4 --precision bf16 --hold-out 10 --test-flip --image-size".split()
    run_on(folder, tmp_path / "run", *flags, size)
    said, model = capsys.readouterr(), checkpoint.load(tmp_path / "run" / "model.pt")
    for words in ("38 training and 10 test images", "this will take about", "for a quick look: --data shapes",
                  "averaged with mirror images", "next: python visualizer.py --ckpt"):  # fmt: skip
        assert words in said.out
    assert "training_curves.png could not be drawn (invalid syntax)" in said.err
    assert model["result"]["step"] == 4 and model["result"]["precision"] == precision
    assert model["model"]["conv1.weight"].dtype == torch.float32
    assert model["result"]["test_accuracy_flipped"] in [n / 10 for n in range(11)]


def test_init_is_what_it_starts_from_at_another_image_size(narrow_run, tmp_path):
    """And with new classes, except for the last layer."""
    flags = "--image-size 48 --lr 1e-9 --weight-decay 0 --max-steps 1 --init".split()
    run_on(narrow_run.parent / "pictures", tmp_path, *flags, str(narrow_run / "model.pt"))
    before, after = (checkpoint.load(out / "model.pt")["model"] for out in (narrow_run, tmp_path))
    assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)
    other = NarrowResNet18(5)
    last = other.fc.weight.clone()
    checkpoint.load_pretrained(narrow_run / "model.pt", other)
    assert torch.equal(other.fc.weight, last) and torch.equal(other.conv1.weight, before["conv1.weight"])


def test_a_lower_learning_rate_is_not_proposed_where_it_cannot_help(narrow_run, tmp_path, capsys):
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
    monkeypatch.setattr("training.loop.SAVE_EVERY_SECONDS", 0)
    out = tmp_path / "run"
    flags = ["--epochs", "3", "--lr", "1e38", *flags]
    ends(capsys, lambda flags: run_on(folder, out, *flags), flags, 1, "lower --lr")
    assert not (out / "model.pt").exists() and "NaN" not in (out / "history.jsonl").read_text()
    for file in out.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(file)["model"].values())


def test_tensorboard_has_every_number_of_the_history_once(folder, tmp_path, capsys, monkeypatch):
    """Killed after a line that it writes again; then overwritten, which removes the old events."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    flags = ["--epochs", "2", "--save-every", "3", "--tensorboard"]
    kill(lambda: run_on(folder, out, *flags), 5)
    run_on(folder, out, *flags, "--resume")

    def assert_events_are_the_history():
        events, expected = accumulator.EventAccumulator(str(out / "tensorboard")).Reload(), {}
        for line in lines_of(out):
            for name in line.keys() - {"kind", "epoch", "step"}:
                value = pytest.approx(line[name], rel=1e-6)
                expected.setdefault(f"{line['kind']}/{name}", []).append((line["step"], value))
        assert set(events.Tags()["scalars"]) == expected.keys() > {"train/loss", "test/accuracy"}
        for name, points in expected.items():
            assert [(event.step, event.value) for event in events.Scalars(name)] == points

    assert_events_are_the_history()
    run_on(folder, out, *flags, "--overwrite", "--seed", "1")
    assert_events_are_the_history()
    run_on(folder, out, "--max-steps", "1", "--overwrite")
    assert not list((out / "tensorboard").iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ends(capsys, lambda more: run_on(folder, out, *flags, *more), ["--overwrite"], 1, "pip install tensorboard")


def run_growing(pictures, out, *flags):
    """At three sizes; 3 iterations per epoch."""
    fixed = ("--sizes 32:1 40:2 64:1 --ema-decay 0.7 --cutout 8 --cutmix 0.5 --flip alternate --schedule linear "
             "--nesterov --lr-warmup-epochs 1 --batch-size 16 --log-every 2 --device cpu --precision fp32 "
             "--snapshots 2")  # fmt: skip
    train.main(["--data", str(pictures), "--out", str(out), *fixed.split(), *flags])


@pytest.fixture(scope="module")
def growing(narrow_run, tmp_path_factory):
    """The folder of a run at three sizes, for each of which its step has been built anew."""
    out, sizes = tmp_path_factory.mktemp("growing"), []

    def accelerate(step, *_):
        sizes.append((step.batches.preprocess.image_size, step.batches.augmentation.cutout))
        return step

    with pytest.MonkeyPatch.context() as patch:
        make_narrow(patch)
        patch.setattr("training.loop.accelerate", accelerate)
        run_growing(narrow_run.parent / "pictures", out)
    assert sizes == [(32, 4), (40, 5), (64, 8)]  # compiled code and a graph of one size cannot be used at another
    return out


def test_the_remaining_time_is_that_of_the_pixels(monkeypatch):
    """By hand, from the middle of an epoch on; the first iteration of a resumed run does not count."""
    plan = Plan((32, 32, 64), 10, 28)  # the last epoch is cut short
    loop = Loop(SimpleNamespace(step=12, plan=plan))
    loop.run.step, loop.started = 15, 100.0
    monkeypatch.setattr("training.loop.time.monotonic", lambda: 104.0)
    small, large = 32**2 + 64**2, 64**2 + 64**2
    assert loop.seconds_left() == pytest.approx(4 * (5 * small + 8 * large) / (2 * small))


@pytest.mark.slow
def test_growing_has_its_size_in_every_line_and_ends_with_the_moving_average(growing, narrow_run, tmp_path):
    lines = lines_of(growing)
    assert [line["image_size"] for line in lines if line["kind"] == "test"] == [32, 40, 40, 64]
    assert [line["image_size"] for line in lines if line["kind"] == "train"] == [32, 40, 40, 40, 64, 64]
    model = checkpoint.load(growing / "model.pt")
    assert model["image_size"] == model["result"]["image_size"] == 64 and model["history"] == lines
    assert checkpoint.load(growing / "snapshot_2.pt")["image_size"] == 40
    run_growing(narrow_run.parent / "pictures", tmp_path, "--max-steps", "2")  # a last.pt is of its size, too
    assert [checkpoint.load(tmp_path / f"{name}.pt")["image_size"] for name in ("last", "model")] == [32, 32]
    network, metadata = checkpoint.load_network(growing)
    images, labels, _ = sources.load(str(narrow_run.parent / "pictures"), "test")
    loss, _ = evaluate(network, images, labels, Preprocess(64, metadata.mean, metadata.std))
    assert loss == pytest.approx(metadata.result["test_loss"], rel=1e-5)
    state = checkpoint.load(growing / "last.pt")
    assert torch.equal(network.fc.weight, state["ema"]["fc.weight"])
    assert not torch.equal(network.fc.weight, state["model"]["fc.weight"])
    assert not torch.equal(network.bn1.running_mean, state["model"]["bn1.running_mean"])


@pytest.mark.slow
def test_growing_and_interrupted_it_ends_as_if_it_had_not_been(growing, narrow_run, tmp_path, capsys):
    """Twice in an epoch, at the last iteration before a change of size, and at the first one after it."""
    pictures = narrow_run.parent / "pictures"
    codes = interrupt(lambda *flags: run_growing(pictures, tmp_path, *flags), {2, 3, 4, 9, 11})
    assert codes == [128 + signal.SIGTERM] * 5
    assert_same_run(growing, tmp_path)
    assert len(re.findall("40 px: loss", capsys.readouterr().out)) >= 3
