"""Runs that grow in image size: the plan, its exactness after interruptions, and what is reported."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from narrow import make_narrow
from run_checks import assert_same_run, interrupt

import train
from dataset import sources
from dataset.preprocess import Preprocess
from figures.training_curves import training_curves
from runtime import checkpoint
from training.evaluation import evaluate
from training.plan import Plan
from training.progress import Progress

pytestmark = pytest.mark.usefixtures("narrow")
RECIPES = sorted((Path(__file__).parent.parent / "recipes").iterdir())
# 3 iterations per epoch
FLAGS = "--sizes 32:1 40:2 64:1 --ema-decay 0.7 --cutout 8 --cutmix 0.5 --flip alternate --schedule linear".split()
FLAGS += (
    "--nesterov --lr-warmup-epochs 1 --batch-size 16 --log-every 2 --device cpu --precision fp32 --snapshots 2".split()
)


def run(pictures, out, *flags):
    train.main(["--data", str(pictures), "--out", str(out), *FLAGS, *flags])


@pytest.fixture(scope="module")
def growing(narrow_run, tmp_path_factory):
    """The folder of a run at three sizes."""
    out = tmp_path_factory.mktemp("growing")
    with pytest.MonkeyPatch.context() as patch:
        make_narrow(patch)
        run(narrow_run.parent / "pictures", out)
    return out


class TestPlan:
    def test_the_size_of_each_epoch(self):
        plan = Plan(((96, 2), (128, 1), (224, 3)), 10, 60)
        assert plan.epochs == 6
        assert [plan.image_size(epoch) for epoch in range(6)] == [96, 96, 128, 224, 224, 224]
        with pytest.raises(ValueError):
            plan.image_size(6)

    def test_the_cutout_shrinks_with_the_image(self):
        plan = Plan(((96, 2), (224, 3)), 10, 60)
        assert plan.cutout(12, 96) == 5 and plan.cutout(12, 224) == 12 and plan.cutout(0, 96) == 0

    @pytest.mark.parametrize(
        "flags, words",
        [
            ("--sizes 96:2 64:1", "must increase"),
            ("--sizes 96:2 96:1", "must increase"),
            ("--sizes 31:2", "at least 32"),
            ("--sizes 64:0", "at least 1"),
            ("--sizes 64", "is not SIZE:EPOCHS"),
            ("--sizes a:b", "not a whole number"),
            ("--sizes 32:1 64:2 --epochs 4", "--epochs 4 contradicts --sizes"),
            ("--sizes 32:1 64:2 --image-size 96", "--image-size 96 contradicts --sizes"),
        ],
    )
    def test_an_invalid_plan_ends_in_one_line(self, capsys, flags, words):
        with pytest.raises(SystemExit) as end:
            train.parse_args(flags.split())
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and said.count("\n") == 1

    def test_values_that_agree_are_accepted(self):
        args = train.parse_args("--sizes 32:1 64:2 --epochs 3 --image-size 64".split())
        assert (args.epochs, args.image_size) == (3, 64)

    def test_the_remaining_work_is_that_of_every_image(self):
        """In pixels, by hand: what is left from the middle of an epoch on, evaluations included."""
        plan = Plan(((32, 2), (64, 1)), 10, 28)  # the last epoch is cut short
        progress = Progress(0, plan, batch_size=4, test_images=30)
        costs = [32**2 + 64**2] * 20 + [64**2 + 64**2] * 8
        training, evaluation = progress.work(15, 28)
        assert training == 4 * sum(costs[15:])
        assert evaluation == pytest.approx(30 * (costs[19] + costs[27]) / 3)


class TestRecipes:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
    def test_a_recipe_is_a_valid_command(self, path):
        args = train.parse_args([f"@{path}"])
        assert args != train.parse_args([]) and args.image_size == 224
        assert train.parse_args([f"@{path}", "--seed", "7"]).seed == 7  # later flags override it

    def test_they_are_the_reports(self):
        first, second = (train.parse_args([f"@{RECIPES[0].parent / name}"]) for name in ("report-a", "report-b"))
        assert (first.epochs, first.batch_size, first.schedule, first.lr_step_size) == (50, 32, "step", 20)
        assert (second.epochs, second.batch_size, second.lr, second.schedule) == (30, 64, 0.1, "exponential")
        assert not first.augment and not second.augment
        assert second.lr * second.lr_gamma**30 == pytest.approx(0.035)

    def test_a_missing_recipe_ends_in_one_line(self, capsys):
        with pytest.raises(SystemExit) as end:
            train.parse_args(["@recipes/none"])
        assert end.value.code == 2 and "recipes/none" in capsys.readouterr().err

    def test_an_open_quote_ends_in_one_line(self, tmp_path, capsys):
        (tmp_path / "recipe").write_text("--data it's\n")
        with pytest.raises(SystemExit) as end:
            train.parse_args([f"@{tmp_path / 'recipe'}"])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and "No closing quotation" in error


@pytest.mark.slow
class TestHistory:
    def test_every_line_has_its_size(self, growing):
        lines = [json.loads(line) for line in (growing / "history.jsonl").read_text().splitlines()]
        tests = [line for line in lines if line["kind"] == "test"]
        assert [line["image_size"] for line in tests] == [32, 40, 40, 64]
        assert [line["image_size"] for line in lines if line["kind"] == "train"] == [32, 40, 40, 40, 64, 64]
        model = checkpoint.load(growing / "model.pt")
        assert model["image_size"] == model["result"]["image_size"] == 64 and model["history"] == lines

    def test_a_snapshot_has_the_size_of_its_epoch(self, growing):
        assert checkpoint.load(growing / "snapshot_2.pt")["image_size"] == 40

    def test_the_result_is_that_of_the_moving_average_at_full_size(self, growing, narrow_run):
        network, metadata = checkpoint.load_network(growing)
        images, labels, _ = sources.load(str(narrow_run.parent / "pictures"), "test")
        loss, _ = evaluate(network, images, labels, Preprocess(64, metadata.mean, metadata.std))
        assert loss == pytest.approx(metadata.result["test_loss"], rel=1e-5)
        state = checkpoint.load(growing / "last.pt")
        assert torch.equal(network.fc.weight, state["ema"]["fc.weight"])
        assert not torch.equal(network.fc.weight, state["model"]["fc.weight"])
        assert not torch.equal(network.bn1.running_mean, state["model"]["bn1.running_mean"])


@pytest.mark.slow
class TestResume:
    @pytest.mark.parametrize("steps", [{3}, {4, 8}, {2, 3, 4, 9, 11}], ids=str)
    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, growing, narrow_run, tmp_path, steps):
        """Twice in an epoch, at the last iteration before a change of size, and at the first one after it."""
        codes = interrupt(lambda *flags: run(narrow_run.parent / "pictures", tmp_path, *flags), steps)
        assert codes == [128 + signal.SIGTERM] * len(steps)
        assert_same_run(growing, tmp_path)

    def test_another_plan_is_another_run(self, growing, capsys, narrow_run):
        with pytest.raises(SystemExit):
            run(narrow_run.parent / "pictures", growing, "--resume", "--sizes", "32:1", "64:1")
        assert "--sizes was" in capsys.readouterr().err


@pytest.mark.slow
def test_the_curves_name_the_sizes_and_do_not_connect_them(growing):
    history = checkpoint.load(growing / "model.pt")["history"]
    for axes in training_curves(history).axes:
        assert [text.get_text() for text in axes.texts] == ["32 px", "40", "64"]
        assert [len(line.get_xdata()) for line in axes.lines[1:]] == [1, 2, 1]  # epochs at each size
        assert list(axes.lines[2].get_xdata()) == [6, 9]


@pytest.mark.slow
def test_a_step_is_rebuilt_for_every_size(narrow_run, tmp_path, monkeypatch, capsys):
    """A graph of one size cannot be replayed at another; each new one is reported with its duration."""
    made = []

    def compile_network(step, batch):
        made.append(step.batches.preprocess.image_size)

    monkeypatch.setattr("training.acceleration.compile_network", compile_network)
    run(narrow_run.parent / "pictures", tmp_path, "--compile")
    assert made == [32, 40, 64]
    assert len(re.findall(r"compiled in \d+ s", capsys.readouterr().out)) == 3
