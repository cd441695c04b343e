"""The mirror of ResNet-18: from a signal at one of its stages back to a picture.

Transposed convolutions, max-unpooling and a rectifier (Zeiler & Fergus 2014, arXiv:1311.2901, section 2). Every layer
is the adjoint of the network's linear layer, with the batch norm folded into it, so only the rule for meeting a ReLU
separates the three pictures (Mahendran & Vedaldi 2016):

    rule        a signal g meeting a ReLU whose output was y
    deconvnet   max(g, 0)                           Zeiler & Fergus 2014
    guided      max(g, 0) where y > 0, else 0       Springenberg et al. 2015, arXiv:1412.6806
    gradient    g         where y > 0, else 0       backpropagation
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network import BLOCKS_PER_STAGE, STAGES, BasicBlock, ResNet18, Trace

RULES = ("deconvnet", "guided", "gradient")
UNPOOLINGS = ("sum", "overwrite")
UNITS = ("peak", "map")
BRANCHES = ("both", "residual", "shortcut")


def rectify(signal: Tensor, output: Tensor, rule: str) -> Tensor:
    """A signal on its way back through a ReLU whose `output`, of the same shape, the forward pass has kept."""
    if rule != "gradient":
        signal = signal.clamp(min=0)
    if rule != "deconvnet":
        signal = torch.where(output > 0, signal, 0)
    return signal


def unpool_sum(signal: Tensor, switches: Tensor, size: tuple[int, int]) -> Tensor:
    """The adjoint of max pooling: each value returns to its switch, and what meets there adds up.

    signal, switches: (N, C, h, w); size: (H, W) of the map that was pooled. -> (N, C, H, W)
    """
    flat = signal.new_zeros(*signal.shape[:2], size[0] * size[1])
    return flat.scatter_add(2, switches.flatten(2), signal.flatten(2)).unflatten(2, size)


class ReverseConv2d(nn.Module):
    """The adjoint of a convolution and its batch norm, with their own weights: no copy, no bias, no mean, no beta."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, signal: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, out_channels, h, w) -> (N, in_channels, *size); size is that of the forward convolution's input."""
        conv, bn = self.conv, self.bn
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        # A strided convolution gives the same output size for two input sizes; output_padding says which one it was.
        output_padding = [
            full - ((small - 1) * stride - 2 * padding + kernel)
            for full, small, stride, padding, kernel in zip(
                size, signal.shape[-2:], conv.stride, conv.padding, conv.kernel_size, strict=True
            )
        ]
        weight = conv.weight * scale[:, None, None, None]
        return F.conv_transpose2d(signal, weight, None, conv.stride, conv.padding, output_padding)


class ReverseBlock(nn.Module):
    """The mirror of a residual block: back through both branches, which meet in one sum, or through one alone."""

    def __init__(self, block: BasicBlock, rule: str, branches: str = "both"):
        super().__init__()
        self.rule, self.branches = rule, branches
        self.conv2 = ReverseConv2d(block.conv2, block.bn2)
        self.conv1 = ReverseConv2d(block.conv1, block.bn1)
        self.downsample = None
        if not isinstance(block.downsample, nn.Identity):
            self.downsample = ReverseConv2d(*block.downsample)

    def forward(self, signal: Tensor, inner: Tensor, output: Tensor, size: tuple[int, int]) -> Tensor:
        """inner, output: what the block's ReLUs gave; size: (h, w) of its input. The result is not yet rectified."""
        signal = rectify(signal, output, self.rule)
        residual = rectify(self.conv2(signal, inner.shape[-2:]), inner, self.rule)
        residual = self.conv1(residual, size)
        shortcut = signal if self.downsample is None else self.downsample(signal, size)
        return {"both": residual + shortcut, "residual": residual, "shortcut": shortcut}[self.branches]


class ReverseResNet18(nn.Module):
    """Draws a signal at any stage of a ResNet-18 as a picture, with the network's own weights.

    network  in evaluation mode: batch norm is mirrored with its running statistics
    rule     one of RULES
    unpool   "sum", the exact adjoint of the overlapping 3x3 windows, or "overwrite", which is `F.max_unpool2d`: of the
             values that meet at a switch it keeps one, which one is undefined on CUDA (pytorch issue 80827)
    branches "both" ways back through each block, or only its "residual" or its "shortcut", in every block. With the
             rule "gradient" the picture is the sum over all 2^8 mixed ways, of which these are two.

    Raises ValueError for any other rule, unpooling or branches.
    """

    def __init__(self, network: ResNet18, rule: str = "deconvnet", unpool: str = "sum", branches: str = "both"):
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}: choose from {', '.join(RULES)}")
        if unpool not in UNPOOLINGS:
            raise ValueError(f"unknown unpooling {unpool!r}: choose from {', '.join(UNPOOLINGS)}")
        if branches not in BRANCHES:
            raise ValueError(f"unknown branches {branches!r}: choose from {', '.join(BRANCHES)}")
        self.rule, self.unpool = rule, unpool
        self.maxpool = network.maxpool
        self.conv1 = ReverseConv2d(network.conv1, network.bn1)
        self.blocks = nn.ModuleList(ReverseBlock(block, rule, branches) for layer in network.layers for block in layer)

    def forward(self, signal: Tensor, stage: str, trace: Trace) -> Tensor:
        """A signal (N, C, h, w) at `stage` -> (N, 3, H, W), in units of the normalised image.

        trace: of the same N images, up to `stage` or beyond. Raises ValueError when signal, stage and trace do not
        belong together, RuntimeError when the network is in training mode.
        """
        if any(module.training for module in self.modules() if isinstance(module, nn.BatchNorm2d)):
            raise RuntimeError("the mirror needs the network in evaluation mode: call network.eval() before the trace")
        if stage not in trace.features:
            raise ValueError(f"unknown stage {stage!r}: this trace holds {', '.join(trace.features)}")
        if signal.shape != trace.features[stage].shape:
            expected = tuple(trace.features[stage].shape)
            raise ValueError(f"a signal at {stage} of this trace has the shape {expected}, not {tuple(signal.shape)}")

        conv1_features = trace.features["conv1"]
        depth = STAGES.index(stage)
        for index in reversed(range(depth * BLOCKS_PER_STAGE)):
            inner, output = trace.blocks[index]
            below = trace.blocks[index - 1][1] if index > 0 else trace.switches
            signal = self.blocks[index](signal, inner, output, below.shape[-2:])
        if depth > 0:
            signal = self._unpool(signal, trace.switches, conv1_features.shape[-2:])
        return self.conv1(rectify(signal, conv1_features, self.rule), trace.image_size)

    def _unpool(self, signal: Tensor, switches: Tensor, size: tuple[int, int]) -> Tensor:
        if self.unpool == "sum":
            return unpool_sum(signal, switches, size)
        pool = self.maxpool
        return F.max_unpool2d(signal, switches, pool.kernel_size, pool.stride, pool.padding, output_size=size)


def isolate(features: Tensor, channels: int | Sequence[int] | Tensor, units: str | Tensor = "map") -> Tensor:
    """The signal that asks what one channel has seen: all zero but channel channels[n] of image n.

    features  (N, C, h, w), of a trace
    channels  one a picture, or one for all
    units     "map" keeps the whole channel; "peak" its strongest unit alone; a tensor (N,) of flat positions
              row * w + column, int64, those units alone

    Returns a new tensor of the shape of `features`. Raises ValueError for a channel or unit that is not there.
    """
    count, num_channels = features.shape[:2]
    channels = torch.as_tensor(channels, device=features.device).expand(count)
    if count and not (0 <= int(channels.min()) and int(channels.max()) < num_channels):
        raise ValueError(f"channels go from 0 to {num_channels - 1}, got {channels.tolist()}")
    images = torch.arange(count, device=features.device)
    kept = features[images, channels].flatten(1)  # (N, h * w)
    if isinstance(units, Tensor) or units == "peak":
        positions = kept.argmax(1) if isinstance(units, str) else units.to(features.device)
        if count and not (0 <= int(positions.min()) and int(positions.max()) < kept.shape[1]):
            raise ValueError(f"units go from 0 to {kept.shape[1] - 1}, got {positions.tolist()}")
        positions = positions[:, None]
        kept = torch.zeros_like(kept).scatter(1, positions, kept.gather(1, positions))
    elif units != "map":
        raise ValueError(f"unknown units {units!r}: choose from {', '.join(UNITS)}, or give positions")
    signal = torch.zeros_like(features)
    signal[images, channels] = kept.unflatten(1, features.shape[2:])
    return signal
