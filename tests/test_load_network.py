"""A network from a file: torchvision's are the oracle; what is not a ResNet-18 of finite weights is refused by name."""

import pytest
import torch
import torchvision
from torch.optim.swa_utils import AveragedModel
from torchvision.models import alexnet, resnet34, resnet50

from analysis.inspection import add_preprocessing, add_search, add_test_images, load_inspection
from analysis.settings import Settings
from figures.scores import summary
from network import ResNet18
from runtime import checkpoint
from runtime.checkpoint import CheckpointError

LINE = {"kind": "test", "epoch": 1, "step": 3, "loss": 1.0, "accuracy": 0.5}


def own(**changes):
    """What a model.pt of three classes holds."""
    metadata = {"classes": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32}
    return {"model": ResNet18(3).state_dict(), **metadata, "config": {}, "result": {}, "history": []} | changes


def plain(**changes):
    """A state dict, some weights of which are changed: conv1_weight=(32, 3, 7, 7)."""
    changes = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return ResNet18().state_dict() | {
        name: torch.zeros(value) if isinstance(value, tuple) else value for name, value in changes.items()
    }


def load(state, path):
    torch.save(state, path)
    return checkpoint.load_network(path)


def same_weights(network, expected):
    found = network.state_dict()
    return all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    "state, words",
    [
        (lambda: resnet34().state_dict(), "more blocks, as ResNet-34; only"),
        (lambda: resnet50().state_dict(), "three convolutions, as ResNet-50"),
        (lambda: alexnet().state_dict(), "not a ResNet-18 (no fc.weight)"),
        (lambda: plain(conv1_weight=(64, 4, 7, 7)), "conv1 takes 4 channels"),
        (lambda: plain(conv1_weight=(64, 3, 3, 3)), "conv1 is 3x3"),
        (lambda: plain(conv1_weight=(32, 3, 7, 7)), "size mismatch for conv1.weight"),
        (lambda: plain(head_weight=(3,)), 'Unexpected key(s) in state_dict: "head.w'),
        (lambda: plain(fc_bias=3), "fc.bias"),
        (lambda: plain() | {1: torch.zeros(3)}, 'Unexpected key(s) in state_dict: "1"'),
        (lambda: plain(fc_bias=torch.full((10,), float("nan"))), "fc.bias holds NaN"),
        (lambda: plain() | {"bn1.running_var": torch.full((64,), float("inf"))}, "bn1.running_var holds NaN or inf"),
        (lambda: ResNet18(1).state_dict(), "has 1 output, which is not supported"),
        (lambda: {"model": "resnet18"}, "no fc.weight"),
        (lambda: {f"{which}.{name}": value for which in ("model", "net") for name, value in plain().items()},
         "no fc.weight"),
        (lambda: {name: value for name, value in own().items() if name not in ("mean", "classes")},
         "lacks classes, mean"),
        (lambda: own(classes=["a", "b"]), "names 2 classes for 3 outputs"),
        *[(lambda change=change: own(**change), "has been changed") for change in (
            {"image_size": 0}, {"image_size": "64"}, {"mean": ["a", 1.0, 2.0]}, {"std": [0.0] * 3}, {"config": None},
            {"history": [{}]}, {"classes": [1, 2, 3]})],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused(tmp_path, state, words):
    with pytest.raises(CheckpointError) as caught:
        load(state(), tmp_path / "a.pt")
    message = str(caught.value)
    assert str(tmp_path / "a.pt") in message and words in message and "\n" not in message and len(message) < 400


class TestLoadNetwork:
    def test_a_model_of_train_or_its_folder(self, tmp_path):
        state = own(history=[LINE], classes=["a\nb", " c\t\x1b\ud800d ", "é"])
        torch.save(state, tmp_path / "model.pt")
        for path in (tmp_path / "model.pt", tmp_path):
            network, metadata = checkpoint.load_network(path)
            assert not network.training and same_weights(network, state["model"])
            assert metadata.classes == ("a b", "c d", "é") and metadata.history == [LINE]  # names in one line

    def test_of_a_run_with_a_moving_average_it_is_the_average(self, tmp_path):
        """As in last.pt, whose accuracy is the average's."""
        average = ResNet18(3).state_dict()
        assert same_weights(load(own(ema=average), tmp_path / "last.pt")[0], average)

    def test_torchvisions_imagenet_weights(self, tmp_path):
        """A plain state dict of 1000 outputs, as torchvision's are: names, mean and deviation are ImageNet's."""
        theirs = torchvision.models.resnet18().eval()
        state = {name: value for name, value in theirs.state_dict().items() if "num_batches_tracked" not in name}
        network, metadata = load(state, tmp_path / "imagenet.pth")  # of 2017, as the file torchvision downloads
        assert metadata.classes[207] == "golden retriever" and metadata.image_size == 224
        assert list(metadata.mean) == [0.485, 0.456, 0.406] and list(metadata.std) == [0.229, 0.224, 0.225]
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.allclose(network(images), theirs(images), atol=1e-5)

    def test_half_precision(self, tmp_path):
        state = {name: value.half() for name, value in plain().items()}
        assert load(state, tmp_path / "a.pth")[0].conv1.weight.dtype == torch.float32

    @pytest.mark.parametrize(
        "key, wrapped",
        [
            (None, lambda network: network),
            ("state_dict", torch.nn.DataParallel),
            ("model_state_dict", torch.compile),
            ("model", AveragedModel),
            ("net", lambda network: torch.nn.ModuleDict({"model": torch.nn.DataParallel(torch.compile(network))})),
        ],
        ids=["plain", "module.", "_orig_mod.", "n_averaged and module.", "model.module._orig_mod."],
    )
    def test_the_wrappers_of_other_scripts(self, tmp_path, key, wrapped):
        network = ResNet18(7)
        state = wrapped(network).state_dict()
        loaded, metadata = load({key: state, "epoch": 3, "optimizer": {}} if key else state, tmp_path / "a.pth")
        assert same_weights(loaded, network.state_dict())
        assert metadata.classes is None and metadata.mean is None  # left open


def test_classes_of_a_plain_state_dict_are_the_folders_and_an_accuracy_at_chance_is_told(folder, tmp_path, capsys):
    state = ResNet18(3).state_dict()
    state["fc.weight"].zero_()
    state["fc.bias"][:] = torch.tensor([0.0, 1.0, 0.0])  # everything is a ring
    torch.save(state, tmp_path / "a.pth")
    inspection = add_preprocessing(load_inspection(tmp_path / "a.pth", "cpu", str(folder), str(tmp_path)))
    assert inspection.metadata.classes == ("disk", "ring", "stripes")
    assert f"a.pth names no classes: those of {folder} are taken" in capsys.readouterr().out
    settings = Settings(stages=("conv1",))
    content = summary(add_search(add_test_images(inspection), settings), settings)
    assert content["accuracy"] == pytest.approx(1 / 3)
    assert "not above chance" in capsys.readouterr().out
