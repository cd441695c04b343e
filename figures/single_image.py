"""One image: its prediction, its feature maps, and what its strongest channels saw."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch.nn.functional import interpolate

from analysis.activations import feature_maps, strongest_channels
from analysis.inspection import PictureInspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import color_limit, diverging_rgb, draw_numbered_grid, hstack_images, to_array
from figures.registry import register
from figures.style import WIDTH_INCHES, heading, styled, truncate, unpooling_note


@register(
    "input",
    "Input image and prediction",
    "The bars are the predicted probabilities of the ten most probable classes; the true class is blue.",
    needs="pictures",
    section="maps",
)
def draw_input(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """Each picture with the network's prediction."""
    for picture in inspection.pictures:
        inputs = inspection.inputs(picture.image[None])
        with torch.inference_mode():
            probabilities = inspection.network(inputs).softmax(1)[0].cpu().numpy()
        image = to_array(inspection.resized(picture.image[None])[0])
        figure = input_figure(image, picture.title, inspection.metadata.classes, probabilities, picture.label)
        yield Path(picture.folder, "input"), figure


@register(
    "feature_maps",
    "Feature maps of one image",
    "Each tile is a channel's activation after the ReLU: bright where the channel found its pattern.",
    needs="pictures",
    section="maps",
)
def draw_feature_maps(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """All maps of the chosen stages, for each picture."""
    for picture in inspection.pictures:
        inputs = inspection.inputs(picture.image[None])
        for stage, maps in feature_maps(inspection.network, inputs, settings.stages).items():
            figure = feature_maps_figure(maps[0].contiguous().numpy(), f"{stage} of {picture.title}")
            yield Path(picture.folder, f"{stage}_feature_maps"), figure


@register(
    "reconstructions",
    "Strongest channels of one image",
    "Beside each feature map is the image structure that caused it, projected back to the pixels by each rule.",
    needs="pictures",
)
def draw_reconstructions(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The strongest channels of each picture, or those asked for: map beside reconstructions."""
    mirrors = mirrors_by_rule(inspection.network, settings.rules, settings.unpool)
    for picture in inspection.pictures:
        image = picture.image[None]
        inputs = inspection.inputs(image)
        for stage, maps in feature_maps(inspection.network, inputs, settings.stages).items():
            channels = settings.channel_numbers or strongest_channels(maps[0].amax((1, 2)))
            network, images = inspection.network, torch.zeros(len(channels), dtype=torch.int64)  # all of one image
            drawn = reconstruct(network, mirrors, inputs, stage, channels, "map", settings.batch_size, images)
            which = "channels asked for" if settings.channel_numbers else "strongest channels"
            note = unpooling_note(settings.unpool)
            title = f"{stage} of {picture.title}: {which}, reconstructed from their whole maps{note}"
            pictures = {rule: to_array(tiles) for rule, tiles in drawn.items()}
            shown = to_array(inspection.resized(image)[0])
            figure = reconstructions_figure(shown, maps[0, channels].numpy(), pictures, channels, title)
            yield Path(picture.folder, f"{stage}_reconstructions"), figure


@styled
def input_figure(
    image: np.ndarray, title: str, names: Sequence[str], probabilities: np.ndarray, label: str | None
) -> Figure:
    """A picture (H, W, 3) beside its (at most ten) most probable classes; the true one is blue."""
    figure = Figure((WIDTH_INCHES * 0.8, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    left.imshow(image, interpolation="nearest")
    left.set_title(textwrap.fill(title, 40))
    left.set_axis_off()
    best = np.argsort(-probabilities, kind="stable")[:10]
    colors = ["#2166ac" if label is None or names[n] == label else "0.7" for n in best]
    bars = right.barh(range(len(best)), probabilities[best] * 100, color=colors)
    right.bar_label(bars, [f"{100 * probabilities[n]:.1f}" for n in best], padding=2)
    right.set_yticks(range(len(best)), [truncate(names[n], 30) for n in best])
    right.invert_yaxis()
    right.set_xlim(0, 112)
    right.set_xlabel("predicted probability (%)")
    if label in (names[n] for n in best):
        right.set_title("prediction (blue: the true class)")
    else:
        right.set_title("prediction" if label is None else f"prediction (true class: {truncate(label, 25)})")
    right.spines[["top", "right"]].set_visible(False)
    return figure


@styled
def feature_maps_figure(maps: np.ndarray, title: str) -> Figure:
    """All maps of a stage, (C, h, w), as one picture on one scale; channel = row number + column number."""
    columns = 8 if len(maps) <= 64 else 2 ** math.ceil(math.log2(len(maps)) / 2)
    rows = math.ceil(len(maps) / columns)
    limit = float(np.quantile(maps, 0.998)) or color_limit(maps) or 1.0
    figure = Figure((WIDTH_INCHES, 0.65 + (WIDTH_INCHES - 1) * rows / columns), layout="compressed")
    axes = figure.subplots()
    picture = draw_numbered_grid(axes, maps, columns, cmap="magma", vmin=0, vmax=limit, fill=np.nan)
    dead = int((maps.max((1, 2)) == 0).sum())
    heading(
        figure,
        f"{title}: {len(maps)} maps of {maps.shape[1]}x{maps.shape[2]}, {dead} of them all zero",
        "channel = row number + column number",
    )
    figure.colorbar(picture, ax=axes, shrink=0.8, extend="max", label="activation after the ReLU", aspect=40)
    return figure


@styled
def reconstructions_figure(
    image: np.ndarray, maps: np.ndarray, pictures: dict[str, np.ndarray], channels: list[int], title: str
) -> Figure:
    """An image (H, W, 3); for each channel, its map (n, h, w) beside its reconstruction (n, H, W, 3) by each rule."""
    rows = math.ceil(len(channels) / 3)
    parts = 1 + len(pictures)
    tile = WIDTH_INCHES * 0.84 / 3 / parts
    figure = Figure((WIDTH_INCHES, 0.5 + rows * (tile + 0.22)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02, hspace=0.02)
    heading(
        figure,
        title,
        "map (0 to its peak) | " + " | ".join(pictures) + ", each on its own scale around grey",
    )
    left, right = figure.subfigures(1, 2, width_ratios=(0.16, 0.84))
    axes = left.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_title("image", loc="left")
    axes.set_axis_off()
    for n, axes in enumerate(right.subplots(rows, 3, squeeze=False).flatten()):
        axes.set_axis_off()
        if n < len(channels):
            peak = float(maps[n].max())
            shade = torch.from_numpy(maps[n : n + 1] / (peak or 1))[None]
            shade = interpolate(shade, image.shape[:2])[0, 0].numpy()  # by nearest neighbour: units one can count
            drawn = [diverging_rgb(picture[n], color_limit(picture[n])) for picture in pictures.values()]
            axes.imshow(hstack_images([colormaps["magma"](shade)[:, :, :3], *drawn]), interpolation="nearest")
            axes.set_title(f"channel {channels[n]}, peak {peak:.2f}" + ("" if peak > 0 else " (dead)"), loc="left")
    return figure
