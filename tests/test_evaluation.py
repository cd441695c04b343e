import pytest
import torch

from dataset.preprocess import Preprocess
from network import ResNet18
from training import evaluation


@pytest.fixture
def case(monkeypatch):
    """A network, and images that make two full batches and a small part of a third."""
    monkeypatch.setattr(evaluation, "PIXELS_PER_BATCH", 100 * 16 * 16)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2 * 100 + 3, 3, 16, 16), dtype=torch.uint8)
    return ResNet18(10), images, torch.arange(len(images)) % 10, Preprocess(16, [0.5] * 3, [0.25] * 3)


def test_every_image_counts_once(case):
    network, images, labels, preprocess = case
    sizes = []
    network.conv1.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    loss, accuracy = evaluation.evaluate(network, images, labels, preprocess)
    assert network.training  # put back
    assert sizes == [100, 100, 100]  # of static shape
    network.eval()
    with torch.inference_mode():
        logits = network(preprocess(images))
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)


def test_with_mirror_images(case):
    network, images, labels, preprocess = case
    loss, accuracy = evaluation.evaluate(network, images, labels, preprocess, flip=True)
    network.eval()
    with torch.inference_mode():
        logits = (network(preprocess(images)) + network(preprocess(images.flip(3)))) / 2
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    turned = evaluation.evaluate(network, images.flip(3), labels, preprocess, flip=True)
    assert turned == pytest.approx((loss, accuracy), rel=1e-4)


def test_mean_metrics_of_nothing():
    assert evaluation.mean_metrics(torch.zeros(3)) == (0.0, 0.0)
