"""The atlas's numbers against numpy and brute force over all images and units of a small network."""

import math

import numpy as np
import pytest
import torch

from analysis.inspection import inspect
from analysis.settings import Settings
from figures import atlas
from network import CHANNELS, STAGES


@pytest.fixture
def peaks():
    """Peaks of 6 channels in 41 images, many of them equal or zero; channel 2 is dead."""
    values = torch.randint(-6, 12, (41, 6), generator=torch.Generator().manual_seed(0)).clamp(min=0) / 8
    values[:, 2] = 0
    return values.double()


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(limit=7), "cpu", stages=STAGES)


@pytest.fixture(scope="module")
def features(inspection):
    """stage -> features of the searched images, of the units that are searched."""
    with torch.inference_mode():
        maps = inspection.network.trace(inspection.inputs(inspection.images[inspection.searched])).features
    return maps | {"conv1": maps["conv1"][:, :, 2:15, 2:15]}  # at 32x32, deeper units all see the padding


def test_quantiles_follow_the_definition_and_numpy(peaks):
    for channel in (0, 1, 3, 4, 5):
        values = peaks[:, channel].tolist()
        exciting = sorted(value for value in values if value > 0)
        images = atlas.quantile_images(peaks[:, channel], range(1, 101))
        for percent, image in zip(range(1, 101), images, strict=True):
            reached = (value for n, value in enumerate(exciting, 1) if 100 * n >= percent * len(exciting))
            assert values[image] == next(reached)
        expected = np.quantile(exciting, (0.25, 0.5, 0.75, 1), method="inverted_cdf")  # which binary numbers hold
        assert [values[images[percent - 1]] for percent in (25, 50, 75, 100)] == expected.tolist()
    assert atlas.quantile_images(peaks[:, 2]) == []
    assert atlas.quantile_images(torch.tensor([0, 3.0, 0, 1, 2]), (99, 67, 66, 34, 33, 1)) == [1, 1, 4, 4, 3, 3]


def test_selectivity_compares_the_best_class_with_the_mean_of_the_others(peaks):
    means = peaks[:4] + 0.125 * (torch.arange(6) != 2)
    means[2] = torch.nan  # no image has this class
    selectivity = atlas.class_selectivity(means)
    for channel in range(6):
        best, *others = sorted((means[number, channel].item() for number in (0, 1, 3)), reverse=True)
        rest = sum(others) / 2
        assert selectivity[channel].item() == pytest.approx((best - rest) / (best + rest) if best else 0)
    ends = torch.tensor([[0.0, 2, 0], [3, 2, 0], [0, 2, 0]])
    assert atlas.class_selectivity(ends).tolist() == [1, 0, 0]
    assert atlas.class_selectivity(ends[:1]) is None
    assert atlas.class_selectivity(torch.tensor([[1.0], [torch.nan]])) is None


def test_neighbours_are_the_highest_correlations(peaks):
    alive = [0, 1, 3, 4, 5]
    nearest = atlas.nearest_channels(peaks, alive, 3)
    correlations = np.corrcoef(peaks.numpy()[:, alive].T)
    for row, channel in enumerate(alive):
        others = sorted((value, alive[n]) for n, value in enumerate(correlations[row]) if n != row)[::-1]
        assert [neighbour["channel"] for neighbour in nearest[channel]] == [other for _, other in others[:3]]
        assert [neighbour["correlation"] for neighbour in nearest[channel]] == pytest.approx([r for r, _ in others[:3]])
    assert all(len(neighbours) == 4 for neighbours in atlas.nearest_channels(peaks, alive, 9).values())
    assert atlas.nearest_channels(peaks, [3]) == {3: []}


@pytest.mark.parametrize("stage", STAGES)
def test_profiles_and_strips_are_those_of_brute_force(inspection, features, stage):
    profile = atlas.profile_stage(inspection, stage)
    peaks = inspection.search.peaks[stage].double()
    assert torch.allclose(peaks, features[stage].amax((2, 3)).double(), rtol=1e-4, atol=1e-5)
    alive = (peaks.amax(0) > 0).nonzero().flatten().tolist()
    assert list(profile["channels"]) == alive
    assert sorted([*alive, *profile["dead"]]) == list(range(CHANNELS[stage]))
    assert sorted(sum((group["channels"] for group in profile["groups"]), [])) == alive
    labels = inspection.labels[inspection.searched]
    assert len(labels) == 7
    for channel, numbers in profile["channels"].items():
        values = peaks[:, channel]
        assert (numbers["stage"], numbers["channel"]) == (stage, channel)
        assert numbers["peak"] == values.max()
        assert numbers["exciting"] == sum(numbers["density"]) == (values > 0).sum()
        assert numbers["density"][-1] >= 1 and len(numbers["density"]) == 24
        means = [values[labels == number].mean().item() for number in range(3)]
        assert numbers["class_means"] == pytest.approx(means, rel=1e-12)
        assert means[numbers["best_class"]] == pytest.approx(max(means), rel=1e-12)
        (group,) = [group for group in profile["groups"] if channel in group["channels"]]
        assert numbers["representative"] == group["representative"] in group["channels"]
        weights = inspection.network.fc.weight[:, channel].tolist() if stage == "conv5_x" else None
        assert numbers["class_weights"] == (pytest.approx(weights) if weights else None)
    for channel in alive[::23]:
        check_strip(inspection, stage, channel, features[stage][:, channel])


def check_strip(inspection, stage, channel, maps):
    """A channel's strip against its maps of the searched images."""
    exciting = sorted(value for value in inspection.search.peaks[stage][:, channel].tolist() if value > 0)
    images, patches = atlas.strip(inspection, stage, channel, 12)
    assert [image["percent"] for image in images] == list(atlas.STRIP_PERCENTS)
    for image, patch in zip(images, patches, strict=True):
        expected = exciting[math.ceil(image["percent"] * len(exciting) / 100) - 1]
        assert image["activation"] == expected
        row = inspection.searched.tolist().index(image["index"])
        first = 2 if stage == "conv1" else 0
        unit = maps[row, image["row"] - first, image["column"] - first].item()
        assert unit == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert image["label"] == inspection.label_names[inspection.labels[image["index"]]]
        assert image["predicted"] == inspection.metadata.classes[inspection.search.logits[row].argmax()]
        assert image["correct"] == (image["label"] == image["predicted"])
        top, left, bottom, right = image["crop"]
        assert bottom - top == right - left == 12
        pixels = inspection.images[image["index"], :, top:bottom, left:right] / 255
        assert torch.allclose(patch, pixels, atol=1e-6)


def test_a_strip_shows_what_its_units_see(inspection):
    """Of conv1: the pixels that the gradient reaches are in the middle of the patch, or as near as the image allows."""
    images, _ = atlas.strip(inspection, "conv1", list(atlas.profile_stage(inspection, "conv1")["channels"])[0], 11)
    for image in images:
        pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
        inspection.network.conv1(pixels)[0, :, image["row"], image["column"]].abs().sum().backward()
        top, left, bottom, right = image["crop"]
        for axis, (start, end) in enumerate(((top, bottom), (left, right))):
            seen = pixels.grad[0].abs().sum(0).sum(1 - axis).nonzero().flatten().tolist()
            assert start <= seen[0] and seen[-1] < end
            assert start in (0, 21) or seen[0] - start == end - 1 - seen[-1] == 2
