"""network.py against torchvision's resnet18."""

import pytest
import torch
import torchvision
from conftest import randomise_batch_norm, torchvision_layers

from network import STAGES, ResNet18


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_state_dict_has_torchvisions_names_shapes_and_order():
    ours, theirs = ResNet18(7).state_dict(), torchvision.models.resnet18(num_classes=7).state_dict()
    assert [(name, value.shape, value.dtype) for name, value in ours.items()] == [
        (name, value.shape, value.dtype) for name, value in theirs.items()
    ]


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


@pytest.mark.parametrize("size, training", [((224, 224), False), ((97, 61), True), ((33, 33), False), ((32, 45), True)])
def test_logits_gradients_and_running_statistics_equal_torchvisions(size, training):
    network = randomise_batch_norm(ResNet18()).double().train(training)
    twin = torchvision.models.resnet18(num_classes=10).double().train(training)
    twin.load_state_dict(network.state_dict())
    images, labels = torch.randn(3, 3, *size, dtype=torch.float64), torch.tensor([1, 5, 9])
    logits, expected = network(images), twin(images)
    assert relative_difference(logits, expected) < 1e-10
    for name, value in network.state_dict().items():
        assert torch.allclose(value, twin.state_dict()[name], rtol=1e-10), name
    for values in (logits, expected):
        torch.nn.functional.cross_entropy(values, labels).backward()
    for (name, a), b in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert relative_difference(a.grad, b.grad) < 1e-8, name


@pytest.mark.parametrize("size", [(224, 224), (75, 50)])
def test_a_trace_holds_what_torchvision_computes(random_network, size):
    """After all ReLUs, so nothing in it has been overwritten."""
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    blocks = [f"layer{n // 2 + 1}.{n % 2}" for n in range(8)]
    nodes = ["relu", *(f"{block}.{relu}" for block in blocks for relu in ("relu", "relu_1"))]
    with torch.inference_mode():
        trace = random_network.trace(images)
        assert torch.equal(random_network.classify(trace.features["conv5_x"]), random_network(images))
        expected = torchvision_layers(random_network, nodes)(images)
    for node, tensor in zip(nodes, [trace.features["conv1"], *sum(trace.blocks, ())], strict=True):
        assert tensor.shape == expected[node].shape and relative_difference(tensor, expected[node]) < 1e-12, node
    for depth, stage in enumerate(STAGES[1:]):
        assert trace.features[stage] is trace.blocks[2 * depth + 1][1]


@pytest.mark.parametrize("depth, until", list(enumerate(STAGES)))
def test_trace_stops_at_the_stage_asked_for(random_network, depth, until):
    trace = random_network.trace(torch.randn(1, 3, 32, 32, dtype=torch.float64), until)
    assert tuple(trace.features) == STAGES[: depth + 1] and len(trace.blocks) == 2 * depth
    assert (trace.switches is None) == (depth == 0)
    with pytest.raises(ValueError, match="conv6_x.*conv1, conv2_x"):
        random_network.trace(torch.zeros(1, 3, 32, 32, dtype=torch.float64), "conv6_x")


def test_every_relu_is_a_module_of_its_own_and_used_once():
    network, calls = ResNet18().eval(), []
    relus = [module for module in network.modules() if isinstance(module, torch.nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, *_: calls.append(module))
    network(torch.zeros(1, 3, 32, 32))
    assert len(relus) == len(calls) == len(set(calls)) == 17 and not any(relu.inplace for relu in relus)


@pytest.mark.parametrize(
    "program", [lambda network, _: torch.fx.symbolic_trace(network),
                lambda network, images: torch.export.export(network, (images,)).module()], ids=["fx", "export"],
)  # fmt: skip
def test_forward_can_be_traced_and_exported(random_network, program):
    images = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    assert relative_difference(program(random_network, images)(images), random_network(images)) < 1e-12
