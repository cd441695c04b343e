"""Maps of how important each pixel of an image is: from pictures, from edges, and at random."""

import torch
import torch.nn.functional as F
from torch import Tensor


def saliency(pictures: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, H, W): the sum of absolute values over the colors."""
    return pictures.abs().sum(1)


def sobel_edges(images: Tensor) -> Tensor:
    """Sobel edges of the grey image: (N, 3, H, W) in 0..1 -> the same shape, three equal channels."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, kernels).norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def random_maps(seeds: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) in 0..1: noise that depends on each seed, (N,) int64, alone."""
    return torch.stack([torch.rand(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()])
