"""The network that comes with the project, as one finds it after cloning: by torch.hub, and without data."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import train
from runtime.checkpoint import SHIPPED, load

ROOT = Path(__file__).parent.parent
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


@pytest.fixture(scope="module")
def network():
    return torch.hub.load(str(ROOT), "resnet18_cifar10", source="local")


def test_it_is_small_and_complete(network):
    assert SHIPPED.stat().st_size < 25e6
    shipped = load(SHIPPED)
    assert {value.dtype for value in shipped["model"].values() if value.ndim > 1} == {torch.float16}
    tests = [entry for entry in shipped["history"] if entry["kind"] == "test"]
    assert shipped["result"]["test_accuracy"] == tests[-1]["accuracy"]  # the last epoch's, not the best
    for line in shipped["config"]["recipe"]:
        train.parse_args(line.split()[2:])
    assert shipped["config"]["data"] == "cifar10" and tuple(shipped["classes"]) == network.classes == CLASSES
    assert list(network.mean) == list(shipped["mean"]) and list(network.std) == list(shipped["std"])
    assert network.image_size == shipped["image_size"] == 224


def test_the_hubs_logits_equal_torchvisions(network):
    twin = torchvision.models.resnet18(num_classes=10)
    twin.load_state_dict(load(SHIPPED)["model"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert not any(module.training for module in network.modules())
    with torch.inference_mode():
        assert torch.allclose(network(images), twin.eval()(images), rtol=1e-5, atol=1e-5)


def test_fresh_weights_of_the_hub(network):
    fresh = torch.hub.load(str(ROOT), "resnet18_cifar10", source="local", pretrained=False)
    assert not fresh.training and fresh.classes == network.classes and fresh.image_size == 224
    assert torch.equal(fresh.bn1.running_mean, torch.zeros(64))


@pytest.mark.slow
def test_any_working_directory_without_the_other_packages(tmp_path):
    """From outside the repository; hubconf imports network alone, so names like `training` stay free."""
    code = f"""
import sys, torch
network = torch.hub.load({str(ROOT)!r}, "resnet18_cifar10", source="local")
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
print(network.image_size, *(file for file in files if file.startswith({str(ROOT)!r}) and "site-packages" not in file))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["224", str(ROOT / "network.py")], result.stderr
