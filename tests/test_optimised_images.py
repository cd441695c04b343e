"""Images found by optimisation: their space, and that the figures show what they say."""

import numpy as np
import pytest
import torch
from conftest import assert_inside

from analysis.fourier_image import FourierImages, color_root, minimise
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import inversion, synthesis
from figures.inversion import draw_inversion
from figures.registry import NotDrawn
from figures.synthesis import draw_synthesis, move
from network import STAGES

MEAN = torch.tensor([0.3, 0.5, 0.6])


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


@pytest.mark.parametrize("side", [32, 33])
def test_the_space_of_images(side):
    """No coefficients: the mean color; coefficients of variance 1: values of variance 1; amplitudes fall as 1 / f."""
    images, again = (FourierImages(100, side, MEAN, torch.eye(3), seed=0) for _ in range(2))
    assert torch.equal(images(), again()) and images().shape == (100, 3, side, side)
    with torch.no_grad():
        images.coefficients.normal_()
        values = torch.logit(images().double()) - torch.logit(MEAN)[:, None, None]
        images.coefficients.zero_()
        assert torch.allclose(images(), MEAN[:, None, None].expand(100, 3, side, side))
    assert values.var().item() == pytest.approx(1, rel=0.2)
    spectrum = torch.fft.rfft2(values).abs().square().mean((0, 1))
    assert (spectrum[0, 2] / spectrum[0, 8]).sqrt().item() == pytest.approx(4, rel=0.2)


def test_the_root_of_the_colors():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = images[:, 0] // 2
    root = color_root(images)
    covariance = np.cov(images.movedim(1, 0).flatten(1).numpy())
    assert np.allclose(root @ root, 3 * covariance / covariance.trace(), atol=1e-4)


@pytest.mark.parametrize("steps, rest", [(60, 0.01), (10, 1)])
def test_the_optimisation_reaches_an_image_of_the_space(steps, rest):
    target = FourierImages(2, 16, MEAN, torch.eye(3), seed=1)().detach()
    images = FourierImages(2, 16, MEAN, torch.eye(3), seed=0)
    before = (images() - target).square().mean()
    minimise(images, lambda pixels: (pixels - target).square().sum(), steps)
    assert (images() - target).square().mean() < rest * before


def test_moves_are_small_and_of_each_image(monkeypatch):
    images = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32).clone()
    images[:, :, 16, 16] = 5
    peaks = [divmod(image[0].argmax().item(), 32) for image in move(images, torch.Generator().manual_seed(0))]
    assert peaks[0] != peaks[1]
    assert all(abs(row - 16) <= 5 and abs(column - 16) <= 5 for row, column in peaks)  # a tenth of 32, and rotation
    for name in ("SHIFT", "SCALE", "DEGREES"):
        monkeypatch.setattr(synthesis, name, 0)
    assert torch.allclose(move(images, torch.Generator()), images, atol=1e-5)


def shown(figure, number):
    """The figure's picture of this number, (3, H, W)."""
    pictures = [image for axes in figure.get_axes() for image in axes.get_images()]
    return torch.from_numpy(np.asarray(pictures[number].get_array())).movedim(2, 0)


def test_inversion_shows_images_with_the_errors_it_states(inspection, monkeypatch):
    monkeypatch.setattr(inversion, "STEPS", dict.fromkeys(STAGES, 30))
    (path, figure), (_, entries) = draw_inversion(inspection, Settings())
    assert path.name == "inversion" and len(figure.get_axes()) == 6 * (rows := len(entries) // 5)
    assert_inside(figure)
    for number, entry in enumerate(entries):
        column, row = divmod(number, rows)
        original, found = shown(figure, 6 * row), shown(figure, 6 * row + column + 1)
        assert torch.equal(original, inspection.images[entry["image"]] / 255)
        with torch.inference_mode():
            inputs = inspection.preprocess(255 * torch.stack([original, found]))
            features = inspection.network.trace(inputs).features[entry["stage"]]
        error = (features[1] - features[0]).square().sum() / features[0].square().sum()
        assert entry["feature_error"] == pytest.approx(error.item(), rel=1e-3)
        assert entry["feature_error"] < 0.5
        percent, decibels = figure.get_axes()[6 * row + column + 1].texts[0].get_text().split(" %, ")
        assert float(percent) == pytest.approx(100 * error.item(), rel=0.06, abs=0.51)
        assert decibels == f"{entry['psnr']:.0f} dB"
        assert entry["psnr"] == pytest.approx(-10 * np.log10((found - original).square().mean().item()), rel=1e-3)
    for value, filled in (inspection.network.bn1.weight, 0), (inspection.network.bn1.bias, -1):
        monkeypatch.setattr(value, "data", torch.full_like(value.data, filled))
    with pytest.raises(NotDrawn, match="excites no channel of conv1"):
        next(draw_inversion(inspection, Settings()))


def test_synthesis_shows_images_with_the_numbers_it_states(inspection, monkeypatch):
    monkeypatch.setattr(synthesis, "STEPS", 30)
    (path, figure), (_, content) = draw_synthesis(inspection, Settings())
    assert path.name == "synthesis"
    assert_inside(figure)
    channels, classes = content["channels"], content["classes"]
    images = [
        shown(figure, n)
        for n in [*range(0, 2 * len(channels), 2), *range(2 * len(channels), 2 * len(channels) + len(classes))]
    ]
    with torch.inference_mode():
        features = inspection.network.trace(inspection.preprocess(255 * torch.stack(images))).features["conv5_x"]
        probabilities = inspection.network.classify(features).softmax(1)
    for n, entry in enumerate(channels):
        assert entry["activation"] == pytest.approx(features[n, entry["channel"]].max().item(), rel=1e-3, abs=1e-4)
        best = inspection.search.top["conv5_x"].scores[entry["channel"], 0].item()
        assert entry["best_test_activation"] == pytest.approx(best)
    for n, entry in enumerate(classes):
        expected = probabilities[len(channels) + n, n].item()
        assert entry["probability"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert [entry["class"] for entry in classes] == list(inspection.metadata.classes)
    titles = [axes.get_title("left") for axes in figure.get_axes() if axes.get_images()]
    assert titles[1 : 2 * len(channels) : 2] == [f"at most {entry['best_test_activation']:.2f}" for entry in channels]
