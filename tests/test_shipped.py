"""The network that comes with the project, as one finds it after cloning: no data, nothing to download from."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import train
import visualizer
from dataset.shapes import draw_shapes
from runtime.checkpoint import SHIPPED, load, load_network


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder to work in, from which nothing can be downloaded."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_small_and_complete():
    assert SHIPPED.stat().st_size < 25e6
    state = load(SHIPPED)
    assert {value.dtype for value in state["model"].values() if value.ndim > 1} == {torch.float16}
    _, info = load_network(SHIPPED)
    assert info.classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    assert info.image_size == 224 and info.config["data"] == "cifar10"
    tests = [entry for entry in info.history if entry["kind"] == "test"]
    assert info.result["test_accuracy"] == tests[-1]["accuracy"]  # the last epoch's, not the best
    for line in info.config["recipe"]:
        train.parse_args(line.split()[2:])


def test_what_needs_no_data_is_drawn(alone, capsys):
    visualizer.main(["--ckpt", str(SHIPPED), "--device", "cpu"])
    drawn = {path.stem for path in (alone / "plots").iterdir()}
    filters = {f"conv1_filters{color}" for color in ("", "_red", "_green", "_blue")}
    assert drawn == {"training_curves", "report"} | filters
    said = capsys.readouterr().out
    assert "left out" in said and "top9" in said and "--data FOLDER" in said


def test_it_explains_ones_own_pictures(alone):
    image = draw_shapes("test")[0][0].transpose(1, 2, 0)
    Image.fromarray(image).resize((300, 260)).save(alone / "mine.png")
    visualizer.main(["--ckpt", str(SHIPPED), "--device", "cpu", "--images", "mine.png", "--figures", "input"])
    with Image.open(alone / "plots" / "mine" / "input.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5
