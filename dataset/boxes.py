"""Random boxes of images: those of torchvision's RandomResizedCrop, resized to the network's input, and CutMix's.

(Szegedy et al. 2015, arXiv:1409.4842, section 6; Yun et al. 2019, arXiv:1905.04899.)
"""

import numpy as np
import torch
from torch import Tensor

ASPECTS = (3 / 4, 4 / 3)  # width to height
TRIES = 10
WORDS, CUTMIX_WORDS = 2 * TRIES + 2, 4  # random words that a box takes


def draw_boxes(words: np.ndarray, height: int, width: int, least: float) -> np.ndarray:
    """Boxes of `least` to 1 of the area of a height x width image, as torchvision draws them.

    words: random (..., WORDS) uint64. Returns (..., 4) int64: top, left, height and width in pixels. The area is
    uniform, the aspect ratio uniform in its logarithm; after ten boxes that do not fit, the largest central one.
    """
    uniform = (words[..., : 2 * TRIES] >> np.uint64(11)) * 2.0**-53  # in 0..1
    area = height * width * (least + (1 - least) * uniform[..., :TRIES])
    low, high = np.log(ASPECTS)
    aspect = np.exp(low + (high - low) * uniform[..., TRIES:])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    first, any_fits = fits.argmax(-1)[..., None], fits.any(-1)
    w, h = (np.take_along_axis(values, first, -1)[..., 0] for values in (widths, heights))
    w = np.where(any_fits, w, min(width, round(height * ASPECTS[1]))).astype(np.int64)
    h = np.where(any_fits, h, min(height, round(width / ASPECTS[0]))).astype(np.int64)
    down, right = (word.astype(np.int64) for word in np.moveaxis(words[..., 2 * TRIES :] >> np.uint64(1), -1, 0))
    top = np.where(any_fits, down % (height - h + 1), (height - h) // 2)
    left = np.where(any_fits, right % (width - w + 1), (width - w) // 2)
    return np.stack([top, left, h, w], -1)


def draw_cutmix_boxes(words: np.ndarray, height: int, width: int, probability: float) -> np.ndarray:
    """The box of each batch of height x width images that CutMix fills from other images, as in its authors' code.

    words: random (..., CUTMIX_WORDS) uint64. Returns (..., 4) int64 as `draw_boxes`. The share of the area left is
    uniform, as Beta(1, 1) is, and so is the centre; the box is clipped at the border (section 3.2). It is empty with
    probability 1 - `probability`.
    """
    uniform = (words[..., :2] >> np.uint64(11)) * 2.0**-53  # in 0..1
    sides, edges = np.sqrt(1 - uniform[..., 1]), []
    for size, word in ((height, words[..., 2]), (width, words[..., 3])):
        center, half = (word % size).astype(np.int64), (size * sides).astype(np.int64) // 2
        edges.append(((center - half).clip(0), (center + half).clip(max=size)))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom - top, right - left], -1) * (uniform[..., :1] < probability)


def resize_boxes(images: Tensor, boxes: Tensor, flip: Tensor, image_size: int) -> Tensor:
    """Boxes of images, resized: (B, 3, H, W) float, (B, 4) int64, (B,) 0 or 1 -> (B, 3, S, S), S = image_size.

    Bilinear, antialiased where the box is larger than the result, flipped left to right where `flip` is 1. Two matrix
    products per image: about 1 % of the operations of a training step, of static shape.
    """
    batch, channels, height, width = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    down = _weights(top, box_height, height, image_size, torch.zeros_like(flip))  # (B, S, H)
    right = _weights(left, box_width, width, image_size, flip)  # (B, S, W)
    rows = down @ images.transpose(1, 2).reshape(batch, height, channels * width)  # (B, S, 3 * W)
    result = rows.reshape(batch, image_size * channels, width) @ right.transpose(1, 2)  # (B, S * 3, S)
    return result.reshape(batch, image_size, channels, image_size).transpose(1, 2)


def _weights(start: Tensor, length: Tensor, size: int, image_size: int, flip: Tensor) -> Tensor:
    """What each pixel contributes to each result along one axis: (B, image_size, size), rows sum to 1."""
    start, length, flip = start[:, None], length[:, None], flip[:, None]
    steps = torch.arange(image_size, device=start.device)
    steps = torch.where(flip == 1, image_size - 1 - steps, steps)  # (B, S)
    scale = length / image_size
    centers = (start + (steps + 0.5) * scale)[:, :, None]  # (B, S, 1)
    pixels = torch.arange(size, device=start.device)
    inside = (pixels >= start) & (pixels < start + length)  # (B, size)
    weights = (1 - (pixels + 0.5 - centers).abs() / scale.clamp(min=1)[:, :, None]).clamp(min=0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)
