"""The torch.hub entry point: torchvision's resnet18 with the same state dict is the oracle."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network():
    return torch.hub.load(str(ROOT), "resnet18_cifar10", source="local")


def test_logits_equal_torchvisions(network):
    twin = torchvision.models.resnet18(num_classes=10)
    twin.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network(images), twin.eval()(images), rtol=1e-5, atol=1e-5)


def test_it_is_the_shipped_network_in_evaluation_mode(network):
    shipped = torch.load(ROOT / "checkpoints" / "resnet18-cifar10.pt", weights_only=True)
    assert not any(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, shipped["model"][name].to(value.dtype)), name
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert network.classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    assert list(network.mean) == list(shipped["mean"]) and list(network.std) == list(shipped["std"])
    assert network.image_size == 224


def test_fresh_weights(network):
    first, second = (torch.hub.load(str(ROOT), "resnet18_cifar10", source="local", pretrained=False) for _ in "ab")
    assert not first.training and first.classes == network.classes and first.image_size == 224
    assert not torch.equal(first.fc.weight, second.fc.weight)
    assert torch.equal(first.bn1.running_mean, torch.zeros(64))


@pytest.mark.slow
def test_any_working_directory_without_the_other_packages(tmp_path):
    """From outside the repository; hubconf imports network alone, so names like `training` stay free."""
    code = f"""
import sys, torch
from pathlib import Path
network = torch.hub.load({str(ROOT)!r}, "resnet18_cifar10", source="local")
root = Path({str(ROOT)!r})
files = [Path(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)]
print(network.image_size, *sorted(file.name for file in files if file.parent == root or file.parent.parent == root))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["224", "network.py"], result.stderr
