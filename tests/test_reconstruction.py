"""`reconstruct`: the right unit of the right channel in the right image, however the images are batched."""

import copy

import pytest
import torch

from analysis.reconstruction import mirrors_by_rule, reconstruct
from network import STAGES, ResNet18
from reverse_network import RULES, ReverseResNet18, isolate
from runtime.checkpoint import CheckpointError

# (kernel, stride, padding) of every layer on the way from the image to a unit of the stage
STEM, POOL, CONV, STRIDED = (7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 2, 1)
LAYERS = {
    "conv1": [STEM],
    "conv2_x": [STEM, POOL, *[CONV] * 4],
    "conv3_x": [STEM, POOL, *[CONV] * 4, STRIDED, *[CONV] * 3],
}


def receptive_field(stage, position):
    """First and last pixel, in one dimension, that a unit at this position sees (may lie outside the image)."""
    first = last = position
    for kernel, stride, padding in reversed(LAYERS[stage]):
        first, last = first * stride - padding, last * stride - padding + kernel - 1
    return first, last


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stage, units", [("conv1", (9, 30)), ("conv2_x", (2, 20)), ("conv3_x", (1, 11))])
def test_all_energy_lies_inside_the_units_receptive_field(random_network, images, stage, units):
    width = random_network.trace(images[:1], stage).features[stage].shape[-1]
    row, column = units
    mirrors = mirrors_by_rule(random_network, RULES)
    features = random_network.trace(images, stage).features[stage]
    channels = features[:, :, row, column].argmax(1)  # one that is active there, in each image
    positions = torch.full((3,), row * width + column)
    pictures = reconstruct(random_network, mirrors, images, stage, channels.tolist(), positions)
    rows, columns = ([max(end, 0) for end in receptive_field(stage, place)] for place in units)
    assert (rows[1] - rows[0]) * (columns[1] - columns[0]) < 0.8 * 112**2  # there is something outside
    for rule in RULES:
        energy = pictures[rule].square().sum(1)
        inside = energy[:, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]  # a view
        assert (inside.sum((1, 2)) > 0).all(), rule
        inside.zero_()
        assert not energy.any(), rule


@pytest.mark.parametrize("units", ["map", "peak", "positions"])
@pytest.mark.parametrize("stage", ["conv1", STAGES[-1]])
def test_batches_give_what_one_pass_gives(random_network, images, stage, units):
    inputs = torch.cat([images, images.flip(2)])[:, :, :64, :64]
    channels = [5, 7, 60, 0, 1, 2]
    if units == "positions":
        units = torch.tensor([3, 0, 1, 2, 3, 1])
    mirrors = mirrors_by_rule(random_network, ("guided", "gradient"))
    pictures = reconstruct(random_network, mirrors, inputs, stage, channels, units, batch_size=4)
    assert list(pictures) == ["guided", "gradient"]
    with torch.inference_mode():
        trace = random_network.trace(inputs, stage)
        signal = isolate(trace.features[stage], channels, units)
        for rule, picture in pictures.items():
            expected = ReverseResNet18(random_network, rule)(signal, stage, trace)
            assert expected.norm() > 0 and (picture - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("stage, units", [("conv1", "positions"), ("conv5_x", "positions"), ("conv5_x", "map")])
def test_an_image_is_traced_once_for_all_its_pictures(random_network, images, monkeypatch, stage, units):
    inputs, chosen = images[:, :, :64, :64], torch.tensor([2, 0, 2, 1, 2, 0, 2])
    channels = [5, 7, 60, 0, 1, 2, 60]
    if units == "positions":
        units = torch.tensor([3, 0, 1, 2, 3, 1, 0])
    mirrors = mirrors_by_rule(random_network, ("deconvnet", "guided"))
    expected = reconstruct(random_network, mirrors, inputs[chosen], stage, channels, units)
    traced = []
    trace = ResNet18.trace
    monkeypatch.setattr(
        ResNet18, "trace", lambda self, batch, until: traced.append(len(batch)) or trace(self, batch, until)
    )
    pictures = reconstruct(random_network, mirrors, inputs, stage, channels, units, batch_size=2, images=chosen)
    assert traced == [2, 1]
    for rule, picture in pictures.items():
        assert (expected[rule].flatten(1).norm(dim=1) > 0).any()
        assert (picture - expected[rule]).norm() < 1e-12 * expected[rule].norm()


def test_pictures_that_are_not_finite_are_refused(random_network, images):
    network = copy.deepcopy(random_network)
    with torch.no_grad():
        network.conv1.weight *= 1e300
        network.bn1.running_var.fill_(1e-300)
        network.bn1.eps = 0.0
    mirrors = mirrors_by_rule(network, ["gradient"])
    with pytest.raises(CheckpointError, match="reconstructions by gradient are not finite"):
        reconstruct(network, mirrors, images[:1, :, :32, :32] * 1e-200, "conv1", 0)
