"""The importance maps against autograd, Captum, pytorch-grad-cam and zennit, and their figure."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedGradCam, IntegratedGradients, NoiseTunnel, Saliency
from matplotlib.colors import to_rgb
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox
from zennit.torchvision import ResNetCanonizer

from analysis import importance
from analysis.importance import METHODS, ImportanceBatch, saliency
from analysis.inspection import add_pictures, add_preprocessing, inspect, load_inspection
from analysis.relevance import STABILIZER, pixel_box, relevance_of_units
from analysis.settings import Settings
from figures import faithfulness
from figures.attributions import draw_attributions
from figures.faithfulness import draw_faithfulness, importance_batch
from figures.image_grid import to_array
from network import STAGES
from reverse_network import isolate

SIZE = (42, 34)
CLASSES = torch.tensor([3, 8])
CAMS = {"class activation map": "layer4", "LayerCAM conv3_x": "layer2", "LayerCAM conv4_x": "layer3"}
BOX = pixel_box([0.4, 0.5, 0.45], [0.25, 0.2, 0.3])


@pytest.fixture(scope="module")
def images():
    """Normalised, colors at the ends of the range among them."""
    pixels = torch.rand(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = (color.double() for color in BOX)
    return low + (1.2 * pixels - 0.1).clamp(0, 1) * (high - low)


@pytest.fixture
def batch(random_network, images):
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
@pytest.mark.parametrize("name, layer", CAMS.items())
def test_cams_equal_pytorch_grad_cam(random_network, images, batch, name, layer):
    """Before it drops negative values and scales: the CAM is Grad-CAM times the number of positions."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    theirs, layer = "GradCAM" if layer == "layer4" else "LayerCAM", getattr(random_network, layer)
    targets = [grad_cam.utils.model_targets.ClassifierOutputTarget(number) for number in CLASSES.tolist()]
    with getattr(grad_cam, theirs)(random_network, [layer]) as cam:
        cam(images.clone(), targets)
        hooks = cam.activations_and_grads
        tensors = hooks.activations[0].numpy(), hooks.gradients[0].numpy()
        expected = torch.from_numpy(cam.get_cam_image(images, layer, targets, *tensors, eigen_smooth=False))
    expected = F.interpolate(expected[:, None], SIZE, mode="bilinear")[:, 0]
    assert relative_error(maps_of(batch, name), expected) < 1e-12


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_gradients_equal_autograd(random_network, images, batch, classes):
    """By default of the predicted class: at every stage above the pooling, and as maps."""
    inputs = images.clone().requires_grad_()
    trace = random_network.trace(inputs)
    logits = random_network.classify(trace.features["conv5_x"])
    explained = logits.argmax(1) if classes is None else classes
    sources = [inputs, *(trace.features[stage] for stage in STAGES[1:])]
    gradient, *at_stages = torch.autograd.grad(logits.gather(1, explained[:, None]).sum(), sources)
    batch = replace(batch, classes=classes)
    assert torch.equal(batch.classes, explained)
    with torch.inference_mode():
        for stage, expected in zip(STAGES[1:], at_stages, strict=True):
            assert relative_error(batch.gradient(stage), expected) < 1e-12
    assert relative_error(maps_of(batch, "gradient"), gradient.abs().sum(1)) < 1e-12
    assert relative_error(maps_of(batch, "gradient x input"), (gradient * images).sum(1)) < 1e-12


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


def test_integrated_gradients_equal_captum_and_are_complete(random_network, images, batch, monkeypatch):
    """On a short way they sum to the logit minus that of the mean color, up to the error of the steps."""
    with torch.inference_mode():
        image = 0.1 * images[:1]
        expected = (random_network(image) - random_network(torch.zeros_like(image)))[:, 3]
        result = METHODS["integrated gradients"](replace(batch, inputs=image, classes=CLASSES[:1]))
    assert relative_error(result.sum((1, 2)), expected) < 0.1
    captum = IntegratedGradients(random_network)
    expected = captum.attribute(images, target=CLASSES, n_steps=5, method="riemann_middle").detach()
    monkeypatch.setattr(importance, "STEPS", 5)
    result = maps_of(batch, "integrated gradients")
    assert relative_error(result, expected.sum(1)) < 1e-7  # Captum's steps are rounded to float32


def zennit_relevance(network, images, signal, stage):
    """zennit's answer to a signal at a stage, or at the logits (None): (2, *SIZE)."""
    model = torchvision.models.resnet18(num_classes=10).double().eval()
    model.load_state_dict(network.state_dict())
    for bn in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        bn.running_var += bn.eps  # what zennit leaves of a batch norm is the identity only without eps
        bn.eps = 0.0
    low, high = (color.double()[None].expand_as(images) for color in BOX)
    stabilizers = {"epsilon": STABILIZER, "stabilizer": STABILIZER}
    composite = EpsilonGammaBox(low=low, high=high, canonizers=[ResNetCanonizer()], **stabilizers)
    if stage:  # torchvision's modules: conv1, bn1, relu, maxpool, layer1, ...
        model = torch.nn.Sequential(*list(model.children())[: 4 + STAGES.index(stage) if stage != "conv1" else 3])
    with Gradient(model, composite) as attributor:
        return attributor(images.clone(), signal)[1].sum(1)


@pytest.mark.parametrize("stage", [*STAGES, None])
def test_relevance_equals_zennit_and_inactive_units_have_none(random_network, images, batch, stage):
    """Of a unit at each stage; of a class (None), where zennit also stabilizes the logit and the pooled features."""
    with torch.inference_mode():
        if stage is None:
            signal, result = F.one_hot(CLASSES, 10) * random_network(images), maps_of(batch, "relevance")
        else:
            features = (trace := random_network.trace(images, stage)).features[stage]
            signal = isolate(features, features.amax((2, 3)).argmax(1), "peak")
            result = relevance_of_units(random_network, images, trace, signal, stage, BOX).sum(1)
            assert (inactive := (features == 0).double()).any()
            assert not relevance_of_units(random_network, images, trace, inactive, stage, BOX).any()
    expected = zennit_relevance(random_network, images, signal.clone(), stage)
    assert relative_error(result, expected) < (1e-10 if stage else 1e-5)


@torch.inference_mode()
def test_without_biases_the_relevance_sums_to_the_logit(random_network, batch):
    """Only the stabilizer takes a share."""
    unbiased = copy.deepcopy(random_network)
    for name, values in unbiased.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            values.zero_()
    batch = replace(batch, network=unbiased)
    logits = unbiased(batch.inputs).gather(1, CLASSES[:, None])[:, 0]
    assert torch.allclose(batch.map("relevance").sum((1, 2)), logits, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name, detail", [("CAM + guided", "guided"), ("relevance + CAM", "relevance")])
def test_detail_is_averaged_over_17_pixels_at_224_and_both_maps_are_scaled(batch, monkeypatch, name, detail):
    coarse, sharp = torch.rand(1, 224, 224) - 2, torch.zeros(1, 224, 224)
    sharp[0, 100, 50] = 7
    monkeypatch.setitem(METHODS, "class activation map", lambda batch: coarse)
    monkeypatch.setitem(METHODS, detail, lambda batch: sharp)
    expected = coarse / -coarse.amin()
    expected[0, 92:109, 42:59] += 1
    assert torch.allclose(batch.map(name), expected)


def test_noise_depends_on_the_seed_alone(batch):
    alone = replace(batch, seeds=batch.seeds[1:]).map("random")[0]
    assert torch.equal(batch.map("random")[1], alone) and not torch.equal(*batch.map("random"))


SETTINGS = Settings(score_images=2, methods=("gradient", "CAM + guided", "relevance", "random", "SmoothGrad"))


def rows_of(figure):
    """The images of each block of rows, and text -> pictures (columns, H, W, 3) of the methods."""
    images, methods = [], {}
    for axes in figure.get_axes():
        if not axes.get_images():
            continue
        if text := axes.get_ylabel():  # of a row's first column
            row = []
            images.append(row) if text == "image" else methods.update({tuple(text.splitlines()): row})
        row.append(axes.get_images()[0].get_array())
    return np.array(images), {text: np.stack(row) for text, row in methods.items()}


def expected_row(inspection, stored, name):
    """A method's maps from the registry over the grey image: red for positive values, full at the 99 % quantile."""
    with torch.inference_mode():
        batch = importance_batch(inspection, stored, torch.arange(len(stored)), "sum")
        maps = METHODS[name](batch).numpy()[..., None]
    colors = np.where(maps > 0, to_rgb("#b2182b"), to_rgb("#2166ac"))
    share = (np.abs(maps) / np.quantile(np.abs(maps), 0.99)).clip(0, 1)
    grey = to_array(inspection.resized(stored)).mean(-1, keepdims=True)
    return (0.6 + 0.4 * grey) * (1 - share + share * colors)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


def test_the_figure_shows_the_maps_by_score(inspection, monkeypatch):
    counted, curves = [], faithfulness.class_curves
    monkeypatch.setattr(faithfulness, "class_curves", lambda *args: counted.append(args) or curves(*args))
    _, (_, scored) = draw_faithfulness(inspection, SETTINGS)
    (_, figure), (_, content) = draw_attributions(inspection, SETTINGS)
    assert len(counted) == 1, "both figures share the scores"
    assert list(content["methods"]) == list(scored["methods"]) and set(content["methods"]) == set(SETTINGS.methods)
    images, rows = rows_of(figure)
    assert [name for name, *_ in rows] == list(content["methods"])
    shown = [entry["image"] for entry in content["images"]]
    stored = inspection.images[shown]
    assert len(stored) == len(inspection.labels[shown].unique()) == 3
    assert np.array_equal(images, [to_array(inspection.resized(stored))] * 2)
    for (name, score, *more), row in rows.items():
        assert score == faithfulness.format_score(content["methods"][name])
        assert more == ["baseline"] * (name == "random")
        np.testing.assert_allclose(row, expected_row(inspection, stored, name), atol=1e-5)


def test_ones_own_images_need_no_test_images(small_run, inspection):
    files = sorted(map(str, (small_run.parent / "pictures" / "test").glob("*/*.png")))[:2]
    own = add_pictures(add_preprocessing(load_inspection(small_run / "model.pt", "cpu")), Settings(), files)
    *figures, (_, content) = draw_attributions(own, SETTINGS)
    assert content["methods"] == dict.fromkeys(SETTINGS.methods) and len(content["images"]) == len(figures) == 2
    for picture, (path, figure) in zip(own.pictures, figures, strict=True):
        assert path.parts == (picture.folder, "attributions")
        images, rows = rows_of(figure)
        assert len(images) == 3 and [name for name, *_ in rows] == list(SETTINGS.methods)
        np.testing.assert_allclose(rows["gradient",], expected_row(own, picture.image[None], "gradient"), atol=1e-5)
    *_, (_, content) = draw_attributions(replace(inspection, pictures=own.pictures), SETTINGS)
    assert None not in content["methods"].values()
