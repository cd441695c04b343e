"""The mirror of ResNet-18: projects a signal at one of its stages back to the image.

Transposed convolutions, max-unpooling and a rectifier (Zeiler & Fergus 2014, arXiv:1311.2901, section 2). Each layer is
the adjoint of a linear layer of the network, batch norm folded in. The rules differ only in how they pass the
ReLUs (Mahendran & Vedaldi 2016, Salient deconvolutional networks):

    rule        backward signal g through a ReLU with forward output y
    deconvnet   max(g, 0)                           Zeiler & Fergus 2014
    guided      max(g, 0) where y > 0, else 0       Springenberg et al. 2015, arXiv:1412.6806
    gradient    g         where y > 0, else 0       backpropagation
"""

import operator
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network import BLOCKS_PER_STAGE, STAGES, BasicBlock, ResNet18, Trace, uses_batch_statistics

RULES = ("deconvnet", "guided", "gradient")
UNPOOLINGS = ("sum", "overwrite")
UNITS = ("peak", "map")
BRANCHES = ("both", "residual", "shortcut")


def rectify(signal: Tensor, output: Tensor, rule: str) -> Tensor:
    """The backward signal through a ReLU, given its forward output (same shape); rule is one of RULES."""
    if rule != "gradient":
        signal = signal.clamp(min=0)
    if rule != "deconvnet":
        # `signal where output > 0, else 0` in one pass; torch.where takes seven times as long on a CPU
        signal = torch.ops.aten.threshold_backward(signal, output, 0)
    return signal


def unpool_sum(signal: Tensor, switches: Tensor, size: tuple[int, int]) -> Tensor:
    """The adjoint of max pooling: each value goes to its switch; values that share a switch are added.

    Signal and switches (N, C, h, w), int64 flat indices into the pooling's input -> (N, C, *size), channels last.
    """
    signal, switches = (values.permute(0, 2, 3, 1).flatten(1, 2) for values in (signal, switches))  # (N, h * w, C)
    flat = signal.new_zeros(len(signal), size[0] * size[1], signal.shape[2])
    return flat.scatter_add_(1, switches, signal).unflatten(1, size).permute(0, 3, 1, 2)


class ReverseConv2d(nn.Module):
    """The adjoint of a convolution followed by batch norm. It shares their weights and adds no mean, beta or bias."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, signal: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, out_channels, h, w) -> (N, in_channels, *size); size is (height, width) of the convolution's input."""
        conv, bn = self.conv, self.bn
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        weight = conv.weight * scale[:, None, None, None]
        # With a stride, several input sizes give the same output size; output_padding selects the right one.
        smallest = [(length - 1) * stride - 2 * padding + kernel for length in signal.shape[-2:]]
        output_padding = [size[0] - smallest[0], size[1] - smallest[1]]
        return F.conv_transpose2d(signal, weight, None, stride, padding, output_padding)


class ReverseBlock(nn.Module):
    """The mirror of a residual block: the sum over both branches, or one of them (see BRANCHES)."""

    def __init__(self, block: BasicBlock, rule: str, branches: str = "both"):
        super().__init__()
        self.rule, self.branches = rule, branches
        self.conv2 = ReverseConv2d(block.conv2, block.bn2)
        self.conv1 = ReverseConv2d(block.conv1, block.bn1)
        self.downsample = None
        if not isinstance(block.downsample, nn.Identity):
            self.downsample = ReverseConv2d(*block.downsample)

    def forward(self, signal: Tensor, inner: Tensor, output: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, out_channels, h, w) -> (N, in_channels, *size), before the previous block's rectification.

        inner, output: outputs of relu1 and relu2 in the forward pass; size: (height, width) of the block's input
        """
        signal = rectify(signal, output, self.rule)
        residual = rectify(self.conv2(signal, inner.shape[-2:]), inner, self.rule)
        residual = self.conv1(residual, size)
        shortcut = signal if self.downsample is None else self.downsample(signal, size)
        return {"both": residual + shortcut, "residual": residual, "shortcut": shortcut}[self.branches]


class ReverseResNet18(nn.Module):
    """Projects a signal at any stage of a ResNet-18 back to the image, with the network's own weights.

    network   in evaluation mode: batch norm is mirrored with its running statistics
    rule      one of RULES
    unpool    "sum": the exact adjoint of the overlapping 3x3 windows; "overwrite": `F.max_unpool2d`, which keeps one
              of the values that share a switch (which one is undefined on CUDA, pytorch#80827)
    branches  "both": the exact adjoint of each block; "residual" or "shortcut": that branch alone, in every block.
              Under the gradient rule, "both" is the sum over all 2^8 paths; "residual" and "shortcut" are one each.

    Raises ValueError for an unknown rule, unpool or branches.
    """

    def __init__(self, network: ResNet18, rule: str = "deconvnet", unpool: str = "sum", branches: str = "both"):
        super().__init__()
        choices = {"rule": (rule, RULES), "unpool": (unpool, UNPOOLINGS), "branches": (branches, BRANCHES)}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(known)}")
        self.rule, self.unpool = rule, unpool
        self.maxpool = network.maxpool
        self.conv1 = ReverseConv2d(network.conv1, network.bn1)
        self.blocks = nn.ModuleList(ReverseBlock(block, rule, branches) for layer in network.layers for block in layer)

    def forward(self, signal: Tensor, stage: str, trace: Trace) -> Tensor:
        """Signal (N, C, h, w) at `stage` -> reconstruction (N, 3, H, W), in units of the normalised image.

        trace: of the same N images, up to `stage` or further; a signal does not tell its image size, the trace does

        Raises ValueError if the trace lacks the stage, the signal has another shape than its features, or these do not
        belong to its image size; RuntimeError if the network is in training mode, or was when the trace was made.
        """
        if trace.training or uses_batch_statistics(self):
            raise RuntimeError("the mirror needs the network in evaluation mode: call network.eval() before trace()")
        if stage not in trace.features:
            raise ValueError(f"no stage {stage!r} in this trace: it has {', '.join(trace.features)}")
        if signal.shape != (expected := trace.features[stage].shape):
            raise ValueError(f"signal at {stage} must have shape {tuple(expected)}, got {tuple(signal.shape)}")
        conv1, depth = trace.features["conv1"], STAGES.index(stage)
        size, pool = conv1.shape[-2:], self.maxpool
        if tuple(size) != tuple((side + 1) // 2 for side in trace.image_size):
            raise ValueError(f"this trace is not of images of size {trace.image_size}: conv1 maps are {tuple(size)}")
        for index in reversed(range(depth * BLOCKS_PER_STAGE)):
            inner, output = trace.blocks[index]
            # The switches have the size of the pooled map, the first block's input.
            block_input = trace.blocks[index - 1][1] if index > 0 else trace.switches
            signal = self.blocks[index](signal, inner, output, block_input.shape[-2:])
        if depth > 0 and self.unpool == "sum":
            signal = unpool_sum(signal, trace.switches, size)
        elif depth > 0:
            signal = F.max_unpool2d(signal, trace.switches, pool.kernel_size, pool.stride, pool.padding, size)
        return self.conv1(rectify(signal, conv1, self.rule), trace.image_size)


def isolate(
    features: Tensor, channels: int | Sequence[int] | Tensor, units: str | int | Sequence[int] | Tensor = "map"
) -> Tensor:
    """The starting signal of a reconstruction: zero except channel channels[n] of image n.

    features  (N, C, h, w), of a trace
    channels  an integer for all images, or one per image
    units     "map": the whole feature map; "peak": its strongest unit; integers as `channels`: the unit at this flat
              position, row * w + column

    Returns a new tensor of the shape of `features`. Raises ValueError for what is no integer, another number of them,
    and a channel or unit out of range; the values of tensors on a GPU are not checked, because the host would wait.
    """
    num_images, num_channels = features.shape[:2]
    channels = _indices("channels", channels, num_channels, features)
    images = torch.arange(num_images, device=features.device)
    kept = features[images, channels].flatten(1)  # (N, h * w)
    if isinstance(units, str) and units not in UNITS:
        raise ValueError(f"unknown units {units!r}: choose from {', '.join(UNITS)}, or pass positions")
    if not isinstance(units, str) or units == "peak":
        positions = kept.argmax(1) if isinstance(units, str) else _indices("units", units, kept.shape[1], features)
        positions = positions[:, None]
        kept = torch.zeros_like(kept).scatter(1, positions, kept.gather(1, positions))
    signal = torch.zeros_like(features)
    signal[images, channels] = kept.unflatten(1, features.shape[2:])
    return signal


def _indices(name: str, values: int | Sequence[int] | Tensor, limit: int, features: Tensor) -> Tensor:
    """Indices below `limit`, (N,) int64 on the device of `features` (N, ...); those that the host knows are checked."""
    count, device = len(features), features.device
    try:
        if isinstance(values, Tensor) and values.device.type != "cpu":
            torch.iinfo(values.dtype)  # raises TypeError
            known, indices = [], values.long()
        else:
            known = values.tolist() if hasattr(values, "tolist") else values  # of a tensor, or NumPy's
            is_single = not isinstance(known, Iterable)
            known = [known] if is_single else list(known)
            if any(isinstance(value, bool) for value in known):
                raise TypeError
            known = [operator.index(value) for value in known]
            indices = torch.full((), known[0], device=device) if is_single else torch.tensor(known).long().to(device)
    except TypeError:
        indices = None
    if indices is None or indices.shape not in ((), (count,)):
        raise ValueError(f"{name} must be an integer for all images, or one for each of the {count}; got {values!r}")
    if known and not (0 <= min(known) and max(known) < limit):
        raise ValueError(f"{name} must be 0 to {limit - 1}, got {known}")
    return indices.expand(count)


def class_signal(
    network: ResNet18, features: Tensor, classes: int | Sequence[int] | Tensor, weighted: bool = False
) -> Tensor:
    """The evidence for class classes[n] in image n, at conv5_x: (N, 512, h, w), entries of both signs.

    The logit is linear in conv5_x. By default this is its gradient, fc.weight[c] / (h w), which is the same for every
    image; `weighted` multiplies it by the features, so that the entries of channel k sum to the exact contribution of
    channel k to the logit, and all entries and the bias to the logit itself.

    classes: an integer for all images, or one per image; raises ValueError as `isolate`
    """
    classes = _indices("classes", classes, network.fc.out_features, features)
    height, width = features.shape[2:]
    weights = network.fc.weight[classes] / (height * width)
    signal = weights[:, :, None, None].expand_as(features)
    return signal * features if weighted else signal.clone(memory_format=torch.contiguous_format)
