"""Resize and normalise stored images on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

HISTOGRAM_BYTES = 2**26  # of images counted at a time


def color_histogram(images: Tensor) -> Tensor:
    """How many pixels of (N, 3, H, W) uint8 images have each value: (3, 256) int64 on the CPU."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(max(1, HISTOGRAM_BYTES // images[0].numel())):
        counts += torch.stack([values.flatten().bincount(minlength=256) for values in part.unbind(1)]).cpu()
    return counts


def mean_and_std(counts: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, in 0..1, of all pixels of the images with this `color_histogram`.

    The standard deviation is at least 1/255, so that a constant channel can be normalised.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for histogram in counts.double():
        histogram = histogram / histogram.sum()
        mean.append(float(histogram @ values))
        std.append(max(float(histogram @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))
    return mean, std


def resize(images: Tensor, image_size: int) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in 0..1, bilinear, antialiased as in PIL."""
    return _interpolate(images.float() / 255, image_size)


def _interpolate(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=size < max(images.shape[-2:]))


class Preprocess:
    """Resize, scale to 0..1 and normalise, like torchvision's Resize, ToTensor and Normalize.

    image_size  side of the network's input in pixels
    mean, std   per channel, in 0..1, as `mean_and_std` returns them
    device      device of the images
    """

    def __init__(self, image_size: int, mean: list[float], std: list[float], device: torch.device | str = "cpu"):
        self.image_size = image_size  # below: (3, 1, 1), in 0..255
        self.mean_255, self.std_255 = (255 * torch.tensor(values).to(device)[:, None, None] for values in (mean, std))

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> the same shape in float32, with mean 0 and standard deviation 1."""
        return (images - self.mean_255) / self.std_255

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, image_size, image_size) float32 in channels_last memory format.

        Normalises before it resizes, which is equal up to rounding and cheaper for images smaller than the input.
        """
        return _interpolate(self.normalize(images), self.image_size).contiguous(memory_format=torch.channels_last)
