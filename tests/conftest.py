"""Shared by the tests: a network with unusual batch-norm statistics, small image folders, finished runs."""

import functools
import hashlib
import json
import os
import pickle
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: each worker, and what it starts, has one core
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
import torchvision
from gallery_page import CHANNELS, NAMES, Page
from matplotlib.text import Text
from narrow import make_narrow
from PIL import Image
from run_checks import run_on
from torchvision.models.feature_extraction import create_feature_extractor

import visualizer
from dataset.shapes import CLASSES, draw_shapes
from figures import style
from network import ResNet18
from runtime import checkpoint


@pytest.fixture(scope="session", autouse=True)
def temporary_folder_and_fp32(tmp_path_factory):
    """`data/` and other default paths are temporary; blocks are scored in fp32, since bf16 rounds by CPU and batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        score_under(patch, nullcontext)
        yield


def score_under(patch, context):
    """Removed blocks go through the network under this context, wherever they are scored."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("analysis", "figures") and hasattr(module, "bf16_if_native"):
            patch.setattr(module, "bf16_if_native", lambda device: context())


@pytest.fixture(autouse=True)
def quick_and_seeded(monkeypatch):
    """Files are not flushed to the disk, figures have few pixels, and random numbers are the same in every run."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    save = style.save
    monkeypatch.setattr(style, "save", lambda figure, file, format="png", dpi=40: save(figure, file, format, dpi))
    torch.manual_seed(0)


def randomise_batch_norm(network):
    """Draws running statistics, scales (about half of them negative) and shifts far from their initial values."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.1, 2.1, generator=generator)
            torch.nn.init.normal_(module.weight, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.5, generator=generator)
    return network


@pytest.fixture(scope="session")
def random_network():
    """A ResNet-18 in float64 and evaluation mode, its batch norms far from the identity."""
    torch.manual_seed(0)
    return randomise_batch_norm(ResNet18(10)).double().eval()


def torchvision_layers(network, nodes):
    """torchvision's ResNet-18 with these weights; it returns the layers that `nodes` names."""
    theirs = torchvision.models.resnet18(num_classes=network.fc.out_features)
    theirs.load_state_dict(network.state_dict())
    return create_feature_extractor(theirs.to(network.fc.weight).eval(), nodes)


drawn_shapes = functools.cache(draw_shapes)  # do not write to the arrays


def write_folder(path: Path, classes=("disk", "ring", "stripes"), train=16, test=4, suffix=".png", names=None) -> Path:
    """A data folder of 32x32 shapes with `train` and `test` images per class; names: of the folders."""
    for split, count in (("train", train), ("test", test)):
        images, labels, _ = drawn_shapes(split)
        for name, folder_name in zip(classes, names or classes, strict=True):
            folder = path / split / folder_name
            folder.mkdir(parents=True)
            for n, image in enumerate(images[labels == CLASSES.index(name)][:count]):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{n}{suffix}")
    return path


@pytest.fixture(scope="session")
def folder_template(tmp_path_factory) -> Path:
    """What `folder` copies; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("template") / "images")


@pytest.fixture
def folder(folder_template, tmp_path) -> Path:
    """A data folder of 3 x 16 training and 3 x 4 test images, for one test to change as it likes."""
    return Path(shutil.copytree(folder_template, tmp_path / "pictures"))


def finished_run(path: Path) -> Path:
    """The folder `run` of two epochs in fp32 on the 48 images in the folder `pictures` beside it, at 32x32."""
    run_on(write_folder(path / "pictures"), path / "run", "--epochs", "2")
    return path / "run"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The folder of a finished run; not to be changed. See `finished_run`."""
    return finished_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def narrow_run(tmp_path_factory) -> Path:
    """The same of a network with an eighth of the channels; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        make_narrow(patch)
        return finished_run(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="session")
def gallery(small_run, tmp_path_factory) -> Path:
    """The gallery's folder, with pages of some channels of all stages, one channel dead; files may be added."""
    out = tmp_path_factory.mktemp("gallery")
    state = checkpoint.load(small_run / "model.pt")
    state["model"]["bn1.weight"][5] = state["model"]["bn1.bias"][5] = 0
    state["classes"] = NAMES
    torch.save(state, out / "model.pt")
    write_folder(out / "pictures", names=NAMES)
    flags = "--figures filters --no-report --gallery --top 2 --channels".split()
    visualize(out, out / "plots", "--data", str(out / "pictures"), *flags, *map(str, CHANNELS))
    return out / "plots"


@pytest.fixture(scope="session")
def gallery_json(gallery):
    return json.loads((gallery / "atlas.json").read_text())


@pytest.fixture(scope="session")
def gallery_html(gallery) -> Page:
    return Page((gallery / "index.html").read_text())


@pytest.fixture
def narrow(monkeypatch):
    """train.py builds narrow networks."""
    make_narrow(monkeypatch)


@pytest.fixture
def fake_cifar10(tmp_path, monkeypatch):
    """20 + 10 images in CIFAR-10's file format, their md5 sums patched into torchvision: (root, arrays)."""
    folder, random = tmp_path / "root" / "cifar-10-batches-py", np.random.RandomState(0)
    folder.mkdir(parents=True)

    def write(name, value):
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    counts = {f"data_batch_{n}": 4 for n in range(1, 6)} | {"test_batch": 10}
    arrays = {name: random.randint(0, 256, (n, 3 * 32 * 32)).astype(np.uint8) for name, n in counts.items()}
    files = [write(name, {"data": data, "labels": [*range(len(data))]}) for name, data in arrays.items()]
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    meta = dict(zip(("filename", "md5"), write("batches.meta", {"label_names": names}), strict=True))
    for name, value in {"train_list": files[:5], "test_list": files[5:], "meta": meta | {"key": "label_names"}}.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    return tmp_path / "root", arrays


def visualize(run, out, *flags):
    """visualizer.py on a run's model.pt, with few pixels."""
    visualizer.main(["--ckpt", str(run / "model.pt"), "--out", str(out), "--device", "cpu", "--dpi", "50", *flags])


def ends(capsys, main, flags, code, *words):
    """The script exits with this code, and with one line of error that contains these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(flag) for flag in flags])
    error = capsys.readouterr().err
    assert stop.value.code == code, error
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n"), error
    assert not [word for word in words if str(word) not in error], error
    return error


def assert_same_pictures(found, expected):
    """Equal to 1 % in norm: in single precision, another batch size or CPU may turn a single ReLU or switch."""
    found, expected = (np.asarray(each, dtype=float) for each in (found, expected))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 0.01 * np.linalg.norm(expected)


@style.styled  # ticks are made when they are drawn
def assert_inside(figure):
    """No visible text is smaller than 7 points, and nothing visible leaves the figure at any of three resolutions."""
    width, height = figure.get_size_inches()
    for dpi in (300, 130, 72):  # at the lower ones, text is a few percent wider
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        used = figure.get_tightbbox()  # in inches
        assert min(used.x0, used.y0) >= -0.01 and used.x1 <= width + 0.01 and used.y1 <= height + 0.01, dpi
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert texts and not [text for text in texts if text.get_fontsize() < 7]
