"""The evidence for a class: Captum's attributions of a logit, and the exact sum of contributions, are the oracles."""

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency

from reverse_network import ReverseResNet18, class_signal

SIZES = [(64, 64), (71, 53)]


@pytest.fixture
def case(request, random_network):
    """Images of an odd size, their trace, and one class per image."""
    images = torch.randn(3, 3, *request.param, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, random_network.trace(images), [4, 0, 9]


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.parametrize("case", SIZES, ids=str, indirect=True)
@pytest.mark.parametrize("rule", ["gradient", "guided", "deconvnet"])
def test_it_is_captums_attribution_of_the_logit(random_network, case, rule):
    images, trace, classes = case
    with torch.no_grad():
        signal = class_signal(random_network, trace.features["conv5_x"], classes)
        picture = ReverseResNet18(random_network, rule)(signal, "conv5_x", trace)
    images = images.clone().requires_grad_()
    if rule == "gradient":
        expected = Saliency(random_network).attribute(images, target=classes, abs=False)
    else:
        method = {"guided": GuidedBackprop, "deconvnet": Deconvolution}[rule]
        expected = method(random_network).attribute(images, target=classes)
    expected = expected.detach()
    assert expected.abs().max() > 0
    assert (picture - expected).norm() / expected.norm() < 1e-12


@pytest.mark.parametrize("case", SIZES, ids=str, indirect=True)
def test_weighted_the_contributions_and_the_bias_are_the_logit(random_network, case):
    images, trace, classes = case
    features = trace.features["conv5_x"]
    with torch.no_grad():
        logits = random_network(images)[range(3), classes]
        signal = class_signal(random_network, features, classes, weighted=True)
        contributions = signal.sum((2, 3))  # (N, 512)
        total = contributions.sum(1) + random_network.fc.bias[classes]
        assert ((total - logits).abs() / logits.abs()).max() < 1e-12
        for channel in (3, 77, 500):  # a channel set to zero changes the logit by exactly its contribution
            without = features.clone()
            without[:, channel] = 0
            changed = logits - random_network.classify(without)[range(3), classes]
            assert (changed - contributions[:, channel]).abs().max() < 1e-12 * logits.abs().max()
    assert contributions.abs().amax() > 0


def test_one_class_for_all_and_invalid_classes(random_network):
    features = torch.rand(2, 512, 2, 3, dtype=torch.float64)
    both, one = class_signal(random_network, features, [4, 4]), class_signal(random_network, features, 4)
    assert torch.equal(both, one) and both.shape == features.shape
    for four in (np.int64(4), torch.tensor(4), np.array([4, 4])):
        assert torch.equal(class_signal(random_network, features, four), one)
    with pytest.raises(ValueError, match="classes must be an integer for all images, or one for each of the 2"):
        class_signal(random_network, features, 4.0)
    for classes in (10, -1, [0, 10]):
        with pytest.raises(ValueError, match="classes must be 0 to 9"):
            class_signal(random_network, features, classes)
