"""The importance maps against Captum and pytorch-grad-cam, and their figure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedGradCam, IntegratedGradients, NoiseTunnel, Saliency
from conftest import assert_inside

import visualizer
from analysis import importance
from analysis.importance import METHODS, ImportanceBatch, add_detail, saliency
from analysis.inspection import add_pictures, add_preprocessing, inspect, load_inspection
from analysis.relevance import pixel_box, relevance
from analysis.settings import Settings
from figures import faithfulness
from figures.attributions import AGAINST, CAPTION, FOR, SCORED, attributions_figure, draw_attributions, overlay
from figures.faithfulness import draw_faithfulness
from figures.image_grid import to_array
from network import ResNet18
from reverse_network import ReverseResNet18

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


def test_methods_share_a_trace_and_compute_no_picture_that_they_do_not_use(batch, monkeypatch):
    traced, rules = [], []
    trace, go_back = ResNet18.trace, ReverseResNet18.forward
    monkeypatch.setattr(ResNet18, "trace", lambda *args: traced.append(args) or trace(*args))
    monkeypatch.setattr(ReverseResNet18, "forward", lambda self, *args: rules.append(self.rule) or go_back(self, *args))
    for name in ("class activation map", "relevance", "Sobel edges", "random"):
        maps_of(batch, name)
    assert len(traced) == 1 and not rules
    for name in ("guided x input", "guided x CAM", "CAM + guided"):
        maps_of(batch, name)
    assert len(traced) == 1 and rules == ["guided"]


def test_detail_is_averaged_over_17_pixels_at_224_and_both_maps_are_scaled():
    coarse = torch.rand(1, 224, 224) - 2
    sharp = torch.zeros(1, 224, 224)
    sharp[0, 100, 50] = 7
    expected = coarse / -coarse.amin()
    expected[0, 92:109, 42:59] += 1
    assert torch.allclose(add_detail(coarse, sharp), expected)
    assert torch.equal(add_detail(coarse, 0 * sharp), coarse / -coarse.amin())


SETTINGS = Settings(score_images=2, methods=("gradient", "CAM + guided", "relevance", "random", "SmoothGrad"))


def rows_of(figure):
    """Names and pictures of the rows, each (columns, H, W, 3): the image in every block, then the methods."""
    names = [text.get_text().splitlines() for text in figure.texts[2:]]  # title and caption come first
    shown = np.stack([axes.get_images()[0].get_array() for axes in figure.get_axes()])
    return names, shown.reshape(len(names), -1, *shown.shape[1:])


def expected_maps(inspection, stored, name):
    """`overlay` of a method's maps, from the registry."""
    images, inputs = inspection.resized(stored), inspection.inputs(stored)
    box = pixel_box(inspection.metadata.mean, inspection.metadata.std)
    with torch.inference_mode():
        batch = ImportanceBatch(inspection.network, images, inputs, torch.arange(len(stored)), box)
        return overlay(to_array(images), METHODS[name](batch))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


def test_the_figure_shows_the_maps_by_score(inspection, monkeypatch):
    counted, curves = [], faithfulness.class_curves
    monkeypatch.setattr(faithfulness, "class_curves", lambda *args: counted.append(args) or curves(*args))
    _, (_, scored) = draw_faithfulness(inspection, SETTINGS)
    (_, figure), (_, content) = draw_attributions(inspection, SETTINGS)
    assert len(counted) == 1, "both figures share the scores"
    scores = [scored["methods"][name]["score"] for name in content["methods"]]
    assert set(content["methods"]) == set(SETTINGS.methods) and scores == sorted(scores, reverse=True)
    names, rows = rows_of(figure)
    assert [name[0] for name in names] == ["image", "image", *content["methods"]]
    assert (names[-1][-1] == "baseline") == (names[-1][0] == "random")
    stored = inspection.images[[entry["image"] for entry in content["images"]]]
    labels = inspection.labels[[entry["image"] for entry in content["images"]]].tolist()
    assert len(stored) == len(set(labels)) == 3
    assert np.array_equal(rows[0], to_array(inspection.resized(stored)))
    for (name, score, *_), row in zip(names[2:], rows[2:], strict=True):
        assert score == faithfulness.format_score(content["methods"][name])
        np.testing.assert_allclose(row, expected_maps(inspection, stored, name), atol=1e-5)
    assert_inside(figure)


def test_ones_own_images_need_no_test_images(small_run, inspection):
    files = sorted(map(str, (small_run.parent / "pictures" / "test").glob("*/*.png")))[:2]
    own = add_pictures(add_preprocessing(load_inspection(small_run / "model.pt", "cpu")), Settings(), files)
    *figures, (_, content) = draw_attributions(own, SETTINGS)
    assert content["methods"] == dict.fromkeys(SETTINGS.methods) and len(content["images"]) == len(figures) == 2
    for picture, (path, figure) in zip(own.pictures, figures, strict=True):
        assert path.parts == (picture.folder, "attributions")
        names, rows = rows_of(figure)
        assert [name[0] for name in names] == [*["image"] * 3, *SETTINGS.methods]
        np.testing.assert_allclose(rows[3], expected_maps(own, picture.image[None], "gradient"), atol=1e-5)
        assert_inside(figure)
    *_, (_, content) = draw_attributions(replace(inspection, pictures=own.pictures), SETTINGS)
    assert None not in content["methods"].values()


def test_colors_of_a_map():
    maps = torch.tensor([[[0.0, 4, -4], [2, -8, 1]]])  # 8 is beyond the 99 % quantile, 7.8
    shown = overlay(np.full((1, 2, 3, 3), 1.0), maps)[0]
    share = 4 / maps.abs().flatten().quantile(0.99).item()
    assert shown[0, 0] == pytest.approx([1] * 3) and shown[1, 1] == pytest.approx(AGAINST)
    assert shown[0, 1] == pytest.approx(1 - share + share * np.array(FOR))
    assert shown[0, 2] == pytest.approx(1 - share + share * np.array(AGAINST))
    assert np.array_equal(overlay(np.ones((1, 2, 3, 3)), 0 * maps), np.ones((1, 2, 3, 3)))


def test_methods_are_chosen_by_name(capsys):
    args = visualizer.parse_args(["--methods", "random", "CAM + guided", "random"])
    assert visualizer.settings_from(args).methods == ("random", "CAM + guided")
    assert visualizer.settings_from(visualizer.parse_args([])).methods == tuple(METHODS)
    with pytest.raises(SystemExit):
        visualizer.parse_args(["--methods", "CAM"])
    assert "'class activation map'" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_text_leaves_the_figure(count):
    maps = {name: torch.rand(count, 8, 8) for name in METHODS}
    scores = {name: {"score": -0.12, "low": -0.25, "high": -0.02} for name in METHODS}
    classes = ["American_Staffordshire_Terrier <b>$x$"] * count
    figure = attributions_figure(np.zeros((count, 8, 8, 3)), classes, maps, scores, "A title", CAPTION + SCORED)
    assert_inside(figure)
    assert figure.get_figheight() < 10.5
