"""Feature inversion: other images with the same features at a stage (Mahendran & Vedaldi 2015).

arXiv:1412.0035, equation 1. In place of its regularisers, the image is sought among those of `FourierImages`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.fourier_image import images_like_data, minimise
from analysis.inspection import Inspection, Picture, one_per_class, pictures_asked_for
from analysis.settings import Settings
from figures import style
from figures.image_grid import to_array
from figures.registry import NotDrawn, register
from network import STAGES

IMAGES = 4
STEPS = dict(zip(STAGES, (75, 75, 75, 100, 200), strict=True))  # of the optimisation; deeper stages need more
CAPTION = (
    "Each image was optimised from noise so that its features at one stage are those of the original. What differs is "
    "not determined by these features, or the search missed it: below, the squared error of the features, relative to "
    "their squares, and the peak signal-to-noise ratio to the original. The images have {side}x{side} pixels, as the "
    "original is stored; where the features determine nothing, the mean color stays."
)


@register(
    "inversion",
    "Feature inversion: what a stage keeps of an image",
    "Each image beside the original was optimised from noise to have the same features at that stage; what differs is "
    "not determined by these features, or the search missed it.",
    needs="both",
    section="maps",
    is_slow=True,
)
def draw_inversion(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure | list]]:
    """Images with the features of four test images, or of each of the user's; then the content of inversion.json."""
    asked_for, entries = pictures_asked_for(inspection, settings), []
    for pictures in [[picture] for picture in asked_for] or [one_per_class(inspection, IMAGES)]:
        rows, measured = {}, []
        for stage in tqdm(STAGES, "inversion", unit="stages", leave=False, disable=None):
            rows[stage], errors, psnr = invert(inspection, pictures, stage, settings.seed)
            for picture, error, decibels in zip(pictures, errors, psnr, strict=True):
                measured.append({"image": picture.origin, "stage": stage, "feature_error": error, "psnr": decibels})
        yield Path(pictures[0].folder, "inversion"), inversion_figure(pictures, rows, measured)
        entries += measured
    yield Path("inversion"), entries


def invert(
    inspection: Inspection, pictures: list[Picture], stage: str, seed: int
) -> tuple[Tensor, list[float], list[float]]:
    """Images whose features at a stage are nearly those of the pictures, (N, 3, S, S) in 0..1 on the CPU.

    Also the squared error of the features, relative to their squares, and the peak signal-to-noise ratio in dB.
    """
    images = torch.stack([picture.image for picture in pictures]).to(inspection.device) / 255
    found = images_like_data(inspection, len(images), images.shape[-1], seed)

    def features(pixels: Tensor) -> Tensor:
        return inspection.network.trace(inspection.preprocess(255 * pixels), stage).features[stage].float()

    def errors(pixels: Tensor) -> Tensor:
        return (features(pixels) - target).square().sum((1, 2, 3)) / squares

    with torch.no_grad():
        target = features(images)
        squares = target.square().sum((1, 2, 3))
    if not squares.all():
        raise NotDrawn(f"an image excites no channel of {stage}")
    minimise(found, lambda pixels: errors(pixels).sum(), STEPS[stage])
    with torch.no_grad():
        pixels = found()
        psnr = -10 * (pixels - images).square().mean((1, 2, 3)).log10()
        return pixels.cpu(), errors(pixels).tolist(), psnr.tolist()


@style.styled
def inversion_figure(pictures: list[Picture], stages: dict[str, Tensor], measured: list[dict]) -> Figure:
    """A row for each picture: the original, then the image found for each stage, with its two numbers."""
    originals = torch.stack([picture.image for picture in pictures]) / 255
    text = "Feature inversion: what each stage keeps of an image", CAPTION.format(side=originals.shape[-1])
    figure = style.new_figure(0.15 + 1.31 * len(pictures), *text, w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    names = [style.truncate(picture.label or Path(str(picture.origin)).stem, 20) for picture in pictures]
    numbers = [f"{style.format_percent(entry['feature_error'], 1)}, {entry['psnr']:.0f} dB" for entry in measured]
    texts = iter([*names, *numbers])  # column by column
    grid = figure.subplots(len(pictures), 1 + len(stages), squeeze=False)
    for column, (stage, images) in enumerate({"original": originals, **stages}.items()):
        grid[0, column].set_title(stage, loc="left", pad=3)
        for axes, image in zip(grid[:, column], to_array(images), strict=True):
            axes.imshow(image, interpolation="bilinear")  # as the network resizes it
            axes.text(0, -0.03, next(texts), va="top", transform=axes.transAxes)
            axes.set_axis_off()
    return figure
