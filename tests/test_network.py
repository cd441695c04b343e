"""network.py against torchvision's resnet18."""

import pytest
import torch
import torchvision
from conftest import randomise_batch_norm
from torchvision.models.feature_extraction import create_feature_extractor

from network import STAGES, ResNet18


def torchvision_twin(network):
    twin = torchvision.models.resnet18(num_classes=network.fc.out_features)
    twin.load_state_dict(network.state_dict())
    return twin.double().train(network.training)


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_state_dict_has_torchvisions_names_shapes_and_order():
    ours, theirs = ResNet18(7).state_dict(), torchvision.models.resnet18(num_classes=7).state_dict()
    assert [(name, value.shape, value.dtype) for name, value in ours.items()] == [
        (name, value.shape, value.dtype) for name, value in theirs.items()
    ]
    assert len(ours) == 122


def test_initialisation_is_torchvisions():
    torch.manual_seed(3)
    ours = ResNet18()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10)
    # torchvision builds a block's shortcut before its convolutions: the weights agree in distribution, not in order.
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        if a.is_floating_point() and a.numel() > 1000:
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.05), name
            assert a.mean().abs().item() < 4 * b.std().item() / a.numel() ** 0.5, name
        elif name != "fc.bias":
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "size, training", [((224, 224), False), ((97, 61), False), ((97, 61), True), ((33, 33), False), ((32, 45), True)]
)
def test_logits_equal_torchvisions(size, training):
    network = randomise_batch_norm(ResNet18()).double().train(training)
    twin = torchvision_twin(network)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert relative_difference(network(images), twin(images)) < 1e-10
    for name, value in network.state_dict().items():  # the running statistics too
        assert torch.allclose(value, twin.state_dict()[name], rtol=1e-10), name


def test_gradients_equal_torchvisions():
    network = randomise_batch_norm(ResNet18()).double().train()
    twin = torchvision_twin(network)
    images, labels = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 5, 9])
    for model in (network, twin):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    for (name, a), b in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert relative_difference(a.grad, b.grad) < 1e-8, name


@pytest.mark.parametrize("size", [(224, 224), (75, 50)])
def test_trace_holds_what_the_forward_pass_computes(random_network, size):
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        trace = random_network.trace(images)
        assert torch.equal(random_network.classify(trace.features["conv5_x"]), random_network(images))
    nodes = {"relu": "conv1"} | {f"layer{n - 1}": f"conv{n}_x" for n in range(2, 6)}
    twin = create_feature_extractor(torchvision_twin(random_network), nodes)
    with torch.inference_mode():
        for stage, expected in twin(images).items():
            assert relative_difference(trace.features[stage], expected) < 1e-12
    if size == (224, 224):
        shapes = [tuple(trace.features[stage].shape[1:]) for stage in STAGES]
        assert shapes == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_a_trace_is_not_overwritten(random_network):
    images = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    trace = random_network.trace(images)
    again = random_network.trace(images)
    tensors = [*trace.features.values(), *(tensor for block in trace.blocks for tensor in block)]
    assert all((tensor >= 0).all() and (tensor > 0).any() for tensor in tensors)
    for stage in STAGES:
        assert torch.equal(trace.features[stage], again.features[stage])


@pytest.mark.parametrize("depth, until", list(enumerate(STAGES)))
def test_trace_stops_at_the_stage_asked_for(random_network, depth, until):
    trace = random_network.trace(torch.randn(1, 3, 32, 32, dtype=torch.float64), until)
    assert tuple(trace.features) == STAGES[: depth + 1]
    assert len(trace.blocks) == 2 * depth
    assert (trace.switches is None) == (depth == 0)


def test_trace_refuses_an_unknown_stage(random_network):
    with pytest.raises(ValueError, match="conv6_x.*conv1, conv2_x"):
        random_network.trace(torch.zeros(1, 3, 32, 32, dtype=torch.float64), "conv6_x")


def test_every_relu_is_a_module_of_its_own_and_used_once():
    network = ResNet18().eval()
    calls = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    network(torch.zeros(1, 3, 32, 32))
    assert len(calls) == 17 and set(calls.values()) == {1}


@pytest.mark.parametrize(
    "program",
    [lambda network, _: torch.fx.symbolic_trace(network),
     lambda network, images: torch.export.export(network, (images,)).module()],
    ids=["fx", "export"],
)  # fmt: skip
def test_forward_can_be_traced_and_exported(program):
    network = randomise_batch_norm(ResNet18()).double().eval()
    images = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    assert relative_difference(program(network, images)(images), network(images)) < 1e-12
