"""How important each pixel is for a class, by the methods people know besides the mirror's own pictures.

Every method takes a network, normalised images (N, 3, H, W), their trace and one class per image. It returns (N, H, W),
of both signs unless stated. Gradients come from the mirror, which equals autograd.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.importance import saliency
from analysis.relevance import Box, relevance
from network import BLOCKS_PER_STAGE, STAGES, ResNet18, Trace
from reverse_network import ReverseResNet18, class_signal

STAGE = STAGES[-1]  # the logits are linear in it
NOISY_IMAGES = 20
NOISE = 0.15  # standard deviation, relative to the range of the image's values
STEPS = 20  # from the mean color to the image
BLUR_SHARE = 17 / 224  # of the image's side, averaged over before a sharp map is added to a coarse one


def class_activation_map(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor) -> Tensor:
    """Each position's contribution to the logit (Zhou et al. 2016, arXiv:1512.04150, equation 2), bilinear."""
    evidence = class_signal(network, trace.features[STAGE], classes, weighted=True).sum(1)
    return _to_image(evidence, trace)


def layer_cam(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor, stage: str = "conv4_x") -> Tensor:
    """Positive gradient x activation, summed over a stage's channels: at least zero, bilinear.

    Jiang et al. 2021, LayerCAM, equations 4 and 5. stage: conv2_x or deeper.
    """
    return _to_image((gradient_at(network, stage, trace, classes).clamp(min=0) * trace.features[stage]).sum(1), trace)


def gradient_at(network: ResNet18, stage: str, trace: Trace, classes: Tensor) -> Tensor:
    """The gradient of each image's class logit at the features of a stage above the pooling, (N, C, h, w)."""
    signal = class_signal(network, trace.features[STAGE], classes)
    first = STAGES.index(stage) * BLOCKS_PER_STAGE
    for index in reversed(range(first, len(trace.blocks))):
        size = trace.blocks[index - 1][1].shape[-2:]  # of the block's input
        signal = ReverseResNet18(network, "gradient").blocks[index](signal, *trace.blocks[index], size)
    return signal


def guided_cam(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): Grad-CAM x `saliency` of guided, at least zero.

    At the last layer of this network, Grad-CAM is the positive part of the class activation map.
    """
    evidence = class_signal(network, trace.features[STAGE], classes, weighted=True).sum(1)
    return _to_image(evidence.clamp(min=0), trace) * guided(network, inputs, trace, classes)


def guided(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor) -> Tensor:
    """`saliency` of guided backpropagation: at least zero."""
    return saliency(class_picture(network, "guided", trace, classes))


def class_picture(network: ResNet18, rule: str, trace: Trace, classes: Tensor) -> Tensor:
    """The class's logit through the mirror by one of RULES, (N, 3, H, W); "gradient" is its gradient."""
    return ReverseResNet18(network, rule)(class_signal(network, trace.features[STAGE], classes), STAGE, trace)


def smooth_grad(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor, seed: int = 0) -> Tensor:
    """The mean `saliency` of the gradient over NOISY_IMAGES copies with Gaussian noise: at least zero.

    Smilkov et al. 2017, arXiv:1706.03825. All images get the same noise, in proportion to the range of their values.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = NOISE * (inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(inputs[:, 0])
    for _ in range(NOISY_IMAGES):
        noise = torch.randn(inputs.shape[1:], dtype=inputs.dtype, generator=generator).to(inputs.device)
        total += saliency(class_picture(network, "gradient", network.trace(inputs + spread * noise), classes))
    return total / NOISY_IMAGES


def integrated_gradients(
    network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor, steps: int = STEPS
) -> Tensor:
    """The image times the mean gradient on the way to it from the mean color, which is zero for the network.

    Sundararajan et al. 2017, arXiv:1703.01365, by the midpoint rule. Sums to the logit minus that of the mean color, up
    to the error of the steps.
    """
    total = torch.zeros_like(inputs)
    for step in range(steps):
        total += class_picture(network, "gradient", network.trace(inputs * ((step + 0.5) / steps)), classes)
    return (inputs * total / steps).sum(1)


def relevance_map(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor, box: Box) -> Tensor:
    """`relevance`, summed over the colors. box: as of `pixel_box`."""
    return relevance(network, inputs, trace, classes, box).sum(1)


def cam_and_guided(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor) -> Tensor:
    """The class activation map plus blurred guided: the one says where, the other which parts of it."""
    return add_detail(*(method(network, inputs, trace, classes) for method in (class_activation_map, guided)))


def cam_and_relevance(network: ResNet18, inputs: Tensor, trace: Trace, classes: Tensor, box: Box) -> Tensor:
    """The class activation map plus blurred relevance."""
    cam = class_activation_map(network, inputs, trace, classes)
    return add_detail(cam, relevance_map(network, inputs, trace, classes, box))


def add_detail(coarse: Tensor, sharp: Tensor) -> Tensor:
    """The sum of two maps (N, H, W), each divided by its largest absolute value.

    `sharp` is averaged over a square first: of 17 pixels at 224, in proportion at other sizes.
    """
    radius = round(BLUR_SHARE * min(sharp.shape[-2:]) / 2 - 0.5)
    sharp = F.avg_pool2d(sharp[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]
    return sum(maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-30) for maps in (coarse, sharp))


def _to_image(maps: Tensor, trace: Trace) -> Tensor:
    return F.interpolate(maps[:, None], trace.image_size, mode="bilinear")[:, 0]
