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


def write_model(path, **changes):
    network = ResNet18(3)
    state = {
        "model": network.state_dict(),
        "classes": ["a", "b", "c"],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "image_size": 32,
        "config": {},
        "result": {},
        "history": [],
    }
    checkpoint.save(state | changes, path)
    return network


LINE = {"kind": "test", "epoch": 1, "step": 3, "loss": 1.0, "accuracy": 0.5}


def state_dict(**changes):
    """Of a network whose weights have other shapes."""
    return ResNet18().state_dict() | {name.replace("_", ".", 1): torch.zeros(value) for name, value in changes.items()}


def same_weights(network, expected):
    found = network.state_dict()
    return all(torch.equal(value, found[name]) for name, value in expected.items())


class TestBadNetworks:
    def refuses(self, state, path, *words):
        torch.save(state, path)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_network(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and len(message) < 400
        for word in words:
            assert word in message

    @pytest.mark.parametrize(
        "state, words",
        [
            (lambda: resnet34().state_dict(), ["not a ResNet-18: it has more blocks, as ResNet-34; only"]),
            (lambda: resnet50().state_dict(), ["not a ResNet-18: it has blocks of three convolutions, as ResNet-50"]),
            (lambda: alexnet().state_dict(), ["not a ResNet-18 (no fc.weight)"]),
            (lambda: state_dict(conv1_weight=(64, 1, 7, 7)), ["conv1 takes 1 channels, not the three of RGB"]),
            (lambda: state_dict(conv1_weight=(64, 4, 7, 7)), ["conv1 takes 4 channels, not the three of RGB"]),
            (lambda: state_dict(conv1_weight=(64, 3, 3, 3)), ["conv1 is 3x3", "not 7x7"]),
            (lambda: state_dict(conv1_weight=(32, 3, 7, 7)), ["size mismatch for conv1.weight", "(32, 3, 7, 7)"]),
            (lambda: state_dict() | {"head.weight": torch.zeros(3)}, ['Unexpected key(s) in state_dict: "head.w']),
            (lambda: state_dict() | {"fc.bias": 3}, ["fc.bias", "int"]),
            (lambda: state_dict() | {1: torch.zeros(3)}, ['Unexpected key(s) in state_dict: "1"']),
            (lambda: ResNet18(1).state_dict(), ["has 1 output, which is not supported", "a first row of zeros"]),
            (lambda: {"model": "resnet18"}, ["no fc.weight"]),
            (lambda: {f"{which}.{name}": value for which in ("model", "net") for name, value in state_dict().items()},
             ["no fc.weight"]),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )  # fmt: skip
    def test_another_network(self, tmp_path, state, words):
        self.refuses(state(), tmp_path / "a.pt", *words)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, tmp_path, value):
        state = ResNet18().state_dict()
        state["layer3.0.bn1.running_var"][5] = value
        self.refuses(state, tmp_path / "a.pt", "layer3.0.bn1.running_var holds NaN")

    def test_something_missing(self, tmp_path):
        write_model(tmp_path / "a.pt")
        state = checkpoint.load(tmp_path / "a.pt")
        del state["mean"], state["classes"]
        self.refuses(state, tmp_path / "b.pt", "lacks classes, mean")

    @pytest.mark.parametrize(
        "change",
        [{"image_size": 0}, {"image_size": "64"}, {"mean": ["a", 1.0, 2.0]}, {"std": [0.0] * 3}, {"config": None},
         {"history": [{}]}, {"classes": [1, 2, 3]}],
        ids=str,
    )  # fmt: skip
    def test_metadata_that_cannot_be(self, tmp_path, change):
        write_model(tmp_path / "a.pt", **change)
        with pytest.raises(CheckpointError, match="has been changed"):
            checkpoint.load_network(tmp_path / "a.pt")

    def test_other_classes_than_outputs(self, tmp_path):
        write_model(tmp_path / "a.pt")
        state = checkpoint.load(tmp_path / "a.pt") | {"classes": ["a", "b"]}
        self.refuses(state, tmp_path / "b.pt", "names 2 classes for 3 outputs")


class TestLoadNetwork:
    def test_a_model_of_train_or_its_folder(self, tmp_path):
        expected = write_model(tmp_path / "model.pt", history=[LINE]).state_dict()
        for path in (tmp_path / "model.pt", tmp_path):
            network, metadata = checkpoint.load_network(path)
            assert not network.training and metadata.classes == ("a", "b", "c") and metadata.history == [LINE]
            assert same_weights(network, expected)

    def test_of_a_run_with_a_moving_average_it_is_the_average(self, tmp_path):
        """As in last.pt, whose accuracy is the average's."""
        average = ResNet18(3).state_dict()
        write_model(tmp_path / "last.pt", ema=average)
        assert same_weights(checkpoint.load_network(tmp_path / "last.pt")[0], average)

    def test_names_of_classes_become_one_line(self, tmp_path):
        write_model(tmp_path / "a.pt", classes=["a\nb", " c\t\x1b\ud800d ", "é"])
        assert checkpoint.load_network(tmp_path / "a.pt")[1].classes == ("a b", "c d", "é")

    def test_torchvisions_imagenet_weights(self, tmp_path):
        """A plain state dict of 1000 outputs, as torchvision's are: names, mean and deviation are ImageNet's."""
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18().eval()
        state = {name: value for name, value in theirs.state_dict().items() if "num_batches_tracked" not in name}
        torch.save(state, tmp_path / "imagenet.pth")  # of 2017, as the file torchvision downloads
        network, metadata = checkpoint.load_network(tmp_path / "imagenet.pth")
        assert metadata.classes[207] == "golden retriever" and metadata.image_size == 224
        assert list(metadata.mean) == [0.485, 0.456, 0.406] and list(metadata.std) == [0.229, 0.224, 0.225]
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.allclose(network(images), theirs(images), atol=1e-5)

    def test_half_precision(self, tmp_path):
        torch.save({name: value.half() for name, value in ResNet18().state_dict().items()}, tmp_path / "a.pth")
        assert checkpoint.load_network(tmp_path / "a.pth")[0].conv1.weight.dtype == torch.float32

    @pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda network: network,
            torch.nn.DataParallel,
            torch.compile,
            AveragedModel,
            lambda network: torch.nn.ModuleDict({"model": torch.nn.DataParallel(torch.compile(network))}),
        ],
        ids=["plain", "module.", "_orig_mod.", "n_averaged and module.", "model.module._orig_mod."],
    )
    def test_the_wrappers_of_other_scripts(self, tmp_path, key, wrapped):
        network = ResNet18(7)
        state = wrapped(network).state_dict()
        torch.save({key: state, "epoch": 3, "optimizer": {}} if key else state, tmp_path / "a.pth")
        loaded, metadata = checkpoint.load_network(tmp_path / "a.pth")
        assert same_weights(loaded, network.state_dict())
        assert metadata.classes is None and metadata.mean is None  # left open


def test_classes_of_a_plain_state_dict_are_the_folders_and_an_accuracy_at_chance_is_told(folder, tmp_path, capsys):
    state = ResNet18(3).state_dict()
    state["fc.weight"].zero_()
    state["fc.bias"][:] = torch.tensor([0.0, 1.0, 0.0])  # everything is a ring
    torch.save(state, tmp_path / "a.pth")
    inspection = add_preprocessing(load_inspection(tmp_path / "a.pth", "cpu", str(folder), str(tmp_path)))
    assert inspection.metadata.classes == ("disk", "ring", "stripes")
    note = f"a.pth names no classes: those of {folder} are taken, the folders in alphabetical order"
    assert note in capsys.readouterr().out
    settings = Settings(stages=("conv1",))
    content = summary(add_search(add_test_images(inspection), settings), settings)
    assert content["accuracy"] == pytest.approx(1 / 3)
    assert "warning: an accuracy of 33.3%, not above chance" in capsys.readouterr().out
