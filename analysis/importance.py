"""How important each pixel of an image is for a class of the network: one entry of METHODS per method.

A method takes an `ImportanceBatch` and returns maps (N, H, W), higher where more important; some have both signs. What
several methods need, the trace, the mirrors' pictures and other methods' maps, is computed at the first use.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.activations import check_finite
from analysis.relevance import Box, relevance
from network import BLOCKS_PER_STAGE, STAGES, ResNet18, Trace
from reverse_network import ReverseResNet18, class_signal

NOISY_IMAGES = 20
NOISE = 0.15  # standard deviation, relative to the range of the image's values
STEPS = 20  # from the mean color to the image
BLUR_SHARE = 17 / 224  # of the image's side, averaged over before a sharp map is added to a coarse one


@dataclass
class ImportanceBatch:
    """Images and the class of each that importance maps explain."""

    network: ResNet18  # in evaluation mode
    images: Tensor  # (N, 3, H, W) in 0..1
    inputs: Tensor  # (N, 3, H, W): the same, normalised
    seeds: Tensor  # (N,) int64, of random maps
    box: Box  # lowest and highest values of `inputs`, as analysis.relevance.pixel_box returns them
    unpool: str = "sum"  # of the mirrors, one of reverse_network.UNPOOLINGS
    classes: Tensor | None = None  # (N,) int64; by default those that the network predicts

    def __post_init__(self):
        self._maps: dict[str, Tensor] = {}
        self._pictures: dict[str, Tensor] = {}
        if self.classes is None:
            self.classes = self.network.classify(self.features).argmax(1)

    @cached_property
    def trace(self) -> Trace:
        """Of the inputs, through all stages."""
        return self.network.trace(self.inputs)

    @property
    def features(self) -> Tensor:
        """(N, 512, h, w) of conv5_x."""
        return self.trace.features[STAGES[-1]]

    @cached_property
    def evidence(self) -> Tensor:
        """(N, h, w): what each position of conv5_x adds to the class's logit."""
        return class_signal(self.network, self.features, self.classes, weighted=True).sum(1)

    def map(self, name: str) -> Tensor:
        """(N, H, W) by one of METHODS; computed once."""
        if name not in self._maps:
            self._maps[name] = METHODS[name](self)
        return self._maps[name]

    def picture(self, rule: str) -> Tensor:
        """(N, 3, H, W): the class's logit, sent back to the image by one of reverse_network.RULES; computed once.

        Raises CheckpointError when it is not finite.
        """
        if rule not in self._pictures:
            mirror, signal = ReverseResNet18(self.network, rule, self.unpool), self.gradient(STAGES[-1])
            self._pictures[rule] = check_finite(mirror(signal, STAGES[-1], self.trace), f"reconstructions by {rule}")
        return self._pictures[rule]

    def gradient(self, stage: str) -> Tensor:
        """(N, C, h, w): of the class's logit at the features of a stage above the pooling."""
        signal = class_signal(self.network, self.features, self.classes)
        blocks, first = ReverseResNet18(self.network, "gradient").blocks, STAGES.index(stage) * BLOCKS_PER_STAGE
        for index in reversed(range(first, len(blocks))):
            size = self.trace.blocks[index - 1][1].shape[-2:]  # of the block's input
            signal = blocks[index](signal, *self.trace.blocks[index], size)
        return signal

    def gradient_of(self, inputs: Tensor) -> Tensor:
        """(N, 3, H, W): of the logit of the same classes, at other inputs."""
        return replace(self, inputs=inputs).picture("gradient")

    def upscale(self, maps: Tensor) -> Tensor:
        """(N, h, w) -> (N, H, W): bilinear to the image."""
        return F.interpolate(maps[:, None], self.inputs.shape[-2:], mode="bilinear")[:, 0]


def layer_cam(batch: ImportanceBatch, stage: str) -> Tensor:
    """Positive gradient x activation, summed over a stage's channels (Jiang et al. 2021, equations 4 and 5)."""
    return batch.upscale((batch.gradient(stage).clamp(min=0) * batch.trace.features[stage]).sum(1))


def smooth_grad(batch: ImportanceBatch) -> Tensor:
    """The mean `saliency` of the gradient over NOISY_IMAGES copies with Gaussian noise (Smilkov et al. 2017).

    arXiv:1706.03825. All images get the same noise, in proportion to the range of their values.
    """
    inputs, generator = batch.inputs, torch.Generator().manual_seed(0)
    spread = NOISE * (inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(inputs[:, 0])
    for _ in range(NOISY_IMAGES):
        noise = torch.randn(inputs.shape[1:], dtype=inputs.dtype, generator=generator).to(inputs.device)
        total += saliency(batch.gradient_of(inputs + spread * noise))
    return total / NOISY_IMAGES


def integrated_gradients(batch: ImportanceBatch) -> Tensor:
    """The image times the mean gradient on the way to it from the mean color, which is zero for the network.

    Sundararajan et al. 2017, arXiv:1703.01365, by the midpoint rule. Sums to the logit minus that of the mean color, up
    to the error of the steps.
    """
    total = torch.zeros_like(batch.inputs)
    for step in range(STEPS):
        total += batch.gradient_of(batch.inputs * ((step + 0.5) / STEPS))
    return (batch.inputs * total / STEPS).sum(1)


def cam_plus(batch: ImportanceBatch, sharp: str) -> Tensor:
    """The class activation map, which says where, plus another method's map, which says which parts of it.

    Each is divided by its largest absolute value. `sharp` is averaged over a square first: of 17 pixels at 224, in
    proportion at other sizes.
    """
    coarse, sharp = batch.map("class activation map"), batch.map(sharp)
    radius = round(BLUR_SHARE * min(sharp.shape[-2:]) / 2 - 0.5)
    sharp = F.avg_pool2d(sharp[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]
    return sum(maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-30) for maps in (coarse, sharp))


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


METHODS: dict[str, Callable[[ImportanceBatch], Tensor]] = {
    # Zhou et al. 2016, arXiv:1512.04150, equation 2; on this network also Grad-CAM, before its ReLU
    "class activation map": lambda batch: batch.upscale(batch.evidence),
    "LayerCAM conv3_x": partial(layer_cam, stage="conv3_x"),
    "LayerCAM conv4_x": partial(layer_cam, stage="conv4_x"),
    # Guided Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): the CAM's positive part x guided
    "guided x CAM": lambda batch: batch.upscale(batch.evidence.clamp(min=0)) * batch.map("guided"),
    # signed sums over the colors; of the gradient: Shrikumar et al. 2016, arXiv:1605.01713, section 2
    "guided x input": lambda batch: (batch.picture("guided") * batch.inputs).sum(1),
    "gradient x input": lambda batch: (batch.picture("gradient") * batch.inputs).sum(1),
    "guided": lambda batch: saliency(batch.picture("guided")),  # Springenberg et al. 2014, arXiv:1412.6806
    "gradient": lambda batch: saliency(batch.picture("gradient")),  # Simonyan et al. 2013, arXiv:1312.6034, section 3
    "deconvnet": lambda batch: saliency(batch.picture("deconvnet")),  # Zeiler & Fergus 2014, arXiv:1311.2901
    "SmoothGrad": smooth_grad,
    "integrated gradients": integrated_gradients,
    # Montavon et al. 2019; the signed sum over the colors
    "relevance": lambda batch: relevance(batch.network, batch.inputs, batch.trace, batch.classes, batch.box).sum(1),
    "relevance + CAM": partial(cam_plus, sharp="relevance"),
    "CAM + guided": partial(cam_plus, sharp="guided"),
    "Sobel edges": lambda batch: saliency(sobel_edges(batch.images)),  # does not use the network
    "random": lambda batch: random_maps(batch.seeds, batch.inputs.shape[-2:]),  # does not use the image either
}
