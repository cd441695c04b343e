"""Stored images to network inputs: resized and normalised on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in 0..1, over all pixels of (N, 3, H, W) uint8 images: exact.

    The deviation is a grey level at least, so that a constant channel can be divided by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        share = images[:, channel].flatten().bincount(minlength=256).cpu().double()
        share /= share.sum()
        mean.append(float(share @ values))
        std.append(max(float(share @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))
    return mean, std


def resize(images: Tensor, image_size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in 0..1, bilinear, as PIL resizes."""
    images = images.float() / 255
    if images.shape[-2:] == (image_size, image_size):
        return images
    shrinks = image_size < max(images.shape[-2:])
    return F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=shrinks)


class Preprocess:
    """What turns stored images into the network's input; torchvision's Resize, ToTensor and Normalize, on the device.

    image_size  pixels a side
    mean, std   of each channel in 0..1, as `mean_and_std` gives them
    device      where the images are
    """

    def __init__(self, image_size: int, mean: list[float], std: list[float], device: torch.device | str = "cpu"):
        self.image_size = image_size
        self.mean, self.std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32, laid out channels_last as the network likes."""
        images = (resize(images, self.image_size) - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)
