"""--help, and wrong flags: one line of error and exit code 2."""

import pytest
from conftest import ends

import train
import visualizer


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


class TestUsage:
    @pytest.mark.parametrize(
        "flags",
        [
            ["--batch-size", "0"],
            ["--batch-size", "1"],  # batch norm needs two
            ["--epochs", "-3"],
            ["--image-size", "0"],
            ["--lr", "nan"],
            ["--lr", "0"],
            ["--momentum", "1"],
            ["--weight-decay", "-1"],
            ["--label-smoothing", "1.5"],
            ["--lr-gamma", "nan"],
            ["--lr-gamma", "0.5", "--schedule", "linear"],
            ["--shift", "-1"],
            ["--cutout", "2.5"],
            ["--cutmix", "1.5"],
            ["--cutmix", "0.5", "--scale-crop", "0.3"],
            ["--scale-crop", "0"],
            ["--scale-crop", "1.1"],
            ["--hold-out", "-1"],
            ["--lr-warmup-epochs", "-1"],
            ["--ema-decay", "1"],
            ["--nesterov", "--momentum", "0"],
            ["--max-steps", "0"],
            ["--seed", "-1"],
            ["--seed", "9" * 400],
            ["--schedule", "triangle"],
            ["--resume", "--overwrite"],
            ["--snapshots", "5", "--epochs", "4"],
        ],
        ids=" ".join,
    )
    def test_train(self, capsys, flags):
        assert "unrecognized" not in ends(capsys, train.main, flags, 2, flags[0])

    @pytest.mark.parametrize("main", [train.main, visualizer.main], ids=["train", "visualizer"])
    @pytest.mark.parametrize("flags", [["--dat", "shapes"], ["surplus"]], ids=["abbreviation", "surplus"])
    def test_unknown(self, capsys, main, flags):
        ends(capsys, main, flags, 2, "unrecognized arguments", flags[0])

    @pytest.mark.parametrize(
        "flags",
        [
            ["--stages", "conv6_x"],
            ["--channels", "-1"],
            ["--channels", "x"],
            ["--stages", "conv1", "--channels", "64"],
            ["--stages", "conv5_x", "--channels", "3", "512"],
            ["--top", "0"],
            ["--rules", "relu"],
            ["--unpool", "mean"],
            ["--units", "all"],
            ["--figures", "everything"],
            ["--limit", "0"],
            ["--batch-size", "0"],
        ],
        ids=" ".join,
    )
    def test_visualizer(self, capsys, flags):
        last = [flag for flag in flags if flag.startswith("--")][-1]
        assert "unrecognized" not in ends(capsys, visualizer.main, flags, 2, last)

    def test_a_channel_that_is_not_there_is_named_with_those_that_are(self, capsys):
        ends(capsys, visualizer.main, ["--channels", 64], 2, "--channels 64", "conv1 has the channels 0 to 63")
