"""train.py with an eighth of the channels: for tests of what does not depend on the width. Also a script."""

from itertools import pairwise

from torch import nn

import train
from network import BasicBlock, ResNet18
from runtime import checkpoint

WIDTHS = (8, 8, 16, 32, 64)


class NarrowResNet18(ResNet18):
    """A ResNet-18 with the same layers and names, and few channels."""

    def __init__(self, num_classes: int = 10):
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for n, (before, width) in enumerate(pairwise(WIDTHS), 1):
            blocks = BasicBlock(before, width, 1 if n == 1 else 2), BasicBlock(width, width, 1)
            setattr(self, f"layer{n}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)


def make_narrow(patch):
    """From now on, train.py builds narrow networks, and checkpoints must be narrow."""
    for module in (train, checkpoint):
        patch.setattr(module, "ResNet18", NarrowResNet18)


if __name__ == "__main__":
    train.ResNet18 = checkpoint.ResNet18 = NarrowResNet18
    train.main()
