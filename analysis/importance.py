"""How important each pixel of an image is for a class of the network: one function per method, all in METHODS.

A method takes an `ImportanceBatch` and returns maps (N, H, W), higher where more important. What several methods need,
the trace and the mirrors' pictures, is computed at the first use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.activations import check_finite
from network import STAGES, ResNet18, Trace
from reverse_network import ReverseResNet18, class_signal

STAGE = STAGES[-1]  # the logits are linear in it


@dataclass
class ImportanceBatch:
    """Images and the class of each that importance maps explain.

    network  in evaluation mode
    images   (N, 3, H, W) in 0..1
    inputs   (N, 3, H, W): the same, normalised
    seeds    (N,) int64 of random maps
    unpool   of the mirrors, one of reverse_network.UNPOOLINGS
    classes  (N,) int64; by default those that the network predicts
    """

    network: ResNet18
    images: Tensor
    inputs: Tensor
    seeds: Tensor
    unpool: str = "sum"
    classes: Tensor | None = None

    def __post_init__(self):
        self._pictures: dict[str, Tensor] = {}
        if self.classes is None:
            self.classes = self.network.classify(self.features).argmax(1)

    @cached_property
    def trace(self) -> Trace:
        """Of the inputs, through all stages."""
        return self.network.trace(self.inputs, STAGE)

    @property
    def features(self) -> Tensor:
        """(N, 512, h, w) of conv5_x."""
        return self.trace.features[STAGE]

    def picture(self, rule: str) -> Tensor:
        """(N, 3, H, W): the class's logit, sent back to the image by one of reverse_network.RULES; computed once.

        Raises CheckpointError when it is not finite.
        """
        if rule not in self._pictures:
            mirror, signal = ReverseResNet18(self.network, rule, self.unpool), self._signal
            self._pictures[rule] = check_finite(mirror(signal, STAGE, self.trace), f"reconstructions by {rule}")
        return self._pictures[rule]

    @cached_property
    def _signal(self) -> Tensor:
        return class_signal(self.network, self.features, self.classes)


METHODS: dict[str, Callable[[ImportanceBatch], Tensor]] = {}  # name -> maps (N, H, W) of a batch


def method(name: str) -> Callable[[Callable], Callable]:
    """A decorator that registers a function of an `ImportanceBatch` under this name."""

    def add(compute: Callable[[ImportanceBatch], Tensor]) -> Callable[[ImportanceBatch], Tensor]:
        METHODS[name] = compute
        return compute

    return add


@method("class activation map")
def class_activation_map(batch: ImportanceBatch) -> Tensor:
    """Zhou et al. 2016, arXiv:1512.04150, equation 2; bilinear to the image."""
    evidence = class_signal(batch.network, batch.features, batch.classes, weighted=True).sum(1, keepdim=True)
    return F.interpolate(evidence, batch.inputs.shape[-2:], mode="bilinear")[:, 0]


@method("guided x input")
def guided_times_input(batch: ImportanceBatch) -> Tensor:
    """The signed sum over the colors."""
    return (batch.picture("guided") * batch.inputs).sum(1)


@method("gradient x input")
def gradient_times_input(batch: ImportanceBatch) -> Tensor:
    """Shrikumar et al. 2016, arXiv:1605.01713, section 2: the signed sum over the colors."""
    return (batch.picture("gradient") * batch.inputs).sum(1)


@method("guided")
def guided(batch: ImportanceBatch) -> Tensor:
    """Springenberg et al. 2014, arXiv:1412.6806."""
    return saliency(batch.picture("guided"))


@method("gradient")
def gradient(batch: ImportanceBatch) -> Tensor:
    """Simonyan et al. 2013, arXiv:1312.6034, section 3."""
    return saliency(batch.picture("gradient"))


@method("deconvnet")
def deconvnet(batch: ImportanceBatch) -> Tensor:
    """Zeiler & Fergus 2014, arXiv:1311.2901."""
    return saliency(batch.picture("deconvnet"))


@method("Sobel edges")
def edges(batch: ImportanceBatch) -> Tensor:
    """A baseline that does not use the network."""
    return saliency(sobel_edges(batch.images))


@method("random")
def noise(batch: ImportanceBatch) -> Tensor:
    """A baseline that does not use the image."""
    return random_maps(batch.seeds, batch.inputs.shape[-2:])


def saliency(pictures: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, H, W): the sum of absolute values over the colors."""
    return pictures.abs().sum(1)


def sobel_edges(images: Tensor) -> Tensor:
    """Sobel edges of the grey image: (N, 3, H, W) in 0..1 -> the same shape, three equal channels."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None].to(images)
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, kernels).norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def random_maps(seeds: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) in 0..1: noise that depends on each seed, (N,) int64, alone."""
    return torch.stack([torch.rand(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()])
