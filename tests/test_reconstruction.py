"""`reconstruct`: the right unit of the right channel in the right image, however the images are batched."""

import copy

import pytest
import torch

from analysis.receptive_field import receptive_field
from analysis.reconstruction import mirrors_by_rule, reconstruct
from network import ResNet18
from reverse_network import RULES, ReverseResNet18, isolate
from runtime.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stage, position", [("conv1", (9, 30)), ("conv2_x", (2, 20)), ("conv3_x", (1, 11))])
def test_all_energy_lies_inside_the_units_receptive_field(random_network, images, stage, position):
    features = random_network.trace(images, stage).features[stage]
    channels = features[(slice(None), slice(None), *position)].argmax(1)  # one that is active there, in each image
    units = torch.full((3,), position[0] * features.shape[-1] + position[1])
    pictures = reconstruct(random_network, mirrors_by_rule(random_network, RULES), images, stage, channels, units)
    field = receptive_field(random_network, stage)
    rows, columns = (slice(max(at * field.stride - field.offset, 0), at * field.stride - field.offset + field.size)
                     for at in position)  # fmt: skip
    for rule in RULES:
        energy = pictures[rule].square().sum(1)
        inside = energy[:, rows, columns]  # a view
        assert inside[0].numel() < 0.8 * 112**2 and (inside.sum((1, 2)) > 0).all(), rule
        inside.zero_()
        assert not energy.any(), rule


@pytest.mark.parametrize("units", ["map", "peak", torch.tensor([3, 0, 1, 2, 3, 1, 0])], ids=["map", "peak", "units"])
@pytest.mark.parametrize("stage", ["conv1", "conv5_x"])
def test_batches_give_what_one_pass_gives_and_an_image_is_traced_once(
    random_network, images, monkeypatch, stage, units
):
    inputs, chosen = images[:, :, :64, :64], torch.tensor([2, 0, 2, 1, 2, 0, 2])
    channels, mirrors = [5, 7, 60, 0, 1, 2, 60], mirrors_by_rule(random_network, ("guided", "gradient"))
    with torch.inference_mode():
        passed = random_network.trace(inputs[chosen], stage)
        signal = isolate(passed.features[stage], channels, units)
        expected = {rule: ReverseResNet18(random_network, rule)(signal, stage, passed) for rule in mirrors}
    traced, trace = [], ResNet18.trace
    monkeypatch.setattr(
        ResNet18, "trace", lambda self, batch, until: traced.append(len(batch)) or trace(self, batch, until)
    )
    shared = reconstruct(random_network, mirrors, inputs, stage, channels, units, batch_size=2, images=chosen)
    assert traced == [2, 1] and list(shared) == ["guided", "gradient"]
    by_input = reconstruct(random_network, mirrors, inputs[chosen], stage, channels, units, batch_size=4)
    for rule, pictures in expected.items():
        for found in (shared[rule], by_input[rule]):
            assert pictures.norm() > 0 and (found - pictures).norm() < 1e-12 * pictures.norm()


def test_pictures_that_are_not_finite_are_refused(random_network, images):
    network = copy.deepcopy(random_network)
    with torch.no_grad():
        network.conv1.weight *= 1e300
        network.bn1.running_var.fill_(1e-300)
        network.bn1.eps = 0.0
    mirrors = mirrors_by_rule(network, ["gradient"])
    with pytest.raises(CheckpointError, match="reconstructions by gradient are not finite"):
        reconstruct(network, mirrors, images[:1, :, :32, :32] * 1e-200, "conv1", 0)
