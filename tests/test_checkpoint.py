"""A checkpoint appears whole or not at all, nothing in it is run, and what is not a ResNet-18 is refused by name."""

import contextlib
import errno
import os
import pickle

import pytest
import torch
import torchvision
from torch.optim.swa_utils import AveragedModel
from torchvision.models import alexnet, resnet34

from analysis.inspection import add_preprocessing, add_search, add_test_images, load_inspection
from analysis.settings import Settings
from figures.scores import summary
from network import ResNet18
from runtime import checkpoint, signals
from runtime.checkpoint import CheckpointError


class Payload:
    """What a malicious file would hold: unpickling it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def raising(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


class TestSave:
    def test_what_is_saved_comes_back(self, tmp_path):
        state = {"tensor": torch.randn(3), "text": "a", "list": [1, 2.5, None, True], "dict": {"x": (1, 2)}}
        for path in ("last.pt", "last.prev.pt"):
            checkpoint.save(state | {"n": path}, tmp_path / "last.pt", keep_previous=True)
        loaded = checkpoint.load(tmp_path / "last.pt")
        assert torch.equal(loaded.pop("tensor"), state.pop("tensor")) and loaded == state | {"n": "last.prev.pt"}
        assert checkpoint.load(tmp_path / "last.prev.pt")["n"] == "last.pt"

    @pytest.mark.parametrize("moment", ["writing", "flushing"])
    def test_a_full_disk_leaves_both_old_files(self, tmp_path, monkeypatch, moment):
        def fill(state, file):
            file.write(b"half")
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch reports it

        path = tmp_path / "last.pt"
        for n in range(2):
            checkpoint.save({"n": n}, path, keep_previous=True)
        monkeypatch.setattr(*{"writing": (torch, "save", fill), "flushing": (os, "fsync", raising(errno.EIO))}[moment])
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save({"n": 2}, path, keep_previous=True)
        assert checkpoint.load(path) == {"n": 1} and checkpoint.load(tmp_path / "last.prev.pt") == {"n": 0}
        assert sorted(os.listdir(tmp_path)) == ["last.prev.pt", "last.pt"]

    def test_windows_is_given_time(self, tmp_path, monkeypatch):
        """There, a file cannot be replaced while another process reads it."""
        attempts, replace = [], os.replace

        def busy_twice(source, target):
            attempts.append(target)
            if len(attempts) < 3:
                raise PermissionError("in use")
            replace(source, target)

        monkeypatch.setattr(os, "replace", busy_twice)
        monkeypatch.setattr(checkpoint, "IS_WINDOWS", True)
        checkpoint.save({"a": 1}, tmp_path / "a.pt")
        assert len(attempts) == 3 and checkpoint.load(tmp_path / "a.pt") == {"a": 1}

    @pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened")
    @pytest.mark.parametrize("call, number", [("fsync", errno.EINVAL), ("fsync", errno.ENOSYS), ("open", errno.EACCES)])
    def test_a_file_system_that_cannot_flush(self, tmp_path, monkeypatch, call, number):
        monkeypatch.setattr(os, call, raising(number))
        checkpoint.save({"n": 1}, tmp_path / "a.pt")
        assert checkpoint.load(tmp_path / "a.pt") == {"n": 1}


class TestBadFiles:
    def refuses(self, path, *words):
        for load in (checkpoint.load, checkpoint.load_network):
            with pytest.raises(CheckpointError) as caught:
                load(path)
            assert all(word in str(caught.value) for word in (str(path), *words)), caught.value

    def test_missing_or_a_folder_or_a_tensor(self, tmp_path):
        self.refuses(tmp_path / "a.pt", "no checkpoint at")
        self.refuses(tmp_path, "no checkpoint at")
        torch.save(torch.zeros(3), tmp_path / "a.pt")
        self.refuses(tmp_path / "a.pt", "holds a Tensor")

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04garbage", bytes(1000), 0.5, 0.99999])
    def test_no_checkpoint_or_cut_short(self, tmp_path, content):
        path = tmp_path / "a.pt"
        if isinstance(content, float):
            checkpoint.save({"model": torch.randn(100_000)}, path)
            content = path.read_bytes()[: int(path.stat().st_size * content)]
        path.write_bytes(content)
        self.refuses(path, "not a checkpoint")

    @pytest.mark.parametrize("protocol", [None, 2, 5])
    def test_code_is_not_run(self, tmp_path, protocol):
        """In a file of torch.save, and in plain pickles of the protocols that it can and cannot read."""
        state, marker = {"model": Payload(tmp_path / "marker")}, tmp_path / "marker"
        if protocol is None:
            torch.save(state, tmp_path / "a.pt")
        else:
            (tmp_path / "a.pt").write_bytes(pickle.dumps(state, protocol))
        self.refuses(tmp_path / "a.pt", "were not executed" if protocol != 5 else "not a checkpoint")
        assert not marker.exists()
        with contextlib.suppress(RuntimeError):
            torch.load(tmp_path / "a.pt", weights_only=False)
        assert marker.exists(), "the file is not as malicious as this test needs"


@pytest.mark.skipif(signals.fcntl is None, reason="folders cannot be locked")
def test_a_second_run_in_the_folder_is_refused(tmp_path, monkeypatch):
    refused = pytest.raises(CheckpointError, match="another run is writing")
    with signals.exclusive_lock(tmp_path), refused, signals.exclusive_lock(tmp_path):
        pytest.fail("it was let in")
    monkeypatch.setattr(signals.fcntl, "flock", raising(errno.ENOLCK))
    with signals.exclusive_lock(tmp_path):  # where folders cannot be locked, both go on
        pass


def own(**changes):
    """What a model.pt of three classes holds."""
    metadata = {"classes": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32}
    return {"model": ResNet18(3).state_dict(), **metadata, "config": {}, "result": {}, "history": []} | changes


def load(state, path):
    torch.save(state, path)
    return checkpoint.load_network(path)


def same_weights(network, expected):
    weights = network.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    "state, words",
    [
        (lambda: resnet34().state_dict(), 'Unexpected key(s) in state_dict: "layer1.2'),
        (lambda: alexnet().state_dict(), "two outputs or more"),
        (lambda: ResNet18(1).state_dict(), "two outputs or more"),
        (lambda: ResNet18().state_dict() | {"fc.bias": 3}, "fc.bias"),
        (lambda: ResNet18().state_dict() | {1: torch.zeros(3)}, 'Unexpected key(s) in state_dict: "1"'),
        (lambda: ResNet18().state_dict() | {"fc.bias": torch.full((10,), torch.inf)}, "fc.bias holds NaN or infinite"),
        (lambda: {f"{network}.{name}": value for network in ("model", "net") for name, value in own()["model"].items()},
         "two outputs or more"),
        (lambda: {name: value for name, value in own().items() if name != "mean"}, "lacks mean"),
        (lambda: own(classes=["a", "b"]), "names 2 classes for 3 outputs"),
        *[(lambda change=change: own(**change), "has been changed") for change in (
            {"image_size": 0}, {"image_size": "64"}, {"mean": ["a", 1.0, 2.0]}, {"std": [0.0] * 3}, {"config": "none"},
            {"history": [{}]}, {"classes": [1, 2, 3]})],
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, state, words):
    with pytest.raises(CheckpointError) as caught:
        load(state(), tmp_path / "a.pt")
    message = str(caught.value)
    assert str(tmp_path / "a.pt") in message and words in message and "\n" not in message and len(message) < 400


class TestLoadNetwork:
    def test_a_model_of_train_or_its_folder(self, tmp_path):
        """Of a run with a moving average it is the average, whose accuracy last.pt has."""
        line = {"kind": "test", "epoch": 1, "step": 3, "loss": 1.0, "accuracy": 0.5}
        state, average = own(history=[line], classes=["a\nb", " c\t\x1b\ud800d ", "é"]), own()["model"]
        torch.save(state, tmp_path / "model.pt")
        for path in (tmp_path / "model.pt", tmp_path):
            network, metadata = checkpoint.load_network(path)
            assert not network.training and same_weights(network, state["model"])
            assert metadata.classes == ("a b", "c d", "é") and metadata.history == [line]  # names in one line
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

    @pytest.mark.parametrize(
        "key, wrapped",
        [
            (None, lambda network: network.half()),
            ("state_dict", torch.nn.DataParallel),
            ("model_state_dict", torch.compile),
            ("model", AveragedModel),
            ("net", lambda network: torch.nn.ModuleDict({"model": torch.nn.DataParallel(torch.compile(network))})),
        ],
    )
    def test_the_wrappers_of_other_scripts(self, tmp_path, key, wrapped):
        network = ResNet18(7)
        state = wrapped(network).state_dict()
        loaded, metadata = load({key: state, "epoch": 3, "optimizer": {}} if key else state, tmp_path / "a.pth")
        assert same_weights(loaded, network.float().state_dict())
        assert metadata.classes is None and metadata.mean is None  # left open


def test_classes_of_a_plain_state_dict_are_the_folders_and_an_accuracy_at_chance_is_told(folder, tmp_path, capsys):
    ring = {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.tensor([0.0, 1.0, 0.0])}
    torch.save(own()["model"] | ring, tmp_path / "a.pth")
    inspection = add_preprocessing(load_inspection(tmp_path / "a.pth", "cpu", str(folder), str(tmp_path)))
    assert inspection.metadata.classes == ("disk", "ring", "stripes")
    settings = Settings(stages=("conv1",))
    content = summary(add_search(add_test_images(inspection), settings), settings)
    assert content["accuracy"] == pytest.approx(1 / 3)
    said = capsys.readouterr().out
    assert f"a.pth names no classes: those of {folder} are taken" in said and "not above chance" in said
