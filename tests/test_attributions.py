"""The importance maps against Captum and pytorch-grad-cam."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedGradCam, IntegratedGradients, NoiseTunnel, Saliency

from analysis import importance
from analysis.importance import METHODS, ImportanceBatch, add_detail, saliency
from analysis.relevance import pixel_box, relevance

SIZE = (42, 34)
CLASSES = torch.tensor([3, 8])
BOX = pixel_box([0.5] * 3, [0.1] * 3)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch(random_network, images):
    """Both images, to be explained for CLASSES."""
    return ImportanceBatch(random_network, images.sigmoid(), images, torch.tensor([0, 1]), BOX, classes=CLASSES)


@torch.inference_mode()
def maps_of(batch, name):
    maps = batch.map(name)
    assert maps.shape == (2, *SIZE)
    return maps


def relative_error(result, expected):
    assert expected.norm() > 0, "the oracle is zero everywhere"
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name, theirs, layer",
    [
        ("class activation map", "GradCAM", "layer4"),
        ("LayerCAM conv3_x", "LayerCAM", "layer2"),
        ("LayerCAM conv4_x", "LayerCAM", "layer3"),
    ],
)
def test_cams_equal_pytorch_grad_cam(random_network, images, batch, name, theirs, layer):
    """Before it drops negative values and scales: the CAM is Grad-CAM times the number of positions."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    layer = getattr(random_network, layer)
    targets = [grad_cam.utils.model_targets.ClassifierOutputTarget(number) for number in CLASSES.tolist()]
    with getattr(grad_cam, theirs)(random_network, [layer]) as cam:
        cam(images.clone(), targets)
        hooks = cam.activations_and_grads
        tensors = hooks.activations[0].numpy(), hooks.gradients[0].numpy()
        expected = torch.from_numpy(cam.get_cam_image(images, layer, targets, *tensors, eigen_smooth=False))
    expected = F.interpolate(expected[:, None], SIZE, mode="bilinear")[:, 0]
    assert relative_error(maps_of(batch, name), expected) < 1e-12


@pytest.mark.parametrize("stage", ["conv2_x", "conv3_x", "conv4_x", "conv5_x"])
def test_the_gradient_at_a_stage_equals_autograd(random_network, images, batch, stage):
    trace = random_network.trace(images)
    logits = random_network.classify(trace.features["conv5_x"])
    expected = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), trace.features[stage])[0]
    with torch.inference_mode():
        assert relative_error(batch.gradient(stage), expected) < 1e-12


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_guided_cam_equals_captum(random_network, images, batch):
    captum = GuidedGradCam(random_network, random_network.layer4)
    expected = captum.attribute(images.clone().requires_grad_(), CLASSES, interpolate_mode="bilinear").detach()
    assert relative_error(maps_of(batch, "guided x CAM"), saliency(expected)) < 1e-12


def test_smooth_grad_equals_captum_on_the_same_noise(random_network, images, batch, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(3, *SIZE, dtype=torch.float64, generator=generator) for _ in range(4)])
    monkeypatch.setattr(importance, "NOISY_IMAGES", 4)
    monkeypatch.setattr("torch.normal", lambda mean, std: noise * std)
    result = maps_of(batch, "SmoothGrad")
    for n, image in enumerate(images.split(1)):
        tunnel, spread = NoiseTunnel(Saliency(random_network)), 0.15 * (image.max() - image.min()).item()
        how = {"nt_type": "smoothgrad", "nt_samples": 4, "stdevs": spread}
        expected = tunnel.attribute(image.clone(), target=CLASSES[n].item(), **how).detach()
        assert relative_error(result[n], saliency(expected)[0]) < 1e-12


def test_integrated_gradients_equal_captum(random_network, images, batch, monkeypatch):
    captum = IntegratedGradients(random_network)
    expected = captum.attribute(images, target=CLASSES, n_steps=5, method="riemann_middle").detach()
    monkeypatch.setattr(importance, "STEPS", 5)
    result = maps_of(batch, "integrated gradients")
    assert relative_error(result, expected.sum(1)) < 1e-7  # Captum's steps are rounded to float32


@torch.inference_mode()
def test_integrated_gradients_are_complete(random_network, images, batch):
    """They sum to the logit minus that of the mean color, up to the error of the steps, small on a short way."""
    image = 0.1 * images[:1]
    expected = (random_network(image) - random_network(torch.zeros_like(image)))[:, 3]
    result = METHODS["integrated gradients"](replace(batch, inputs=image, classes=CLASSES[:1]))
    assert relative_error(result.sum((1, 2)), expected) < 0.1


def test_the_relevance_map_is_the_sum_over_the_colors(random_network, images, batch):
    with torch.inference_mode():
        expected = relevance(random_network, images, random_network.trace(images), CLASSES, BOX).sum(1)
    assert torch.equal(maps_of(batch, "relevance"), expected)


def test_sums_of_two_maps(batch):
    for name, parts in (
        ("CAM + guided", ("class activation map", "guided")),
        ("relevance + CAM", ("class activation map", "relevance")),
    ):
        assert torch.equal(maps_of(batch, name), add_detail(*(maps_of(batch, part) for part in parts)))


def test_detail_is_averaged_over_17_pixels_at_224_and_both_maps_are_scaled():
    coarse = torch.rand(1, 224, 224) - 2
    sharp = torch.zeros(1, 224, 224)
    sharp[0, 100, 50] = 7
    expected = coarse / -coarse.amin()
    expected[0, 92:109, 42:59] += 1
    assert torch.allclose(add_detail(coarse, sharp), expected)
    assert torch.equal(add_detail(coarse, 0 * sharp), coarse / -coarse.amin())
