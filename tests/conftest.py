"""Networks that would show a mirror's mistakes: random batch-norm statistics, negative gammas, float64."""

import pytest
import torch

from network import ResNet18


def randomise_batch_norm(network, seed=0):
    """Statistics, scales (about half of them negative) and shifts as no initialisation would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            shape = module.weight.shape
            with torch.no_grad():
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(shape, generator=generator) * 2 + 0.1)
                module.weight.copy_(torch.randn(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.5)
    return network


@pytest.fixture(scope="session")
def random_network():
    """A ResNet-18 in float64 and evaluation mode whose batch norms are far from the identity."""
    torch.manual_seed(0)
    return randomise_batch_norm(ResNet18(10)).double().eval()
