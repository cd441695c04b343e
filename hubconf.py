"""PyTorch Hub entry point: torch.hub.load("OWNER/REPO", "resnet18_cifar10"), or source="local" with a clone's path."""

from pathlib import Path

import torch

from network import ResNet18

dependencies = ["torch"]


def resnet18_cifar10(pretrained: bool = True) -> ResNet18:
    """ResNet-18 for CIFAR-10 at 224x224, in evaluation mode, in float32 on the CPU.

    pretrained: the weights in checkpoints/resnet18-cifar10.pt (no download); otherwise newly initialised ones.
    Attributes of the network:

    classes     names of the 10 classes, in the order of the logits
    mean, std   per channel (R, G, B), in 0..1, of the training images: normalise the input with them
    image_size  side of the square input in pixels

    The state dict has torchvision's names, so it loads into torchvision's and timm's `resnet18(num_classes=10)`.
    """
    path = Path(__file__).parent / "checkpoints" / "resnet18-cifar10.pt"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    network = ResNet18(len(checkpoint["classes"]))
    if pretrained:
        network.load_state_dict(checkpoint["model"])
    for name in ("classes", "mean", "std"):
        setattr(network, name, tuple(checkpoint[name]))
    network.image_size = checkpoint["image_size"]
    return network.eval()
