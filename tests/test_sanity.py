"""Random weights, rank correlation and Sobel edges, against their definitions."""

import numpy as np
import pytest
import torch

from analysis.sanity import MODULES, randomized_networks, rank_correlation, sobel_edges
from network import STAGES, ResNet18


def ranks(values):
    """By definition: how many are smaller, and half of those that are equal."""
    return [
        (sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2) for value in values
    ]


class TestRankCorrelation:
    def test_by_definition(self):
        random = np.random.RandomState(0)
        a, b = random.randint(0, 9, (2, 5, 8))  # with many equals
        expected = np.corrcoef(ranks(a.flatten()), ranks(b.flatten()))[0, 1]
        assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)

    def test_it_sees_the_order_alone(self):
        a = np.random.RandomState(0).rand(6, 7)
        assert rank_correlation(a, np.exp(5 * a)) == pytest.approx(1)
        assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
        assert rank_correlation(a, np.zeros_like(a)) is None


def test_edges_are_where_grey_changes():
    images = torch.zeros(1, 3, 8, 10)
    images[..., 5:] = 1
    found = sobel_edges(images)
    assert found.shape == images.shape and torch.equal(found[0, 0], found[0, 2])
    assert set(found[0, 0].amax(0).nonzero().flatten().tolist()) == {4, 5}
    assert torch.allclose(found[0, 0, :, 4], torch.ones(8))  # a step of 1
    assert not sobel_edges(torch.full((1, 3, 8, 8), 0.7)).abs().gt(1e-6).any()


def test_weights_become_random_from_the_top_down():
    torch.manual_seed(1)
    network = ResNet18(4).eval()
    for value in network.parameters():
        torch.nn.init.normal_(value)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = []
    for count, (name, found) in enumerate(randomized_networks(network, "conv4_x")):
        names.append(name)
        changed = {
            name.split(".")[0] for name, value in found.state_dict().items() if not torch.equal(value, before[name])
        }
        random = [part for stage in ("conv4_x", "conv3_x", "conv2_x", "conv1")[:count] for part in MODULES[stage]]
        assert changed == set(random) and not found.training
    assert names == ["trained", "conv4_x random", "+ conv3_x", "+ conv2_x", "+ conv1"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_random_weights_are_always_the_same():
    torch.manual_seed(3)
    network = ResNet18(4).eval()
    for name in ("conv1.weight", "layer2.0.conv1.weight"):
        weights = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            *_, (_, found) = randomized_networks(network, "conv3_x")
            weights.append(found.get_parameter(name))
        assert torch.equal(*weights) and not torch.equal(weights[0], network.get_parameter(name))


def test_stages_are_those_of_the_network():
    assert MODULES.keys() == set(STAGES)
    names = {name for parts in MODULES.values() for name in parts}
    assert names == {name for name, module in ResNet18().named_children() if list(module.parameters())} - {"fc"}
