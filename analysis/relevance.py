"""Layer-wise relevance propagation: the part of each pixel in a logit or in a unit's activation.

Relevance flows back through each layer in proportion to what each input contributed to each output (Bach et al. 2015;
the rules by depth: Montavon et al. 2019, Layer-wise relevance propagation: an overview):

    fc and average pooling  contributions as they are: `class_signal` with `weighted`
    sum of a block          residual and shortcut, in proportion to their values
    convolutions            gamma rule: contributions of the output's sign count 1 + GAMMA times; batch norm folded in
    max pooling             to the maximum, by the switches of the trace
    first convolution       box rule: contributions relative to the darkest and the brightest possible image

Biases (beta, and what is left of the running mean) take their share in the convolutions, except in the first, where
they cancel. The rest reaches the pixels: without biases all of it, up to STABILIZER.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from network import BLOCKS_PER_STAGE, STAGES, BasicBlock, ResNet18, Trace
from reverse_network import class_signal, unpool_sum

GAMMA = 0.25
STABILIZER = 1e-7  # added to the size of every denominator; with 1e-12, some float32 maps are off by a quarter

Box = tuple[Tensor, Tensor]


def pixel_box(mean: list[float], std: list[float]) -> Box:
    """The darkest and the brightest color as the network sees them, (3, 1, 1) each, of these statistics in 0..1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return -mean / std, (1 - mean) / std


def relevance(network: ResNet18, inputs: Tensor, trace: Trace, classes: int | list[int] | Tensor, box: Box) -> Tensor:
    """The part of every pixel in the logit of class classes[n] of image n: (N, 3, H, W), of both signs.

    inputs   (N, 3, H, W) normalised images
    trace    of these images, up to conv5_x
    classes  one per image, or one for all
    box      lowest and highest values of `inputs`, as `pixel_box` returns them

    Starts with each unit's exact contribution to the logit, so the bias of `fc` has no part in it.
    """
    signal = class_signal(network, trace.features[STAGES[-1]], classes, weighted=True)
    return relevance_of_units(network, inputs, trace, signal, STAGES[-1], box)


def relevance_of_units(network: ResNet18, inputs: Tensor, trace: Trace, signal: Tensor, stage: str, box: Box) -> Tensor:
    """The part of every pixel in the activations of units: (N, 3, H, W), of both signs.

    signal  (N, C, h, w) at `stage`, the relevance to start with, as `isolate` returns it; inactive units have none
    trace   up to `stage` or further; the other arguments as for `relevance`
    """
    conv1, depth = trace.features["conv1"], STAGES.index(stage)
    signal = signal.masked_fill(trace.features[stage] <= 0, 0)
    blocks = [block for layer in network.layers[:depth] for block in layer]
    for index in reversed(range(depth * BLOCKS_PER_STAGE)):
        block_input = trace.blocks[index - 1][1] if index > 0 else network.maxpool(conv1)
        signal = _through_block(signal, blocks[index], block_input, *trace.blocks[index])
    if depth > 0:
        signal = unpool_sum(signal, trace.switches, conv1.shape[-2:])
    return _box_rule(signal, network.conv1, network.bn1, inputs, box)


def _through_block(signal: Tensor, block: BasicBlock, block_input: Tensor, inner: Tensor, output: Tensor) -> Tensor:
    """The relevance of a block's output -> that of its input; inner, output: of relu1 and relu2."""
    shares = signal / (output + STABILIZER)  # zero where the output is
    shortcut = block.downsample(block_input)
    residual = _gamma_rule(shares * (output - shortcut), block.conv2, block.bn2, inner)
    residual = _gamma_rule(residual, block.conv1, block.bn1, block_input)
    shortcut = shares * shortcut
    if not isinstance(block.downsample, nn.Identity):
        shortcut = _gamma_rule(shortcut, *block.downsample, block_input)
    return residual + shortcut


def _gamma_rule(signal: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, conv_input: Tensor) -> Tensor:
    """The relevance of a convolution's output, after batch norm -> that of its input, which is at least zero.

    For outputs of both signs: Andeol et al. 2021, arXiv:2107.06885. Of a negative output, relevance follows the
    negative contributions.
    """
    weight, bias = _fold(conv, bn)
    weights = torch.cat([weight.clamp(min=0), weight.clamp(max=0)])
    biases = torch.cat([bias.clamp(min=0), bias.clamp(max=0)])
    positive, negative = F.conv2d(conv_input, weights, biases, conv.stride, conv.padding).chunk(2, 1)
    output = positive + negative
    by_positive, by_negative = 1 + GAMMA * (output > 0), 1 + GAMMA * (output < 0)
    shares = signal / _stabilize(by_positive * positive + by_negative * negative)
    shares = torch.cat([by_positive * shares, by_negative * shares], 1)
    return conv_input * conv2d_input(conv_input.shape, weights, shares, conv.stride, conv.padding)


def _box_rule(signal: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, images: Tensor, box: Box) -> Tensor:
    """The relevance of the first convolution's output -> that of the images (Montavon et al. 2017, table 1).

    Positive weights see how far a pixel is above the darkest, negative ones how far below the brightest.
    """
    low, high = (color.to(images) for color in box)
    weight, _ = _fold(conv, bn)
    weights = torch.cat([weight.clamp(min=0), weight.clamp(max=0)], 1)
    distances = torch.cat([images - low, images - high], 1)  # (N, 6, H, W)
    shares = signal / _stabilize(F.conv2d(distances, weights, None, conv.stride, conv.padding))
    parts = distances * conv2d_input(distances.shape, weights, shares, conv.stride, conv.padding)
    return parts.unflatten(1, (2, 3)).sum(1)


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals this one and its batch norm, in evaluation mode."""
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return conv.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale


def _stabilize(denominator: Tensor) -> Tensor:
    """The same, further from zero by STABILIZER; zero counts as positive."""
    return denominator + torch.where(denominator < 0, -STABILIZER, STABILIZER)
