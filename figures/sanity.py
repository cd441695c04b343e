"""What remains of a picture when the weights are replaced by random ones from the top down (arXiv:1810.03292)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from analysis.inspection import Inspection
from analysis.reconstruction import ALL_RULES, mirrors_by_rule, reconstruct
from analysis.sanity import randomized_networks, rank_correlation, saliency, sobel_edges
from analysis.settings import Settings
from figures.comparison import comparison_figure, select_units_above_pooling, tile_limits
from figures.image_grid import to_array
from figures.style import format_two_digits, unpooling_note

CHANNELS_SHOWN = 2


def draw_sanity(inspection: Inspection, settings: Settings) -> Iterator[tuple[Path, Figure]]:
    """Two channels under every rule, as trained and with ever more random weights; the last column is Sobel edges."""
    units = select_units_above_pooling(inspection, settings)
    channels, images = units.channels[:CHANNELS_SHOWN], inspection.images[units.images[:CHANNELS_SHOWN]]
    columns = randomized_columns(inspection, settings, units.stage, channels, images)
    shown = inspection.resized(images)
    columns["edges"] = np.concatenate([to_array(sobel_edges(shown))] * len(ALL_RULES))
    captions = {
        name: [
            format_two_digits(rank_correlation(saliency(trained), saliency(picture)))
            for trained, picture in zip(columns["trained"], each, strict=True)
        ]
        for name, each in columns.items()
    }
    patches = np.concatenate([to_array(shown)] * len(ALL_RULES))
    rows = [f"{rule}\nchannel {channel}" for rule in ALL_RULES for channel in channels]
    note = unpooling_note(settings.unpool)
    title = (
        f"{units.stage}, whole maps{note}: weights randomised from the top down, and Sobel edges",
        "below: Spearman rank correlation of absolute values with the trained network's",
    )
    yield Path("sanity"), comparison_figure(patches, columns, rows, captions, title, tile_limits(columns))


def randomized_columns(
    inspection: Inspection, settings: Settings, stage: str, channels: list[int], images: Tensor
) -> dict[str, np.ndarray]:
    """name of the network -> pictures (rules x channels, S, S, 3), reconstructed from whole maps."""
    columns = {}
    for name, network in randomized_networks(inspection.network, stage):
        mirrors = mirrors_by_rule(network, ALL_RULES, settings.unpool)
        drawn = reconstruct(network, mirrors, inspection.inputs(images), stage, channels)
        columns[name] = np.concatenate([to_array(each) for each in drawn.values()])
    return columns
