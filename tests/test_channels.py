"""Which channels, images and units are shown, and with what said of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures, write_folder

from analysis.channels import chosen_channels, inspect_channels, robust_limit, strongest_units
from analysis.inspection import inspect
from analysis.pictures import spread
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from network import ResNet18
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings()


def inspect_channel(inspection, settings, stage, channel):
    return next(inspect_channels(inspection, settings, stage, [channel]))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.mark.parametrize("units", ["map", "peak", torch.tensor([3, 0, 1, 2, 3, 1, 0])], ids=["map", "peak", "units"])
@pytest.mark.parametrize("stage", ["conv1", "conv5_x"])
def test_pictures_are_the_mirrors_and_an_image_is_traced_once(random_network, monkeypatch, stage, units):
    inputs, chosen = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([2, 0, 2, 1, 2, 0, 2])
    channels, mirrors = [5, 7, 60, 0, 1, 2, 60], mirrors_by_rule(random_network, ("guided", "gradient"))
    with torch.inference_mode():
        passed = random_network.trace(inputs[chosen], stage)
        signal = isolate(passed.features[stage], channels, units)
        expected = {rule: ReverseResNet18(random_network, rule)(signal, stage, passed) for rule in mirrors}
    traced, trace = [], ResNet18.trace
    monkeypatch.setattr(ResNet18, "trace", lambda self, x, until: traced.append(len(x)) or trace(self, x, until))
    shared = reconstruct(random_network, mirrors, inputs, stage, channels, units, batch_size=2, images=chosen)
    assert traced == [2, 1] and list(shared) == ["guided", "gradient"]
    by_input = reconstruct(random_network, mirrors, inputs[chosen], stage, channels, units, batch_size=4)
    for rule, pictures in expected.items():
        for found in (shared[rule], by_input[rule]):
            assert pictures.norm() > 0 and (found - pictures).norm() < 1e-12 * pictures.norm()


def test_the_reconstructions_shown_are_the_mirrors(inspection):
    channel = chosen_channels(SETTINGS, inspection.search, "conv5_x")[0]
    result = inspect_channel(inspection, SETTINGS, "conv5_x", channel)
    one_scale = inspect_channel(inspection, replace(SETTINGS, scale="channel"), "conv5_x", channel)
    images = inspection.images[[image.index for image in result.images]]
    boxes = [image.crop for image in result.images]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(images))
        signal = isolate(trace.features["conv5_x"], channel, "peak")
    for rule, shown in result.reconstructions.items():
        with torch.inference_mode():
            pictures = ReverseResNet18(inspection.network, rule)(signal, "conv5_x", trace)
        for n, (top, left, bottom, right) in enumerate(boxes):
            cropped = pictures[n, :, top:bottom, left:right]
            assert cropped.any() and result.images[n].activation > 0
            assert_same_pictures(shown[n], cropped)
            limit = np.quantile(cropped.abs().amax(0).numpy(), 0.99)
            assert result.images[n].scale[rule] == pytest.approx(limit, rel=0.02)
        assert {image.scale[rule] for image in one_scale.images} == {shown.abs().max().item()}
    for pixels, patch, (top, left, bottom, right) in zip(images, result.patches, boxes, strict=True):
        assert torch.allclose(patch, pixels[:, top:bottom, left:right] / 255, atol=1e-6)


def test_channels_in_groups_are_what_each_is_alone(inspection, monkeypatch):
    channels = chosen_channels(SETTINGS, inspection.search, "conv5_x")[:3]
    picture = 3 * inspection.metadata.image_size**2 * 4
    monkeypatch.setattr("analysis.channels.GROUP_BYTES", 2 * 9 * 2 * picture)  # two channels, nine images, two rules
    traced, trace = [], ResNet18.trace
    monkeypatch.setattr(ResNet18, "trace", lambda self, x, until: traced.append(len(x)) or trace(self, x, until))
    remaining = inspect_channels(inspection, SETTINGS, "conv5_x", channels)
    results = [next(remaining)]
    assert traced == [len(inspection.search.top["conv5_x"].indices[channels[:2]].unique())]  # once
    results += remaining
    assert [result.channel for result in results] == channels
    for result in results:
        alone = inspect_channel(inspection, SETTINGS, "conv5_x", result.channel)
        places = [[(image.index, image.crop) for image in of.images] for of in (result, alone)]
        assert places[0] == places[1]
        for rule, tiles in result.reconstructions.items():
            assert_same_pictures(tiles, alone.reconstructions[rule])


def test_the_robust_limit_is_numpys_quantile_or_the_maximum_of_a_dot_on_rounding_errors():
    tiles = torch.randn(4, 3, 20, 20)
    tiles[1] = 0
    tiles[2] = 1e-11 * torch.rand(3, 20, 20)
    tiles[2, 1, 7, 7] = -0.02  # a pixel of 400: the quantile is a rounding error
    tiles[3, 0, 0, 0] = 1000
    quantiles = np.quantile(tiles.abs().amax(1).flatten(1).numpy(), 0.99, axis=1)
    assert robust_limit(tiles) == pytest.approx([quantiles[0], 0, 0.02, quantiles[3]], rel=1e-5)


def test_channels_by_strength_by_a_seed_and_by_number(inspection):
    def chosen(stage="conv5_x", **choice):
        return chosen_channels(replace(SETTINGS, **choice), inspection.search, stage)

    peaks = inspection.search.peaks["conv5_x"].amax(0)
    assert torch.equal(peaks[chosen(channels="strongest")], peaks.sort(descending=True).values[:9])
    first, again, other = (chosen(channels="random", seed=seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 9 and (peaks[first] > 0).all()
    assert chosen(channels=(5, 3)) == [5, 3] and chosen("conv1", channels=(500, 5)) == [5]
    assert chosen("conv1", channels=(500,)) == chosen("conv1")


def test_a_class_that_the_network_does_not_know_is_not_misclassified(small_run, tmp_path):
    other = write_folder(tmp_path / "other", classes=("disk", "cross"))
    inspection = inspect(small_run / "model.pt", SETTINGS, "cpu", source=str(other))
    for index, label in enumerate(("cross", "disk")):
        for number, name in enumerate(("disk", "ring", "stripes")):
            known = None if label == "cross" else name == label
            assert inspection.verdict(4 * index, number) == (label, name, known)


def test_images_are_spread_over_all_classes_whatever_their_order():
    numbers = spread(100, 1000)
    assert torch.equal(numbers // 10, torch.arange(100))  # classes one after the other
    assert (numbers % 10).bincount(minlength=10).min() > 0  # alternating classes
    assert spread(7, 7).tolist() == list(range(7))


@pytest.mark.parametrize("limit", [1, 5])
def test_a_limited_search_shows_the_images_it_searched(small_run, limit):
    settings, searched = Settings(limit=limit), spread(limit, 12).tolist()
    inspection = inspect(small_run / "model.pt", settings, "cpu")
    with torch.inference_mode():
        inputs = inspection.preprocess(inspection.images[searched])
        features = inspection.network.trace(inputs).features["conv5_x"].flatten(2)
        predicted = inspection.network(inputs).argmax(1)
    channels = chosen_channels(settings, inspection.search, "conv5_x")[:3]
    units = strongest_units(inspection, "conv5_x", channels, inspection.search.top["conv5_x"])
    for n, result in enumerate(inspect_channels(inspection, settings, "conv5_x", channels)):
        assert sorted(image.index for image in result.images) == searched
        for image in result.images:
            row = searched.index(image.index)
            assert image.label == inspection.label_names[inspection.labels[image.index]]
            assert image.predicted == inspection.metadata.classes[predicted[row]]
            peak, position = features[row, channels[n]].max(0)
            assert image.activation == pytest.approx(peak.item(), rel=1e-4, abs=1e-5 * features.max().item())
            if image.rank == 1:
                unit = units.images[n], units.scores[n], units.positions[n]
                assert unit == (image.index, image.activation, position)
