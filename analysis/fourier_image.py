"""Images to optimise: Fourier coefficients of correlated colors, as large as the data are stored.

Such an image holds nothing finer than the data, and gradient descent moves all of its frequencies alike (Olah et al.
2017, Feature Visualization, doi:10.23915/distill.00007, section "Preconditioning and parameterization").
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from analysis.inspection import Inspection
from runtime.device import bf16_if_native

SPREAD = 0.1  # standard deviation of the coefficients at first; 1 would be a natural image's contrast
PEAK_LEARNING_RATE = 0.2


class FourierImages(nn.Module):
    """`count` square images in 0..1; at first faint noise around the mean color.

    side  of an image, in pixels
    mean  (3,): color in 0..1 of an image whose coefficients are zero
    root  (3, 3): of the colors' covariance, as `color_root` returns it
    seed  of the noise
    """

    def __init__(self, count: int, side: int, mean: Tensor, root: Tensor, seed: int):
        super().__init__()
        noise = torch.randn(count, 3, side, side // 2 + 1, 2, generator=torch.Generator().manual_seed(seed))
        frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[None])
        amplitude = 1 / frequency.clamp(min=1 / side)
        amplitude *= side**2 / (2 * amplitude.square().sum()).sqrt()  # coefficients of 1 make values of variance 1
        self.coefficients = nn.Parameter((SPREAD * noise).to(mean.device))
        self.register_buffer("amplitude", amplitude[:, : side // 2 + 1, None].to(mean.device))
        self.register_buffer("root", root.to(mean.device))
        self.register_buffer("middle", torch.logit(mean.clamp(0.02, 0.98))[:, None, None])

    def forward(self) -> Tensor:
        """(count, 3, side, side) in 0..1."""
        side = len(self.amplitude)
        values = torch.fft.irfft2(torch.view_as_complex(self.coefficients * self.amplitude), s=(side, side))
        return torch.sigmoid(self.middle + torch.einsum("ck,nkhw->nchw", self.root, values))


def color_root(images: Tensor) -> Tensor:
    """The square root (3, 3) of the covariance of the colors of (N, 3, H, W) uint8 images, whose mean variance is 1."""
    variances, directions = torch.linalg.eigh(torch.cov(images.movedim(1, 0).flatten(1).double()))
    variances = variances.clamp(min=0)
    root = directions * (variances / variances.mean().clamp(min=1e-9)).sqrt() @ directions.T
    return root.float()


def images_like_data(inspection: Inspection, count: int, side: int, seed: int) -> FourierImages:
    """`FourierImages` with the mean color of the training data and the colors' covariance in the test images."""
    some = inspection.searched[:: math.ceil(len(inspection.searched) / 100)]  # at most 100
    mean = torch.tensor(inspection.metadata.mean, device=inspection.device)
    return FourierImages(count, side, mean, color_root(inspection.images[some]), seed)


def minimise(images: FourierImages, loss: Callable[[Tensor], Tensor], steps: int) -> None:
    """Change the images by Adam, with a learning rate that rises for a tenth of the steps and falls to zero.

    loss   images (N, 3, S, S) in 0..1 -> one number, called in bf16 where that is faster
    steps  at least 3
    """
    coefficients = images.coefficients
    optimizer = torch.optim.Adam([coefficients])
    rising = max(0.1, 2 / steps)  # OneCycleLR divides by the number of rising steps, less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=rising)
    for _ in range(steps):
        pixels = images()
        with bf16_if_native(coefficients.device):
            value = loss(pixels)
        (coefficients.grad,) = torch.autograd.grad(value, coefficients)
        optimizer.step()
        schedule.step()
