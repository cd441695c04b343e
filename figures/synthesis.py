"""Images that optimise a channel or a class, beside the test images that excite the channel most.

Olah et al. 2017, Feature Visualization, doi:10.23915/distill.00007: in the space of `FourierImages`, under random small
shifts, scalings and rotations, with a penalty on the coefficients, which keeps the contrast of natural images.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from analysis.channels import chosen_channels
from analysis.fourier_image import images_like_data, minimise
from analysis.inspection import Inspection
from analysis.settings import Settings
from figures import style
from figures.image_grid import draw_pictures, tile_grid, to_array
from figures.registry import NotDrawn, register
from network import STAGES

CHANNELS, CLASSES, EXAMPLES = 9, 10, 9  # at most
STEPS = 80
SHIFT, SCALE, DEGREES = 0.1, 0.1, 15.0  # most: of the image's side, of 1, and by rotation
CONTRAST_PENALTY = 0.3  # of the mean square of the coefficients
TITLE = f"Images that optimise channels of {STAGES[-1]} and classes"
CAPTION = (
    "Above: left, an image found from noise that raises the mean of the channel's map; right, the test images with "
    "its strongest units. The numbers are the strongest unit's activation in the found image, and in any of the "
    "{searched:,} test images searched; where the first is smaller, the search has failed. Below: an image found for "
    "each of {classes} classes, and its probability. A network can be certain of an image that does not look like the "
    "class: an optimised image shows what suffices for a channel or class, not what it needs. Real images explain a "
    "channel better (Borowski et al. 2020)."
)


@register(
    "synthesis",
    "Images that optimise a channel or a class",
    "Where the optimised image shares a form or color with the test images, the channel asks for it; an image can be "
    "enough for a class without looking like it.",
    stages=STAGES[-1:],
    section="maps",
    is_slow=True,
)
def draw_synthesis(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | dict]]:
    """The figure and synthesis.json. Raises NotDrawn when no image excites the channels."""
    network, top = inspection.network, inspection.search.top[STAGES[-1]]
    chosen = chosen_channels(settings, inspection.search, STAGES[-1], CHANNELS)
    channels = [channel for channel in chosen if top.scores[channel, 0] > 0][:CHANNELS]
    if not channels:
        raise NotDrawn("no image excites the channels asked for")
    best = top.scores[channels, 0].to(inspection.device)
    names = inspection.metadata.classes[:CLASSES]

    def activations(inputs: Tensor) -> Tensor:  # (n, 3, H, W) -> (n, h, w) of channel n in image n
        features = network.trace(inputs).features[STAGES[-1]].float()
        return features[torch.arange(len(channels)), torch.as_tensor(channels)]

    def log_probability(inputs: Tensor) -> Tensor:  # (n, 3, H, W) -> (n,) of class n in image n
        return network(inputs).float().log_softmax(1)[:, : len(names)].diagonal()

    excited = optimise(inspection, settings, len(channels), lambda inputs: activations(inputs).mean((1, 2)) / best)
    certain = optimise(inspection, settings, len(names), log_probability)
    with torch.no_grad():
        reached = activations(inspection.preprocess(255 * excited)).amax((1, 2)).tolist()
        probabilities = log_probability(inspection.preprocess(255 * certain)).exp().tolist()
    content = {
        "channels": [
            {"channel": channel, "activation": value, "best_test_activation": test}
            for channel, value, test in zip(channels, reached, best.tolist(), strict=True)
        ],
        "classes": [{"class": name, "probability": p} for name, p in zip(names, probabilities, strict=True)],
        "steps": STEPS,
    }
    shown = [inspection.top_images(top, channel)[:EXAMPLES] for channel in channels]
    examples = [inspection.resized(inspection.images[images]) for images in shown]
    caption = CAPTION.format(searched=len(inspection.searched), classes=len(content["classes"]))
    yield Path("synthesis"), synthesis_figure(excited.cpu(), examples, certain.cpu(), content, caption)
    yield Path("synthesis"), content


def optimise(inspection: Inspection, settings: Settings, count: int, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Images whose inputs raise an objective (count,): (count, 3, S, S) in 0..1, as large as stored."""
    found = images_like_data(inspection, count, inspection.images.shape[-1], settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)

    def loss(pixels: Tensor) -> Tensor:
        contrast = found.coefficients.square().mean((1, 2, 3, 4))
        return (CONTRAST_PENALTY * contrast - objective(move(inspection.preprocess(255 * pixels), generator))).sum()

    minimise(found, loss, STEPS)
    with torch.no_grad():
        return found()


def move(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, 3, H, W) shifted, scaled and rotated a little at random; mirrored beyond its border."""
    angles, scales, *shifts = 2 * torch.rand(4, len(inputs), generator=generator) - 1
    angles, scales = angles * math.radians(DEGREES), 1 + SCALE * scales
    cos, sin = scales * angles.cos(), scales * angles.sin()
    right, down = (2 * SHIFT * shift for shift in shifts)  # the image's sides are 2 long
    matrices = torch.stack([cos, -sin, right, sin, cos, down], 1).unflatten(1, (2, 3)).to(inputs)
    grid = F.affine_grid(matrices, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, padding_mode="reflection", align_corners=False)


@style.styled
def synthesis_figure(excited: Tensor, examples: list[Tensor], certain: Tensor, content: dict, caption: str) -> Figure:
    """Channels in three columns, each image beside its test images; classes in five."""
    heights = [0.25 + inches * math.ceil(len(images) / columns) for images, columns, inches in (
        (excited, 3, 1.34), (certain, 5, 1.5))]  # fmt: skip
    figure = style.new_figure(sum(heights), TITLE, caption, w_pad=0.04, h_pad=0.03, wspace=0.02, hspace=0)
    above, below = figure.subfigures(2, height_ratios=heights)
    style.label_part(above, "Channels: an optimised image beside the test images that excite the channel most")
    style.label_part(below, "Classes: images optimised for the probability of one class")
    pictures, titles = [], []
    for image, images, entry in zip(to_array(excited), examples, content["channels"], strict=True):
        pictures += [image, tile_grid(to_array(images))]
        titles += [f"channel {entry['channel']}: {entry['activation']:.2f}"]
        titles += [f"at most {entry['best_test_activation']:.2f}"]
    draw_pictures(above, 6, pictures, titles, pad=2, interpolation="bilinear")  # as the network resizes
    titles = [f"{style.truncate(entry['class'], 14)}: {entry['probability']:.3f}" for entry in content["classes"]]
    draw_pictures(below, 5, to_array(certain), titles, pad=2, interpolation="bilinear")
    return figure
