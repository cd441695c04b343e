"""Runs that grow in image size: the plan, its exactness after interruptions, and what is reported."""

import re
import signal
from types import SimpleNamespace

import pytest
import torch
from narrow import make_narrow
from run_checks import assert_same_run, interrupt, lines_of

import train
from dataset import sources
from dataset.preprocess import Preprocess
from figures.training_curves import training_curves
from runtime import checkpoint
from training.evaluation import evaluate
from training.plan import Plan
from training.progress import Progress

# 3 iterations per epoch
FLAGS = (
    "--sizes 32:1 40:2 64:1 --ema-decay 0.7 --cutout 8 --cutmix 0.5 --flip alternate --schedule linear --nesterov "
    "--lr-warmup-epochs 1 --batch-size 16 --log-every 2 --device cpu --precision fp32 --snapshots 2"
).split()


def run(pictures, out, *flags):
    train.main(["--data", str(pictures), "--out", str(out), *FLAGS, *flags])


@pytest.fixture(scope="module")
def growing(narrow_run, tmp_path_factory):
    """The folder of a run at three sizes, for each of which its step has been built anew."""
    out, sizes = tmp_path_factory.mktemp("growing"), []
    with pytest.MonkeyPatch.context() as patch:
        make_narrow(patch)
        patch.setattr(
            "training.acceleration.compile_network", lambda step, _: sizes.append(step.batches.preprocess.image_size)
        )
        run(narrow_run.parent / "pictures", out, "--compile")
    assert sizes == [32, 40, 64]  # compiled code and a graph of one size cannot be used at another
    return out


def test_a_plan_has_a_size_for_each_epoch_and_a_cutout_for_each_size():
    plan = Plan(((96, 2), (128, 1), (224, 3)), 10, 60)
    assert plan.epochs == 6
    assert [plan.image_size(epoch) for epoch in range(6)] == [96, 96, 128, 224, 224, 224]
    assert plan.cutout(12, 96) == 5 and plan.cutout(12, 224) == 12 and plan.cutout(0, 96) == 0
    with pytest.raises(ValueError):
        plan.image_size(6)


def test_the_remaining_work_is_that_of_every_image():
    """In pixels, by hand: what is left from the middle of an epoch on, evaluations included."""
    plan = Plan(((32, 2), (64, 1)), 10, 28)  # the last epoch is cut short
    settings, data = SimpleNamespace(batch_size=4), SimpleNamespace(test=(torch.zeros(30), None))
    costs = [32**2 + 64**2] * 20 + [64**2 + 64**2] * 8
    training, evaluation = Progress(SimpleNamespace(step=0, plan=plan, settings=settings, data=data)).work(15, 28)
    assert training == 4 * sum(costs[15:])
    assert evaluation == pytest.approx(30 * (costs[19] + costs[27]) / 3)


@pytest.mark.slow
class TestGrowing:
    def test_every_line_snapshot_and_result_has_its_size(self, growing):
        lines = lines_of(growing)
        assert [line["image_size"] for line in lines if line["kind"] == "test"] == [32, 40, 40, 64]
        assert [line["image_size"] for line in lines if line["kind"] == "train"] == [32, 40, 40, 40, 64, 64]
        model = checkpoint.load(growing / "model.pt")
        assert model["image_size"] == model["result"]["image_size"] == 64 and model["history"] == lines
        assert checkpoint.load(growing / "snapshot_2.pt")["image_size"] == 40

    def test_the_result_is_that_of_the_moving_average_at_full_size(self, growing, narrow_run, narrow):
        network, metadata = checkpoint.load_network(growing)
        images, labels, _ = sources.load(str(narrow_run.parent / "pictures"), "test")
        loss, _ = evaluate(network, images, labels, Preprocess(64, metadata.mean, metadata.std))
        assert loss == pytest.approx(metadata.result["test_loss"], rel=1e-5)
        state = checkpoint.load(growing / "last.pt")
        assert torch.equal(network.fc.weight, state["ema"]["fc.weight"])
        assert not torch.equal(network.fc.weight, state["model"]["fc.weight"])
        assert not torch.equal(network.bn1.running_mean, state["model"]["bn1.running_mean"])

    def test_interrupted_it_ends_as_if_it_had_not_been(self, growing, narrow_run, narrow, tmp_path, capsys):
        """Twice in an epoch, at the last iteration before a change of size, and at the first one after it."""
        codes = interrupt(lambda *flags: run(narrow_run.parent / "pictures", tmp_path, *flags), {2, 3, 4, 9, 11})
        assert codes == [128 + signal.SIGTERM] * 5
        assert_same_run(growing, tmp_path)
        assert len(re.findall("40 px: loss", capsys.readouterr().out)) >= 3

    def test_the_curves_name_the_sizes_and_do_not_connect_them(self, growing):
        for axes in training_curves(checkpoint.load(growing / "model.pt")["history"]).axes:
            assert [text.get_text() for text in axes.texts] == ["32 px", "40", "64"]
            assert [len(line.get_xdata()) for line in axes.lines[1:]] == [1, 2, 1]  # epochs at each size
            assert list(axes.lines[2].get_xdata()) == [6, 9]
