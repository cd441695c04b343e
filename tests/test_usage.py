"""--help, recipes, and wrong flags: one line of error and exit code 2."""

from pathlib import Path

import pytest
from conftest import ends

import train
import visualizer

RECIPES = sorted((Path(__file__).parent.parent / "recipes").iterdir())
# the last flag is the one that is named
TRAIN = [
    "--batch-size 0", "--batch-size 1", "--epochs -3", "--image-size 0", "--lr nan", "--lr 0", "--momentum 1",
    "--weight-decay -1", "--label-smoothing 1.5", "--lr-gamma nan", "--schedule linear --lr-gamma 0.5", "--shift -1",
    "--cutout 2.5", "--cutmix 1.5", "--scale-crop 0.3 --cutmix 0.5", "--scale-crop 0", "--scale-crop 1.1",
    "--hold-out -1", "--lr-warmup-epochs -1", "--ema-decay 1", "--momentum 0 --nesterov", "--max-steps 0", "--seed -1",
    "--seed " + "9" * 400, "--schedule triangle", "--resume --overwrite", "--epochs 4 --snapshots 5",
    "--sizes 96:2 64:1", "--sizes 96:2 96:1", "--sizes 31:2", "--sizes 64:0", "--sizes 64", "--sizes a:b",
    "--sizes 32:1 64:2 --epochs 4", "--sizes 32:1 64:2 --image-size 96",
]  # fmt: skip
VISUALIZER = [
    "--stages conv6_x", "--channels -1", "--channels x", "--stages conv1 --channels 64", "--channels 64",
    "--stages conv5_x --channels 3 512", "--top 0", "--rules relu", "--unpool mean", "--units all",
    "--figures everything", "--limit 0", "--batch-size 0",
]  # fmt: skip
BOTH = [(train, flags) for flags in TRAIN] + [(visualizer, flags) for flags in VISUALIZER]


@pytest.mark.parametrize("script", [train, visualizer], ids=["train", "visualizer"])
def test_help_explains_every_flag(script, capsys):
    flags = vars(script.parse_args([]))
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in flags:
        assert f"--{name.replace('_', '-')}" in text
    assert "None" not in text and f"python {script.__name__}.py" in text


@pytest.mark.parametrize("script, flags", BOTH, ids=[flags[:40] for _, flags in BOTH])
def test_a_wrong_value_is_named(capsys, script, flags):
    named = [flag for flag in flags.split() if flag.startswith("--")][-1]
    assert "unrecognized" not in ends(capsys, script.main, flags.split(), 2, named)


@pytest.mark.parametrize("script", [train, visualizer], ids=["train", "visualizer"])
@pytest.mark.parametrize("flags", [["--dat", "shapes"], ["surplus"]], ids=["abbreviation", "surplus"])
def test_unknown(capsys, script, flags):
    ends(capsys, script.main, flags, 2, "unrecognized arguments", flags[0])


def test_sizes_that_agree_with_other_flags_are_accepted():
    args = train.parse_args("--sizes 32:1 64:2 --epochs 3 --image-size 64".split())
    assert (args.epochs, args.image_size) == (3, 64)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_a_valid_command(path):
    args = train.parse_args([f"@{path}"])
    assert args != train.parse_args([]) and args.image_size == 224
    assert train.parse_args([f"@{path}", "--seed", "7"]).seed == 7  # later flags override it


def test_two_recipes_are_the_reports():
    first, second = (train.parse_args([f"@{RECIPES[0].parent / name}"]) for name in ("report-a", "report-b"))
    assert (first.epochs, first.batch_size, first.schedule, first.lr_step_size) == (50, 32, "step", 20)
    assert (second.epochs, second.batch_size, second.lr, second.schedule) == (30, 64, 0.1, "exponential")
    assert not first.augment and not second.augment
    assert second.lr * second.lr_gamma**30 == pytest.approx(0.035)


def test_a_recipe_that_cannot_be_read_ends_in_one_line(tmp_path, capsys):
    ends(capsys, train.main, ["@recipes/none"], 2, "recipes/none")
    (tmp_path / "recipe").write_text("--data it's\n")
    ends(capsys, train.main, [f"@{tmp_path / 'recipe'}"], 2, "quotation")
