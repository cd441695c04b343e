"""Resize and normalise stored images on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Exact mean and standard deviation per channel, in 0..1, over all pixels of (N, 3, H, W) uint8 images.

    The standard deviation is at least 1/255, so that a constant channel can be normalised.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        histogram = images[:, channel].flatten().bincount(minlength=256).cpu().double()
        histogram /= histogram.sum()
        mean.append(float(histogram @ values))
        std.append(max(float(histogram @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))
    return mean, std


def resize(images: Tensor, image_size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in 0..1, bilinear, antialiased as in PIL."""
    return _interpolate(images.float() / 255, image_size)


def _interpolate(images: Tensor, image_size: int) -> Tensor:
    if images.shape[-2:] == (image_size, image_size):
        return images
    shrinks = image_size < max(images.shape[-2:])
    return F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=shrinks)


class Preprocess:
    """Resize, scale to 0..1 and normalise, like torchvision's Resize, ToTensor and Normalize.

    image_size  side of the network's input in pixels
    mean, std   per channel, in 0..1, as `mean_and_std` returns them
    device      device of the images
    """

    def __init__(self, image_size: int, mean: list[float], std: list[float], device: torch.device | str = "cpu"):
        self.image_size = image_size
        self.mean_color, self.std_color = (
            255 * torch.tensor(values).to(device)[:, None, None] for values in (mean, std)
        )  # (3, 1, 1), in grey levels

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in channels_last memory format.

        Normalises before it resizes, which is equal up to rounding and cheaper for images smaller than the input.
        """
        images = (images - self.mean_color) / self.std_color
        return _interpolate(images, self.image_size).contiguous(memory_format=torch.channels_last)
