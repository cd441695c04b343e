"""One image: its prediction, its feature maps, and what its strongest channels saw."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch.nn.functional import interpolate

from analysis.activations import feature_maps, strongest_channels
from analysis.crops import mean_correlation
from analysis.inspection import Picture, PictureInspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures.image_grid import (
    BAR_COLOR,
    color_limit,
    diverging_rgb,
    draw_tile_page,
    hstack_images,
    tile_page_inches,
    to_array,
)
from figures.registry import register
from figures.style import (
    MARGIN_INCHES,
    WIDTH_INCHES,
    axes_at,
    bare_axes_at,
    format_percent,
    format_two_digits,
    heading,
    heading_inches,
    styled,
    truncate,
    unpooling_note,
)
from network import STAGES

MAPS_SHOWN = 48
ALL_SHOWN = 64  # a stage of at most this many channels is shown whole
CURVE_INCHES = 1.3  # of the image and the curve below the maps
MAP_COLORS = "Greys"  # white for 0


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
        yield Path(picture.folder, "input"), input_figure(image, picture, inspection.metadata.classes, probabilities)


@register(
    "feature_maps",
    "Feature maps of one image",
    "Each tile is a channel's activation after the ReLU, dark where the channel found its pattern; at conv5_x, the "
    "channels are those that contribute most to the predicted class.",
    needs="pictures",
    section="maps",
)
def draw_feature_maps(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The maps of the chosen stages that matter most, for each picture."""
    for picture in inspection.pictures:
        inputs, image = inspection.inputs(picture.image[None]), to_array(inspection.resized(picture.image[None])[0])
        for stage, (maps,) in feature_maps(inspection.network, inputs, settings.stages).items():
            sizes, target = maps.amax((1, 2)), ""
            if stage == STAGES[-1]:
                sizes, number = contributions(inspection, maps)
                target = inspection.metadata.classes[number]
            figure = feature_maps_figure(image, maps.contiguous().numpy(), sizes.numpy(), stage, picture, target)
            yield Path(picture.folder, f"{stage}_feature_maps"), figure


@torch.inference_mode()
def contributions(inspection: PictureInspection, maps: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What each channel of conv5_x, maps (C, h, w), adds to the logit of the predicted class, (C,); that class.

    They and the bias add up to the logit.
    """
    last, pooled = inspection.network.fc, maps.mean((1, 2))
    weight, bias = last.weight.detach().cpu(), last.bias.detach().cpu()
    predicted = int((weight @ pooled + bias).argmax())
    return weight[predicted] * pooled, predicted


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
            title = f"{stage} of {truncate(picture.title, 60)}: {which}, reconstructed{unpooling_note(settings.unpool)}"
            pictures = {rule: to_array(tiles) for rule, tiles in drawn.items()}
            shown = to_array(inspection.resized(image)[0])
            maps_shown = maps[0, channels].numpy()
            figure = reconstructions_figure(shown, maps_shown, pictures, channels, title, picture.choice)
            yield Path(picture.folder, f"{stage}_reconstructions"), figure


@styled
def input_figure(image: np.ndarray, picture: Picture, names: Sequence[str], probabilities: np.ndarray) -> Figure:
    """A picture (H, W, 3) beside its (at most ten) most probable classes; the true one is blue."""
    best, label = np.argsort(-probabilities, kind="stable")[:10], picture.label
    first = f"{truncate(names[best[0]], 30)}, {format_percent(probabilities[best[0]], 1)}"
    title = f"{truncate(picture.title, 60)}: predicted {first}"
    caption = [picture.choice] * bool(picture.choice)
    if label in (names[n] for n in best):
        caption.insert(0, "Bars: predicted probability; blue: the true class.")
    else:
        true = "" if label is None else f" The true class is {truncate(label, 30)}."
        caption.insert(0, f"Bars: predicted probability.{true}")
    upper, lower = heading_inches(title, *caption)
    figure = Figure((WIDTH_INCHES, upper + 2.6 + lower))
    heading(figure, title, *caption)
    bare_axes_at(figure, MARGIN_INCHES, upper, 2.5, 2.5).imshow(image, interpolation="nearest")
    right = axes_at(figure, 3.9, upper, 2.6, 2.5)
    colors = [BAR_COLOR if names[n] == label else "0.7" for n in best]
    bars = right.barh(range(len(best)), probabilities[best] * 100, color=colors)
    right.bar_label(bars, [format_percent(probabilities[n], 1) for n in best], padding=2)
    right.set_yticks(range(len(best)), [truncate(names[n], 24) for n in best])
    right.invert_yaxis()
    right.set_xlim(0, 100)
    right.set_xticks([])
    right.tick_params(length=0)
    right.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


@styled
def feature_maps_figure(
    image: np.ndarray, maps: np.ndarray, sizes: np.ndarray, stage: str, picture: Picture, target: str = ""
) -> Figure:
    """The living maps of a stage, (C, h, w), of the largest sizes, each on its own scale; below, the sizes of all.

    image   (H, W, 3): what the network saw
    sizes   (C,) contributions to the logit of the class `target`, or without a target, the maps' peaks
    """
    alive = maps.max((1, 2)) > 0
    order = np.argsort(np.where(alive, -sizes, np.inf), kind="stable")[: alive.sum()]
    order = order[: MAPS_SHOWN if target or len(maps) > ALL_SHOWN else ALL_SHOWN]
    size, dead = f"{maps.shape[1]}x{maps.shape[2]}", int((~alive).sum())
    name, what = truncate(target, 30), f"{len(order)} of {len(maps)} maps of {size}"
    title = f"{stage} of {truncate(picture.title, 60)}: {what}" + (f", {dead} are all zero" if dead else "")
    meaning = f"contribution to the logit of {name}" if target else "highest activation"
    what = f"Above a tile: the channel, and its {meaning}, which is also the bar below, the largest first"
    scale = "White is 0, black the map's peak."
    exact = " All contributions and the bias add up to the logit." * bool(target)
    caption = [f"{what}. {scale}{exact}", *[picture.choice] * bool(picture.choice)]
    upper, lower = heading_inches(title, *caption)
    rows = tile_page_inches(max(1, len(order)))
    figure = Figure((WIDTH_INCHES, upper + rows + CURVE_INCHES + 0.35 + lower))
    heading(figure, title, *caption)
    tiles = [maps[n] / maps[n].max() for n in order]
    draw_tile_page(figure, upper, tiles, order.tolist(), sizes[order], cmap=MAP_COLORS, vmin=0, vmax=1)
    bare_axes_at(figure, MARGIN_INCHES, upper + rows, CURVE_INCHES, CURVE_INCHES).imshow(image)
    axes = axes_at(figure, CURVE_INCHES + 0.65, upper + rows, WIDTH_INCHES - CURVE_INCHES - 0.75, CURVE_INCHES)
    falling, ranks = np.sort(sizes)[::-1], np.arange(1, len(sizes) + 1)
    axes.plot(ranks, falling, color=BAR_COLOR, linewidth=1)
    axes.fill_between(ranks[: len(order)], falling[: len(order)], color=BAR_COLOR, alpha=0.3, linewidth=0)
    axes.axhline(0, color="0.6", linewidth=0.5)
    axes.set(xlim=(1, len(sizes)), ylabel="contribution" if target else "highest activation")
    axes.set_xlabel(f"all {len(sizes)} channels, sorted; shaded: those above")
    axes.spines[["top", "right"]].set_visible(False)
    if target:
        gains, shown = falling[falling > 0].sum(), falling[: len(order)].clip(0).sum()
        against = falling[falling < 0].sum()
        note = f"for the class {gains:+.2f}, of this those above {shown:+.2f}; against it {against:+.2f}"
        axes.text(0.98, 0.9, note, transform=axes.transAxes, ha="right", va="top")
    return figure


@styled
def reconstructions_figure(
    image: np.ndarray,
    maps: np.ndarray,
    pictures: dict[str, np.ndarray],
    channels: list[int],
    title: str,
    choice: str = "",
) -> Figure:
    """An image (H, W, 3); for each channel, its map (n, h, w) beside its reconstruction (n, H, W, 3) by each rule."""
    alike = ", ".join(f"{format_two_digits(mean_correlation(tiles))} ({rule})" for rule, tiles in pictures.items())
    caption = [
        f"From left to right: the map (white is 0, black its peak), {', '.join(pictures)} (from the whole map, each on "
        f"its own scale, grey is 0). Mean correlation between the channels' pictures: {alike}.",
        *[choice] * bool(choice),
    ]
    rows, parts = math.ceil(len(channels) / 3), 1 + len(pictures)
    upper, lower = heading_inches(title, *caption)
    left, gap, label = 1.25, 0.12, 0.16
    block = (WIDTH_INCHES - MARGIN_INCHES - left) / 3 - gap
    tall = block / (parts + (parts - 1) / 24)
    figure = Figure((WIDTH_INCHES, upper + rows * (label + tall + 0.08) + lower))
    heading(figure, title, *caption)
    axes = bare_axes_at(figure, MARGIN_INCHES, upper + label, left - MARGIN_INCHES, left - MARGIN_INCHES)
    axes.imshow(image, interpolation="nearest")
    axes.set_title("image", loc="left", pad=3)
    for n, channel in enumerate(channels):
        top = upper + n // 3 * (label + tall + 0.08) + label
        axes = bare_axes_at(figure, left + gap + n % 3 * (block + gap), top, block, tall)
        peak = float(maps[n].max())
        shade = torch.from_numpy(maps[n : n + 1] / (peak or 1))[None]
        shade = interpolate(shade, image.shape[:2])[0, 0].numpy()  # by nearest neighbour: units one can count
        drawn = [diverging_rgb(picture[n], color_limit(picture[n])) for picture in pictures.values()]
        axes.imshow(hstack_images([colormaps[MAP_COLORS](shade)[:, :, :3], *drawn]), interpolation="nearest")
        axes.set_title(f"channel {channel}, peak {peak:.2f}" + ("" if peak > 0 else " (dead)"), loc="left", pad=3)
    return figure
