"""A synthetic data set: ten classes of shapes and textures drawn from a seed, no download.

Every machine draws the same images: numpy guarantees the `RandomState` stream, and the rest are additions,
multiplications, divisions and square roots, which IEEE 754 rounds identically everywhere.
"""

import numpy as np

CLASSES = ("disk", "square", "triangle", "ring", "cross", "star", "moon", "stripes", "checks", "dots")
SIZES = {"train": 5000, "test": 1000}
SEEDS = {"train": 0, "test": 1}
SIDE = 32  # pixels
OVERSAMPLING = 3  # sample points per pixel along each axis


def draw_shapes(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 into CLASSES, object masks (N, 32, 32) bool.

    split: "train" (N = 5,000) or "test" (N = 1,000); the classes alternate, so they are balanced

    Each image has one shape of random position, radius (9 to 14 px), rotation (up to 44 degrees) and color, on a
    gradient between two random colors, plus noise.
    """
    count = SIZES[split]
    random = np.random.RandomState(SEEDS[split])
    labels = np.arange(count) % len(CLASSES)
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    masks = np.empty((count, SIDE, SIDE), bool)
    for n, label in enumerate(labels):
        images[n], masks[n] = _draw(CLASSES[label], random)
    return images, labels, masks


def _draw(name: str, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """One image (3, 32, 32) uint8 and its mask (32, 32) bool."""
    points = (np.arange(SIDE * OVERSAMPLING) + 0.5) / OVERSAMPLING  # in pixels
    radius = random.uniform(9, 14)
    x0, y0 = random.uniform(radius, SIDE - radius, 2)
    t = random.uniform(-0.4, 0.4)  # tan(angle / 2), up to 44 degrees: cosine and sine without libm
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    x, y = (points[None, :] - x0) / radius, (points[:, None] - y0) / radius
    inside, pattern = INSIDE[name](cosine * x + sine * y, cosine * y - sine * x)
    coverage, ink = _pixel_mean(inside), _pixel_mean(inside & pattern)

    ends = random.uniform(0, 1, (2, 3))  # colors of the background gradient
    slope = random.uniform(0, 1, 2)
    ramp = (slope[0] * np.arange(SIDE)[None, :] + slope[1] * np.arange(SIDE)[:, None]) / (2 * SIDE)
    background = ends[0][:, None, None] * (1 - ramp) + ends[1][:, None, None] * ramp
    center = background[:, SIDE // 2, SIDE // 2]
    color = np.where(center < 0.5, center + random.uniform(0.25, 0.5, 3), center - random.uniform(0.25, 0.5, 3))
    gap = np.where(center < 0.5, center * 0.5, 0.5 + center * 0.5)  # between the stripes, squares or dots of a texture
    image = background * (1 - coverage) + gap[:, None, None] * (coverage - ink) + color[:, None, None] * ink
    image = image + random.uniform(-0.06, 0.06, image.shape)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), coverage >= 0.5


def _pixel_mean(points: np.ndarray) -> np.ndarray:
    """Fraction of each pixel's sample points that are true: (96, 96) bool -> (32, 32) in 0..1."""
    return points.reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING).sum((1, 3)) / OVERSAMPLING**2


def _square(x: np.ndarray, y: np.ndarray, half_side: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) < half_side


def _stripe(x: np.ndarray) -> np.ndarray:
    return np.floor(x * 2.5 + 0.5) % 2 == 0


# class -> function of (x, y) relative to the centre, in radii -> (inside the shape, inside its pattern if it has one)
INSIDE = {
    "disk": lambda x, y: (x * x + y * y < 0.75, True),
    "square": lambda x, y: (_square(x, y, 0.72), True),
    "triangle": lambda x, y: ((y < 0.6) & (np.abs(x) * 1.75 < y + 0.9), True),
    "ring": lambda x, y: ((x * x + y * y < 1) & (x * x + y * y > 0.36), True),
    "cross": lambda x, y: (_square(x, y, 0.95) & (np.minimum(np.abs(x), np.abs(y)) < 0.25), True),
    "star": lambda x, y: (np.sqrt(np.abs(x)) + np.sqrt(np.abs(y)) < 1.08, True),
    "moon": lambda x, y: ((x * x + y * y < 1) & ((x - 0.5) * (x - 0.5) + y * y > 0.64), True),
    "stripes": lambda x, y: (_square(x, y, 0.9), _stripe(y)),
    "checks": lambda x, y: (_square(x, y, 0.9), _stripe(x) ^ _stripe(y)),
    "dots": lambda x, y: (x * x + y * y < 1, (np.abs(x * 2 % 1 - 0.5) ** 2 + np.abs(y * 2 % 1 - 0.5) ** 2) < 0.1),
}
