"""The evidence for a class in one image: a signal at conv5_x, sent back through the mirrors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.activations import check_finite
from network import ResNet18, Trace
from reverse_network import ReverseResNet18, class_signal

STAGE = "conv5_x"  # the logits are linear in it


@dataclass(frozen=True)
class ClassEvidence:
    """What speaks for the most probable classes of an image.

    classes        numbers, in descending order of probability
    probabilities  of these classes, in 0..1
    pictures       name of the mirror -> (n, 3, S, S) on the CPU, in units of the normalised image: one per class
    """

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    pictures: dict[str, Tensor]


@torch.inference_mode()
def class_evidence(
    network: ResNet18, mirrors: Mapping[str, ReverseResNet18], inputs: Tensor, count: int = 3
) -> ClassEvidence:
    """The evidence for the `count` most probable classes of a normalised image (1, 3, S, S), by each mirror.

    The starting signal is the gradient of the logit, `class_signal`.

    Raises CheckpointError when a picture is not finite.
    """
    trace = network.trace(inputs, STAGE)
    features = trace.features[STAGE]
    probabilities = network.classify(features)[0].softmax(0).cpu()
    classes = most_probable(probabilities, count)
    signals = torch.cat([class_signal(network, features, number) for number in classes])
    pictures = project(mirrors, signals, trace)
    return ClassEvidence(tuple(classes), tuple(probabilities[classes].tolist()), pictures)


@torch.inference_mode()
def project(mirrors: Mapping[str, ReverseResNet18], signals: Tensor, trace: Trace) -> dict[str, Tensor]:
    """Signals (n, 512, h, w) at conv5_x of one image, sent through each mirror: name -> (n, 3, S, S) on the CPU.

    trace: of this image alone. Raises CheckpointError when a picture is not finite.
    """
    pictures = {
        name: torch.cat([mirror(signal[None], STAGE, trace).cpu() for signal in signals])
        for name, mirror in mirrors.items()
    }
    return {name: check_finite(each, f"reconstructions by {name}") for name, each in pictures.items()}


def most_probable(logits: Tensor, count: int) -> list[int]:
    """The `count` classes with the highest logits or probabilities (classes,), in descending order."""
    return logits.sort(descending=True, stable=True).indices[:count].tolist()
