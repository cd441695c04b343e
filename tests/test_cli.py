"""Both scripts from the command line: every wrong input ends in one line, and nothing is overwritten."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ends
from run_checks import Child

import train
import visualizer
from network import ResNet18
from runtime import checkpoint

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").iterdir())
# torch 2.6 leaves a temporary folder to the interpreter's exit; matplotlib 3.8 with pyparsing 3.3
DEPRECATED = [f"ignore::DeprecationWarning:matplotlib.{name}" for name in ("_fontconfig_pattern", "_mathtext")]
WARNINGS = ["error", "ignore::ResourceWarning", *DEPRECATED]
# the last flag is the one that is named
TRAIN = [
    "--batch-size 1", "--epochs -3", "--image-size 0", "--lr nan", "--lr 0", "--momentum 1", "--weight-decay -1",
    "--label-smoothing 1.5", "--lr-gamma nan", "--schedule linear --lr-gamma 0.5", "--shift -1", "--cutout 2.5",
    "--cutmix 1.5", "--scale-crop 0.3 --cutmix 0.5", "--scale-crop 1.1", "--hold-out -1", "--lr-warmup-epochs -1",
    "--ema-decay 1", "--momentum 0 --nesterov", "--max-steps 0", "--seed " + "9" * 400, "--schedule triangle",
    "--resume --overwrite", "--epochs 4 --snapshots 5", "--sizes 96:2 96:1", "--sizes 31:2", "--sizes 64",
    "--sizes 32:1 64:2 --epochs 4", "--sizes 32:1 64:2 --image-size 96",
]  # fmt: skip
VISUALIZER = [
    "--stages conv6_x", "--channels -1", "--channels x", "--stages conv1 --channels 64", "--channels 64",
    "--stages conv5_x --channels 3 512", "--channels 3 all", "--channels all random", "--top 0", "--rules relu",
    "--unpool mean", "--units all", "--figures everything", "--limit 0", "--batch-size 0",
]  # fmt: skip
both = pytest.mark.parametrize("script", [train, visualizer], ids=["train", "visualizer"])


@both
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "None" not in text
    assert not [name for name in vars(script.parse_args([])) if f"--{name.replace('_', '-')}" not in text]


@pytest.mark.parametrize(
    "script, flags",
    [*((train, flags) for flags in TRAIN), *((visualizer, flags) for flags in VISUALIZER)],
    ids=[flags[:40] for flags in TRAIN + VISUALIZER],
)
def test_a_wrong_value_is_named(capsys, script, flags):
    named = [flag for flag in flags.split() if flag.startswith("--")][-1]
    assert "unrecognized" not in ends(capsys, script.main, flags.split(), 2, named)


@both
@pytest.mark.parametrize("flags", [["--dat", "shapes"], ["surplus"]], ids=["abbreviation", "surplus"])
def test_unknown_flags(capsys, script, flags):
    ends(capsys, script.main, flags, 2, "unrecognized arguments", flags[0])


@both
@pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process on Windows")
def test_ctrl_c_while_the_libraries_load(script, tmp_path):
    """A torch that interrupts its own import."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nlibrary_is_loaded")
    how = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored in the background
    ended = subprocess.run([sys.executable, script.__file__], **how)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


class TestRecipes:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
    def test_each_is_a_valid_command(self, path):
        args = train.parse_args([f"@{path}"])
        assert args != train.parse_args([]) and args.image_size == (128 if path.name == "cpu" else 224)
        assert train.parse_args([f"@{path}", "--seed", "7"]).seed == 7  # later flags override it

    def test_two_are_the_reports(self):
        first, second = (train.parse_args([f"@{RECIPES[0].parent / name}"]) for name in ("report-a", "report-b"))
        assert (first.epochs, first.batch_size, first.schedule, first.lr_step_size) == (50, 32, "step", 20)
        assert (second.epochs, second.batch_size, second.lr, second.schedule) == (30, 64, 0.1, "exponential")
        assert not first.augment and not second.augment
        assert second.lr * second.lr_gamma**30 == pytest.approx(0.035)

    def test_one_that_cannot_be_read_ends_in_one_line(self, tmp_path, capsys):
        ends(capsys, train.main, ["@recipes/none"], 2, "recipes/none")
        (tmp_path / "recipe").write_text("--data it's\n")
        ends(capsys, train.main, [f"@{tmp_path / 'recipe'}"], 2, "quotation")


@pytest.mark.slow
def test_train_then_visualize_with_the_defaults_of_both(folder, tmp_path, monkeypatch, capsys):
    """In the working directory; the training is a process of its own, in which any warning is an error."""
    flags = "--data pictures --image-size 32 --epochs 1 --batch-size 16 --log-every 2".split()
    command, env = [sys.executable, str(ROOT / "train.py"), *flags], os.environ | {"PYTHONWARNINGS": ",".join(WARNINGS)}
    first = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0 and first.stderr == "", first.stderr
    lines = first.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["decoding once"] * 2
    assert "48 training and 12 test images of 3 classes at 32x32" in lines[2]
    assert any(line.startswith("epoch 1/1, iteration 2/3: loss ") for line in lines)
    assert lines[-1] == "next: python visualizer.py --ckpt checkpoints/model.pt"
    assert "\r" not in first.stdout  # no progress bar where there is no terminal

    monkeypatch.chdir(tmp_path)
    visualizer.main(["--ckpt", "--figures", "input"])
    output = capsys.readouterr()
    written = [line for line in output.out.splitlines() if line.startswith("plots/")]
    assert output.err == "" and (tmp_path / "plots" / "input.png").exists()
    assert len(list((tmp_path / "plots").iterdir())) == len(written)


class TestBadInputOfTrain:
    @pytest.fixture
    def flags(self, folder, tmp_path):
        return ["--data", folder, "--image-size", 32, "--batch-size", 16, "--epochs", 1, "--out", tmp_path / "run"]

    @pytest.mark.parametrize(
        "wrong, words",
        [
            ("--data nowhere", "nowhere is not a folder"),
            ("--batch-size 49", "--batch-size 49 is more than the 48"),
            ("--hold-out 48", "--hold-out 48 leaves none of 48"),
            ("--out file", "pass another"),
            ("--resume", "nothing to resume"),
        ],
    )
    def test_it_ends_in_one_line(self, capsys, flags, tmp_path, monkeypatch, wrong, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        ends(capsys, train.main, [*flags, *wrong.split()], 1, words)

    @pytest.mark.parametrize("name", ["last.pt", "model.pt", "history.jsonl"])
    def test_an_earlier_run_is_not_overwritten_unasked(self, capsys, flags, tmp_path, name):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("mine")
        ends(capsys, train.main, flags, 1, "holds an earlier run", "--resume", "--overwrite")
        assert (tmp_path / "run" / name).read_text() == "mine"

    def test_a_state_without_progress_cannot_be_resumed(self, capsys, flags, tmp_path):
        (tmp_path / "run").mkdir()
        torch.save(ResNet18(3).state_dict(), tmp_path / "run" / "last.pt")
        ends(capsys, train.main, [*flags, "--resume"], 1, "--init")


class TestBadInputOfVisualizer:
    def refuses(self, capsys, tmp_path, flags, *words):
        ends(capsys, visualizer.main, [*flags, "--out", tmp_path / "plots"], 1, *words)
        assert not list((tmp_path / "plots").glob("*.png"))

    def test_a_picture_that_is_none(self, capsys, tmp_path, small_run):
        (tmp_path / "cat.jpg").write_text("meow")
        flags = ["--ckpt", small_run / "model.pt", "--images", tmp_path / "cat.jpg"]
        self.refuses(capsys, tmp_path, flags, "cat.jpg cannot be read")

    def test_data_of_another_number_of_classes(self, capsys, tmp_path, folder):
        torch.save(ResNet18(7).state_dict(), tmp_path / "a.pt")
        flags = ["--ckpt", tmp_path / "a.pt", "--data", folder]
        self.refuses(capsys, tmp_path, flags, "has 7 outputs", "has 3 classes", "--data")

    def test_activations_that_are_not_finite(self, capsys, tmp_path, small_run):
        state = checkpoint.load(small_run / "model.pt")
        for name in state["model"]:
            if name.endswith(("conv1.weight", "bn1.weight")):
                state["model"][name] *= 1e25
        torch.save(state, tmp_path / "a.pt")
        self.refuses(capsys, tmp_path, ["--ckpt", tmp_path / "a.pt", "--figures", "top9"], "are not finite")

    @pytest.mark.slow
    def test_in_a_process_of_its_own(self, tmp_path):
        """No traceback, no warning, exit code 1, no file."""
        text = Child(ROOT / "visualizer.py", "--ckpt", tmp_path / "nowhere.pt", cwd=tmp_path).finish(code=1)
        assert text.startswith("error: no checkpoint at") and text.count("\n") == 1
        assert os.listdir(tmp_path) == []


def test_before_any_training_the_shipped_network_is_shown(capsys, tmp_path, monkeypatch, small_run):
    monkeypatch.chdir(tmp_path)
    flags = ["--figures", "training_curves", "--dpi", "50", "--device", "cpu"]
    visualizer.main(["--ckpt", *flags])
    assert "checkpoints/model.pt does not exist yet: showing the network" in capsys.readouterr().out
    accuracy = checkpoint.load(checkpoint.SHIPPED)["result"]["test_accuracy"]
    assert f"{100 * accuracy:.2f} %" in (tmp_path / "plots" / "report.html").read_text()
    shutil.copytree(small_run, tmp_path / "checkpoints")
    visualizer.main(flags)  # without --ckpt, the same
    assert "does not exist yet" not in capsys.readouterr().out


def test_a_terminal_that_cannot_show_a_path(small_run, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    out = tmp_path / "опыт"
    flags = ["--ckpt", small_run / "model.pt", "--out", out, "--figures", "training_curves", "--device", "cpu"]
    visualizer.main([*map(str, flags), "--dpi", "50"])
    assert (out / "report.html").exists()
    terminal.flush()
    assert "\\u043e\\u043f\\u044b\\u0442" in terminal.buffer.getvalue().decode("cp1252")
