"""reverse_network.py: autograd and Captum are the oracles; adjoints and linearity are properties."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop

from network import STAGES, ResNet18
from reverse_network import RULES, ReverseResNet18, isolate, unpool_sum

ignore_captums_warning = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")


def images_of(size, count=2):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=generator)


def strongest_signal(trace, stage, units="map"):
    """Of the strongest channel of each image."""
    features = trace.features[stage].detach()
    return isolate(features, features.amax((2, 3)).argmax(1), units)


def relative_error(result, expected):
    assert expected.norm() > 0, "the oracle is zero everywhere"
    return ((result - expected).norm() / expected.norm()).item()


class SeededResponse(torch.nn.Module):
    """<features at a stage, signal> of each image: its gradient is the reconstruction of the signal."""

    def __init__(self, network, stage, signal):
        super().__init__()
        self.network, self.stage, self.signal = network, stage, signal

    def forward(self, images):
        return (self.network.trace(images, self.stage).features[self.stage] * self.signal).flatten(1).sum(1)


def oracle(network, rule, stage, signal, images):
    images = images.clone().requires_grad_()
    model = SeededResponse(network, stage, signal)
    if rule == "gradient":
        return torch.autograd.grad(model(images).sum(), images)[0]
    captum_rule = {"guided": GuidedBackprop, "deconvnet": Deconvolution}[rule]
    return captum_rule(model).attribute(images).detach()


@ignore_captums_warning
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "size, units",
    [((64, 64), "map"), ((71, 53), "map"), ((71, 53), "peak"),
     ((71, 53), "dense"),  # all channels at once, with values of both signs
     pytest.param((224, 224), "peak", marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
def test_the_mirror_equals_autograd_and_captum(random_network, stage, rule, units, size):
    images = images_of(size, count=1 if size == (224, 224) else 2)
    with torch.inference_mode():
        trace = random_network.trace(images, stage)
        signal = strongest_signal(trace, stage, units) if units != "dense" else torch.randn_like(trace.features[stage])
        reconstruction = ReverseResNet18(random_network, rule)(signal, stage, trace)
    assert reconstruction.shape == images.shape and reconstruction.dtype == images.dtype
    assert relative_error(reconstruction, oracle(random_network, rule, stage, signal.clone(), images)) < 1e-12


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1), (2, 5)], ids=str)
def test_unpooling_is_the_adjoint_of_pooling(size):
    """<pool(x), g> = <x, unpool(g)> with the switches of x."""
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    pooled, switches = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    signal = torch.randn_like(pooled)
    assert torch.allclose((pooled * signal).sum(), (x * unpool_sum(signal, switches, size)).sum(), rtol=1e-12)


def test_overwrite_is_max_unpool2d_and_differs_from_the_sum(random_network, monkeypatch):
    trace = random_network.trace(images_of((33, 40)), "conv2_x")

    def picture(unpool):
        return ReverseResNet18(random_network, unpool=unpool)(trace.features["conv2_x"], "conv2_x", trace)

    by_sum, overwritten = picture("sum"), picture("overwrite")
    assert relative_error(overwritten, by_sum) > 0.1
    monkeypatch.setattr("reverse_network.unpool_sum", lambda *args: F.max_unpool2d(*args[:2], 3, 2, 1, args[2]))
    assert torch.equal(overwritten, picture("sum"))


@pytest.mark.parametrize("rule", RULES)
def test_a_unit_of_conv1_is_its_filter_pasted_in_place(random_network, rule):
    trace = random_network.trace(images_of((64, 64), count=1), "conv1")
    channel, row, column, bn = 5, 10, 20, random_network.bn1
    signal = torch.zeros_like(trace.features["conv1"])
    for tensor in (signal, trace.features["conv1"]):  # its ReLU was on
        tensor[0, channel, row, column] = 2.0
    expected = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    window = expected[0, :, 2 * row - 3 : 2 * row + 4, 2 * column - 3 : 2 * column + 4]
    scale = 2.0 * bn.weight[channel] / (bn.running_var[channel] + bn.eps).sqrt()
    window.copy_(scale * random_network.conv1.weight[channel])
    assert torch.allclose(ReverseResNet18(random_network, rule)(signal, "conv1", trace), expected, rtol=1e-12)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rule", RULES)
@torch.inference_mode()
def test_homogeneous_zero_and_batched(random_network, stage, rule):
    images, reverse = images_of((33, 40)), ReverseResNet18(random_network, rule)
    trace = random_network.trace(images, stage)
    signal = strongest_signal(trace, stage)
    reconstruction = reverse(signal, stage, trace)
    assert relative_error(reverse(3.7 * signal, stage, trace), 3.7 * reconstruction) < 1e-12
    assert not reverse(torch.zeros_like(signal), stage, trace).any()
    alone = random_network.trace(images[1:], stage)  # independent of the other image of the batch
    assert relative_error(reverse(signal[1:], stage, alone), reconstruction[1:]) < 1e-12


def test_weights_are_shared_not_copied():
    network = ResNet18().eval()
    reverse = ReverseResNet18(network)
    assert {p.data_ptr() for p in reverse.parameters()} <= {p.data_ptr() for p in network.parameters()}


def test_mismatched_arguments_are_refused(random_network):
    trace = random_network.trace(images_of((32, 32)), "conv2_x")
    for stage, message in {"conv3_x": "no stage 'conv3_x' in this trace: it has conv1, conv2_x",
                           "conv1": r"\(2, 64, 16, 16\), got \(2, 64, 8, 8\)"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ReverseResNet18(random_network)(trace.features["conv2_x"], stage, trace)
    with pytest.raises(ValueError, match=r"not of images of size \(34, 32\): conv1 maps are \(16, 16\)"):
        ReverseResNet18(random_network)(trace.features["conv1"], "conv1", replace(trace, image_size=(34, 32)))
    for name in ("rule", "unpool", "branches"):
        with pytest.raises(ValueError, match=f"unknown {name} 'mean'"):
            ReverseResNet18(random_network, **{name: "mean"})


def test_training_mode_is_refused():
    """At the reconstruction, or when the trace was made; batch norms frozen in a network that trains are in order."""
    network, images = ResNet18(), torch.randn(2, 3, 32, 32)
    trained, mirror = network.trace(images, "conv1"), ReverseResNet18(network)
    trace = network.eval().trace(images, "conv1")
    network.training = True
    assert mirror(trace.features["conv1"], "conv1", trace).any()
    for of, wrong in ((mirror, trained), (mirror, trained.select(torch.tensor([1, 0]))),
                          (ReverseResNet18(ResNet18()), trace)):  # fmt: skip
        with pytest.raises(RuntimeError, match="evaluation mode"):
            of(trace.features["conv1"], "conv1", wrong)


def trace_one_branch(block, branches, x):
    """`BasicBlock.trace` with the other branch detached: no gradient flows through it."""
    through = {"residual": (x, x.detach()), "shortcut": (x.detach(), x)}[branches]
    inner = block.relu1(block.bn1(block.conv1(through[0])))
    return inner, block.relu2(block.bn2(block.conv2(inner)) + block.downsample(through[1]))


@ignore_captums_warning
@pytest.mark.parametrize("branches", ["residual", "shortcut"])
@pytest.mark.parametrize("rule", RULES)
def test_one_branch_equals_the_gradient_with_the_other_detached(random_network, rule, branches):
    images = images_of((64, 64))
    trace = random_network.trace(images)
    signal = strongest_signal(trace, "conv5_x")
    with torch.inference_mode():
        reconstruction = ReverseResNet18(random_network, rule, branches=branches)(signal, "conv5_x", trace)
    cut = copy.deepcopy(random_network)
    for block in (block for layer in cut.layers for block in layer):
        block.trace = partial(trace_one_branch, block, branches)
    assert relative_error(reconstruction, oracle(cut, rule, "conv5_x", signal, images)) < 1e-12


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rule", RULES)
def test_the_gpu_gives_the_same_reconstruction(random_network, rule):
    pictures = []
    for network in (random_network, copy.deepcopy(random_network).cuda()):
        trace = network.trace(images_of((71, 53)).to(network.fc.weight.device))
        signal = strongest_signal(trace, "conv5_x", "peak")
        pictures.append(ReverseResNet18(network, rule)(signal, "conv5_x", trace).cpu())
    assert relative_error(*pictures) < 1e-10
