"""A network from a file: torchvision's are the oracle; what is not a ResNet-18 of finite weights is refused by name."""

import pytest
import torch
import torchvision

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


class TestBadNetworks:
    def refuses(self, state, path, *words):
        torch.save(state, path)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_network(path)
        for word in words:
            assert word in str(caught.value)

    def test_another_network(self, tmp_path):
        names = torchvision.models.resnet34().state_dict()
        self.refuses(names, tmp_path / "a.pt", "is not a ResNet-18", "names differ")
        self.refuses(torchvision.models.resnet50().state_dict(), tmp_path / "b.pt", "is not a ResNet-18")
        self.refuses(torchvision.models.alexnet().state_dict(), tmp_path / "c.pt", "is not a ResNet-18", "fc.weight")

    def test_another_shape(self, tmp_path):
        state = ResNet18().state_dict()
        state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
        self.refuses(state, tmp_path / "a.pt", "conv1.weight is (64, 3, 3, 3), not (64, 3, 7, 7)")

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
    def test_facts_that_cannot_be(self, tmp_path, change):
        write_model(tmp_path / "a.pt", **change)
        with pytest.raises(CheckpointError, match="has been changed"):
            checkpoint.load_network(tmp_path / "a.pt")

    def test_other_classes_than_outputs(self, tmp_path):
        write_model(tmp_path / "a.pt")
        state = checkpoint.load(tmp_path / "a.pt") | {"classes": ["a", "b"]}
        self.refuses(state, tmp_path / "b.pt", "names 2 classes for 3 outputs")


class TestLoadNetwork:
    def test_a_model_of_train(self, tmp_path):
        network = write_model(tmp_path / "a.pt", history=[LINE])
        loaded, info = checkpoint.load_network(tmp_path / "a.pt")
        assert not loaded.training and info.classes == ("a", "b", "c") and info.history == [LINE]
        for name, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)

    def test_the_folder_of_a_run(self, tmp_path):
        write_model(tmp_path / "model.pt")
        assert checkpoint.load_network(tmp_path)[1].classes == ("a", "b", "c")

    def test_torchvisions_imagenet_weights(self, tmp_path):
        """A plain state dict of 1000 outputs, as torchvision's are: names, mean and deviation are ImageNet's."""
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18().eval()
        state = {name: value for name, value in theirs.state_dict().items() if "num_batches_tracked" not in name}
        torch.save(state, tmp_path / "imagenet.pth")  # of 2017, as the file torchvision downloads
        network, info = checkpoint.load_network(tmp_path / "imagenet.pth")
        assert info.classes[207] == "golden retriever" and info.image_size == 224
        assert list(info.mean) == [0.485, 0.456, 0.406] and list(info.std) == [0.229, 0.224, 0.225]
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.allclose(network(images), theirs(images), atol=1e-5)

    def test_a_plain_state_dict_of_other_classes_leaves_them_open(self, tmp_path):
        torch.save(ResNet18(7).state_dict(), tmp_path / "a.pth")
        _, info = checkpoint.load_network(tmp_path / "a.pth")
        assert info.classes is None and info.mean is None

    def test_half_precision(self, tmp_path):
        state = {
            name: value.half() if value.is_floating_point() else value
            for name, value in ResNet18().state_dict().items()
        }
        torch.save(state, tmp_path / "a.pth")
        assert checkpoint.load_network(tmp_path / "a.pth")[0].conv1.weight.dtype == torch.float32
