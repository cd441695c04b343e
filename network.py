"""ResNet-18 (He et al. 2016, arXiv:1512.03385, table 1) that returns its own feature maps.

Parameters and buffers have the names and shapes of torchvision's `resnet18`, so either's weights load into the other.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")
CHANNELS = dict(zip(STAGES, (64, 64, 128, 256, 512), strict=True))
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(residual(x) + shortcut(x)) (figure 5, left, of the paper).

    (N, in_channels, h, w) -> (N, channels, ceil(h / stride), ceil(w / stride))
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.downsample = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def trace(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of relu1 and relu2; the latter is the block's output."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(inner))
        return inner, self.relu2(residual + self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x)[1]


@dataclass(frozen=True)
class Trace:
    """Intermediate results of one forward pass; the reverse network needs them. No tensor is a copy."""

    image_size: tuple[int, int]  # (H, W) of the images
    features: dict[str, Tensor]  # stage -> its output after the last ReLU, (N, C, h, w), for each stage computed
    switches: Tensor | None  # (N, 64, h, w) int64: each pooling maximum's flat index in its conv1 map; None: no pooling
    blocks: list[tuple[Tensor, Tensor]]  # outputs of relu1 and relu2 of each residual block computed, in order
    training: bool = False  # whether batch norm used the statistics of the batch, as in training mode

    def select(self, images: Tensor) -> "Trace":
        """The trace of some of the images, a copy. images: (n,) int64, in any order, repeated or not."""
        blocks = [(inner[images], output[images]) for inner, output in self.blocks]
        last_blocks = blocks[BLOCKS_PER_STAGE - 1 :: BLOCKS_PER_STAGE]
        maps = [self.features["conv1"][images], *(output for _, output in last_blocks)]
        switches = None if self.switches is None else self.switches[images]
        return replace(self, features=dict(zip(self.features, maps, strict=True)), switches=switches, blocks=blocks)


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether any batch norm of the module is in training mode."""
    return any(part.training for part in module.modules() if isinstance(part, nn.BatchNorm2d))


class ResNet18(nn.Module):
    """The 18-layer network. Images may have any size; at 224x224 the five stages are 112, 56, 28, 14 and 7 px wide."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        # Variance 2 / fan_out keeps the gradients' variance equal across layers (He et al. 2015, arXiv:1502.01852,
        # section 2.2); batch norm normalises the forward direction.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(images)))  # (N, 3, H, W) -> (N, 64, H/2, W/2)
        x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.classify(x)

    @property
    def layers(self) -> tuple[nn.Sequential, ...]:
        """The residual layers of conv2_x to conv5_x."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def classify(self, features: Tensor) -> Tensor:
        """conv5_x features (N, 512, h, w) -> logits (N, num_classes)."""
        return self.fc(self.avgpool(features).flatten(1))

    def trace(self, images: Tensor, until: str = "conv5_x") -> Trace:
        """The forward pass of normalised images (N, 3, H, W) up to a stage, with its intermediate results.

        Raises ValueError for a stage that is none of STAGES.
        """
        if until not in STAGES:
            raise ValueError(f"unknown stage {until!r}: choose from {', '.join(STAGES)}")
        depth = STAGES.index(until)
        x = self.relu(self.bn1(self.conv1(images)))
        features, switches, blocks = {"conv1": x}, None, []
        if depth > 0:
            pool = self.maxpool
            x, switches = F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, return_indices=True)
        for stage, layer in zip(STAGES[1 : depth + 1], self.layers[:depth], strict=True):
            for block in layer:
                inner, x = block.trace(x)
                blocks.append((inner, x))
            features[stage] = x
        return Trace(tuple(images.shape[-2:]), features, switches, blocks, uses_batch_statistics(self))
