"""Relevance (LRP) against zennit, on torchvision's ResNet-18 with the same weights; what is conserved."""

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from conftest import drawn_shapes
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox
from zennit.torchvision import ResNetCanonizer

from analysis.relevance import STABILIZER, pixel_box, relevance, relevance_of_units
from dataset.preprocess import Preprocess
from network import STAGES
from reverse_network import isolate
from runtime.checkpoint import SHIPPED, load_network

BOX = pixel_box([0.4, 0.5, 0.45], [0.25, 0.2, 0.3])


@pytest.fixture(scope="module")
def images():
    """Two normalised images of 70x54 pixels, colors at the ends of the range among them."""
    pixels = torch.rand(2, 3, 70, 54, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = (color.double() for color in BOX)
    return low + (1.2 * pixels - 0.1).clamp(0, 1) * (high - low)


def relative_error(result, expected):
    assert expected.norm() > 0, "the oracle is zero everywhere"
    return ((result - expected).norm() / expected.norm()).item()


def zennit_relevance(network, images, signal, stage=None):
    """zennit's answer to a signal at a stage, or at the logits."""
    model = torchvision.models.resnet18(num_classes=10).double().eval()
    model.load_state_dict(network.state_dict())
    for bn in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        bn.running_var += bn.eps  # what zennit leaves of a batch norm is the identity only without eps
        bn.eps = 0.0
    low, high = (color.double()[None].expand_as(images) for color in BOX)
    same = dict.fromkeys(("epsilon", "stabilizer"), STABILIZER)
    composite = EpsilonGammaBox(low=low, high=high, canonizers=[ResNetCanonizer()], **same)
    if stage:  # torchvision's modules: conv1, bn1, relu, maxpool, layer1, ...
        model = torch.nn.Sequential(*list(model.children())[: 4 + STAGES.index(stage) if stage != "conv1" else 3])
    with Gradient(model, composite) as attributor:
        return attributor(images.clone(), signal)[1]


def test_the_relevance_for_a_class_equals_zennit(random_network, images):
    with torch.inference_mode():
        trace = random_network.trace(images)
        logits = random_network.classify(trace.features["conv5_x"])
        result = relevance(random_network, images, trace, [3, 8], BOX)
    signal = torch.zeros_like(logits)
    signal[[0, 1], [3, 8]] = logits[[0, 1], [3, 8]]
    assert result.shape == images.shape
    # zennit also stabilizes the logit and the pooled features
    assert relative_error(result, zennit_relevance(random_network, images, signal.clone())) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_the_relevance_for_a_unit_equals_zennit_and_inactive_units_have_none(random_network, images, stage):
    with torch.inference_mode():
        features = (trace := random_network.trace(images, stage)).features[stage]
        signal = isolate(features, features.amax((2, 3)).argmax(1), "peak")
        result = relevance_of_units(random_network, images, trace, signal, stage, BOX)
        inactive = (features == 0).double()
        assert inactive.any()
        assert not relevance_of_units(random_network, images, trace, inactive, stage, BOX).any()
    assert relative_error(result, zennit_relevance(random_network, images, signal.clone(), stage)) < 1e-10


def test_without_biases_the_relevance_sums_to_the_logit(random_network, images):
    """Only the stabilizer takes a share."""
    unbiased = copy.deepcopy(random_network)
    with torch.inference_mode():
        for name, values in unbiased.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                values.zero_()
        logits = unbiased(images)[[0, 1], [3, 8]]
        result = relevance(unbiased, images, unbiased.trace(images), [3, 8], BOX)
    assert torch.allclose(result.sum((1, 2, 3)), logits, rtol=1e-6, atol=0)


@torch.inference_mode()
def test_small_denominators_in_single_precision_on_the_shipped_network():
    """They neither overflow nor amplify rounding: of the same trace, so that no unit or switch differs."""
    network, metadata = load_network(SHIPPED)
    box = pixel_box(metadata.mean, metadata.std)
    inputs = Preprocess(112, metadata.mean, metadata.std)(torch.from_numpy(drawn_shapes("test")[0][:4].copy()))
    exact = copy.deepcopy(network).double()
    trace = exact.trace(inputs.double())
    features = {stage: values.float() for stage, values in trace.features.items()}
    rounded = replace(trace, features=features, blocks=[(inner.float(), out.float()) for inner, out in trace.blocks])
    expected = relevance(exact, inputs.double(), trace, [0, 3, 5, 8], box)
    assert relative_error(relevance(network, inputs, rounded, [0, 3, 5, 8], box), expected) < 1e-3
