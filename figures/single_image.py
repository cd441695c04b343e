"""One image: its prediction, its feature maps, and what its strongest channels saw."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import feature_maps, strongest_channels
from analysis.crops import mean_correlation
from analysis.inspection import Picture, PictureInspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from figures import style
from figures.image_grid import BAR_COLOR, diverging_tiles, draw_pictures, hstack_images, tile_page, to_array
from figures.registry import register
from figures.style import format_percent, truncate
from network import STAGES


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
        with torch.inference_mode():
            logits = inspection.network(inspection.inputs(picture.image[None]))
        image = to_array(inspection.resized(picture.image[None])[0])
        figure = input_figure(image, picture, inspection.metadata.classes, logits.softmax(1)[0].cpu().numpy())
        yield Path(picture.folder, "input"), figure


@style.styled
def input_figure(image: np.ndarray, picture: Picture, names: Sequence[str], probabilities: np.ndarray) -> Figure:
    """A picture (H, W, 3) beside its (at most ten) most probable classes; the true one is blue."""
    best = np.argsort(-probabilities, kind="stable")[:10]
    classes, percents = [names[n] for n in best], [format_percent(probabilities[n], 1) for n in best]
    title = f"{truncate(picture.title, 60)}: predicted {truncate(classes[0], 30)}, {percents[0]}"
    caption = "Bars: predicted probability" + "; blue: the true class" * (picture.label in classes) + "."
    figure = style.new_figure(2.6, title, caption, picture.choice)
    left, axes = figure.subplots(1, 2)
    left.imshow(image, interpolation="nearest")
    left.set_axis_off()
    left.set_anchor("W")
    colors = [BAR_COLOR if name == picture.label else "0.7" for name in classes]
    axes.bar_label(axes.barh(range(len(best)), probabilities[best] * 100, color=colors), percents, padding=2)
    axes.set_yticks(range(len(best)), [truncate(name, 24) for name in classes])
    axes.set(xlim=(0, 100), xticks=[])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


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
def contributions(inspection: PictureInspection, maps: Tensor) -> tuple[Tensor, int]:
    """What channels of conv5_x, maps (C, h, w), add to the logit of the predicted class beside its bias; the class."""
    last, pooled = inspection.network.fc, maps.mean((1, 2))
    weight, bias = last.weight.cpu(), last.bias.cpu()
    predicted = int((weight @ pooled + bias).argmax())
    return weight[predicted] * pooled, predicted


@style.styled
def feature_maps_figure(
    image: np.ndarray, maps: np.ndarray, sizes: np.ndarray, stage: str, picture: Picture, target: str = ""
) -> Figure:
    """The living maps of a stage, (C, h, w), of the largest sizes; below, the image (H, W, 3) and the sizes of all.

    sizes: (C,) contributions to the logit of the class `target`, or without a target, the maps' peaks
    """
    alive = maps.max((1, 2)) > 0
    order = np.argsort(np.where(alive, -sizes, np.inf), kind="stable")[: alive.sum()]
    order = order[: 48 if target or len(maps) > 64 else 64]
    count, height, width = maps.shape
    title = f"{stage} of {truncate(picture.title, 60)}: {len(order)} of {count} maps of {height}x{width}"
    title += "" if alive.all() else f", all zero: {(~alive).sum()}"
    meaning = f"contribution to the logit of {truncate(target, 30)}" if target else "highest activation"
    caption = (
        f"Above a tile: the channel, and its {meaning}, which is also the bar below, the largest first. White is 0, "
        "black the map's peak." + " All contributions and the bias add up to the logit." * bool(target)
    )
    tiles, how = [maps[n] / maps[n].max() for n in order], {"cmap": "Greys", "vmin": 0, "vmax": 1}
    figure, below = tile_page(tiles, order, sizes[order], 1.65, title, caption, picture.choice, **how)
    left, axes = below.subplots(1, 2, width_ratios=(1, 3.5))
    left.imshow(image)
    left.set_axis_off()
    left.set_anchor("W")
    falling, ranks = np.sort(sizes)[::-1], np.arange(1, len(sizes) + 1)
    axes.plot(ranks, falling, color=BAR_COLOR, linewidth=1)
    axes.fill_between(ranks[: len(order)], falling[: len(order)], color=BAR_COLOR, alpha=0.3, linewidth=0)
    axes.axhline(0, color="0.6", linewidth=0.5)
    axes.set(xlim=(1, len(sizes)), ylabel="contribution" if target else "highest activation")
    axes.set_xlabel(f"all {len(sizes)} channels, sorted; shaded: those above")
    axes.spines[["top", "right"]].set_visible(False)
    if target:
        gains, losses, shown = falling.clip(0).sum(), falling.clip(max=0).sum(), falling[: len(order)].clip(0).sum()
        gains, shown, losses = (style.format_number(value, "+.2f") for value in (gains, shown, losses))
        note = f"for the class {gains}, of this those above {shown}; against it {losses}"
        axes.text(0.98, 0.9, note, transform=axes.transAxes, ha="right", va="top")
    return figure


@register(
    "reconstructions",
    "Strongest channels of one image",
    "Beside each feature map is the image structure that caused it, projected back to the pixels by each rule.",
    needs="pictures",
)
def draw_reconstructions(inspection: PictureInspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """The strongest channels of each picture, or those asked for: map beside reconstructions."""
    network, asked_for = inspection.network, settings.channel_numbers
    mirrors, note = mirrors_by_rule(network, settings.rules, settings.unpool), style.unpooling_note(settings.unpool)
    for picture in inspection.pictures:
        inputs, image = inspection.inputs(picture.image[None]), to_array(inspection.resized(picture.image[None])[0])
        for stage, (maps,) in feature_maps(network, inputs, settings.stages).items():
            channels = asked_for or strongest_channels(maps.amax((1, 2)))
            images = torch.zeros(len(channels), dtype=torch.int64)  # all of one image
            pictures = reconstruct(network, mirrors, inputs, stage, channels, "map", settings.batch_size, images)
            which = "channels asked for" if asked_for else "strongest channels"
            title = f"{stage} of {truncate(picture.title, 60)}: {which}, reconstructed{note}"
            figure = reconstructions_figure(image, maps[channels], pictures, channels, title, picture.choice)
            yield Path(picture.folder, f"{stage}_reconstructions"), figure


@style.styled
def reconstructions_figure(
    image: np.ndarray, maps: Tensor, pictures: dict[str, Tensor], channels: list[int], title: str, choice: str = ""
) -> Figure:
    """An image (H, W, 3); for each channel, its map (n, h, w) beside its reconstruction (n, 3, H, W) by each rule."""
    alike = ", ".join(f"{style.format_two_digits(mean_correlation(p))} ({rule})" for rule, p in pictures.items())
    caption = (
        f"From left to right: the map (white is 0, black its peak), {', '.join(pictures)} (from the whole map, each on "
        f"its own scale, grey is 0). Mean correlation between the channels' pictures: {alike}."
    )
    peaks = maps.amax((1, 2), keepdim=True)
    shades = F.interpolate(maps[None] / peaks.where(peaks > 0, 1), image.shape[:2])[0]  # nearest: units one can count
    blocks = [colormaps["Greys"](shades.numpy())[..., :3]]
    blocks += [diverging_tiles(tiles) for tiles in pictures.values()]
    height = 0.1 + math.ceil(len(channels) / 3) * (1.8 / len(blocks) + 0.2)
    figure = style.new_figure(height, title, caption, choice, w_pad=0.05, h_pad=0.03, hspace=0)
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 5.7))
    draw_pictures(left, 1, [image], ["image"], pad=3)[0].set_anchor("NW")
    labelled = zip(channels, peaks.flatten().tolist(), strict=True)
    titles = [f"channel {channel}, peak {peak:.2f}{'' if peak > 0 else ' (off)'}" for channel, peak in labelled]
    draw_pictures(right, 3, hstack_images(blocks), titles, pad=3)
    return figure
