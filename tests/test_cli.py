"""Both scripts from the command line: every wrong input ends in one line, and nothing is overwritten."""

import io
import os
import shutil
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


WARNINGS = [
    "error",
    "ignore::ResourceWarning",  # torch 2.6 leaves a temporary folder to the interpreter's exit
    "ignore::DeprecationWarning:matplotlib._fontconfig_pattern",  # matplotlib 3.8 with pyparsing 3.3
    "ignore::DeprecationWarning:matplotlib._mathtext",
]


def run(script, *flags, cwd):
    """The script in a process of its own; any warning is an error."""
    environment = os.environ | {"PYTHONWARNINGS": ",".join(WARNINGS)}
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_train_then_visualize_with_the_defaults_of_both(folder, tmp_path, monkeypatch, capsys):
    """checkpoints/ and plots/ are in the working directory; the checkpoint holds the paths and settings."""
    flags = ["--data", "pictures", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--log-every", "2"]
    first = run("train.py", *flags, cwd=tmp_path)
    assert first.returncode == 0 and first.stderr == "", first.stderr
    lines = first.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["decoding once"] * 2
    assert "48 training and 12 test images of 3 classes at 32x32" in lines[2]
    assert any(line.startswith("epoch 1/1, iteration 2/3: loss ") for line in lines)
    assert any(line.startswith("epoch 1/1: test loss ") for line in lines)
    assert lines[-1] == "next: python visualizer.py --ckpt checkpoints/model.pt"
    assert "\r" not in first.stdout  # no progress bar where there is no terminal

    monkeypatch.chdir(tmp_path)
    visualizer.main(["--ckpt", "--figures", "input"])
    output = capsys.readouterr()
    assert output.err == ""
    assert (tmp_path / "plots" / "input.png").exists()
    written = [line for line in output.out.splitlines() if line.startswith("plots/")]
    assert len(list((tmp_path / "plots").iterdir())) == len(written)


class TestBadInputOfTrain:
    @pytest.fixture
    def flags(self, folder, tmp_path):
        return ["--data", folder, "--image-size", 32, "--batch-size", 16, "--epochs", 1, "--out", tmp_path / "run"]

    @pytest.mark.parametrize(
        "wrong, words",
        [
            ("--data nowhere", ["nowhere is not a folder"]),
            ("--batch-size 49", ["--batch-size 49 is more than the 48"]),
            ("--hold-out 48", ["--hold-out 48 leaves none of 48"]),
            ("--device cuda:99", ["cuda:99", "pass --device", "cpu"]),
            ("--out file", ["--out", "pass another"]),
            ("--out file/below", ["--out", "pass another"]),
            ("--resume", ["nothing to resume"]),
            pytest.param("--out /proc/self/run", ["--out /proc/self/run", "pass another"], marks=pytest.mark.skipif(
                not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")),
        ],
        ids=str,
    )  # fmt: skip
    def test_it_ends_in_one_line(self, capsys, flags, tmp_path, monkeypatch, wrong, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("mine")
        ends(capsys, train.main, [*flags, *wrong.split()], 1, *words)
        assert (tmp_path / "file").read_text() == "mine"

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
    @pytest.fixture
    def flags(self, small_run, tmp_path):
        return ["--ckpt", small_run / "model.pt", "--out", tmp_path / "plots"]

    @pytest.fixture(autouse=True)
    def nothing_is_drawn(self, tmp_path):
        yield
        assert not list((tmp_path / "plots").glob("*.png"))

    def test_no_test_images(self, capsys, folder, flags, tmp_path):
        for file in (folder / "test" / "ring").iterdir():
            file.unlink()
        ends(capsys, visualizer.main, [*flags, "--data", folder], 1, "ring has no images")
        assert not (tmp_path / "plots").exists()

    def test_pictures_that_are_none(self, capsys, tmp_path, flags):
        (tmp_path / "cat.jpg").write_text("meow")
        for name in ("cat.jpg", "nowhere.jpg"):
            ends(capsys, visualizer.main, [*flags, "--images", tmp_path / name], 1, f"{name} cannot be read")

    def test_data_of_another_number_of_classes(self, capsys, tmp_path, folder):
        torch.save(ResNet18(7).state_dict(), tmp_path / "a.pt")
        flags = ["--ckpt", tmp_path / "a.pt", "--data", folder]
        ends(capsys, visualizer.main, flags, 1, "has 7 outputs", "has 3 classes", "--data")

    def test_data_that_a_gallery_needs(self, capsys, tmp_path, small_run):
        state = checkpoint.load(small_run / "model.pt")
        state["config"] = state["config"] | {"data": str(tmp_path / "gone")}
        torch.save(state, tmp_path / "a.pt")
        flags = ["--ckpt", tmp_path / "a.pt", "--gallery", "--out", tmp_path / "plots"]
        ends(capsys, visualizer.main, flags, 1, "gone is not a folder")

    def test_activations_that_are_not_finite(self, capsys, tmp_path, small_run):
        state = checkpoint.load(small_run / "model.pt")
        for name in state["model"]:
            if name.endswith(("conv1.weight", "bn1.weight")):
                state["model"][name] *= 1e25
        torch.save(state, tmp_path / "a.pt")
        flags = ["--ckpt", tmp_path / "a.pt", "--figures", "top9", "--out", tmp_path / "plots"]
        ends(capsys, visualizer.main, flags, 1, "are not finite")


def test_before_any_training_the_shipped_network_is_shown(capsys, tmp_path, monkeypatch, small_run):
    monkeypatch.chdir(tmp_path)
    flags = ["--figures", "training_curves", "--dpi", "50", "--device", "cpu"]
    said = "checkpoints/model.pt does not exist yet: showing the network that comes with the project"
    visualizer.main(["--ckpt", *flags])
    assert said in capsys.readouterr().out
    text = (tmp_path / "plots" / "report.html").read_text()
    accuracy = checkpoint.load(ROOT / "checkpoints" / "resnet18-cifar10.pt")["result"]["test_accuracy"]
    assert f"{100 * accuracy:.2f} %" in text
    ends(capsys, visualizer.main, ["--ckpt", "checkpoints/model.pt"], 1, "no checkpoint at checkpoints/model.pt")
    shutil.copytree(small_run, tmp_path / "checkpoints")
    visualizer.main(flags)  # without --ckpt, the same
    assert said not in capsys.readouterr().out


def test_a_terminal_that_cannot_show_a_path(small_run, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    out = tmp_path / "опыт"
    flags = ["--ckpt", small_run / "model.pt", "--out", out, "--figures", "training_curves", "--device", "cpu"]
    visualizer.main([*map(str, flags), "--dpi", "50"])
    assert (out / "report.html").exists()
    terminal.flush()
    assert "\\u043e\\u043f\\u044b\\u0442" in terminal.buffer.getvalue().decode("cp1252")


@pytest.mark.slow
def test_an_error_is_one_line_in_a_process_of_its_own(tmp_path):
    """No traceback, no warning, exit code 1, no file."""
    text = Child(ROOT / "visualizer.py", "--ckpt", tmp_path / "nowhere.pt", cwd=tmp_path).finish(code=1)
    assert text.startswith("error: no checkpoint at") and text.count("\n") == 1
    assert os.listdir(tmp_path) == []
