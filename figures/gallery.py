"""A page of every channel's top images, reconstructions and profile: index.html, which needs no server; atlas.json.

The page is complete without a script; its own script adds search, order, filters and keys. Nothing is loaded from
elsewhere. A channel's pictures are one file, of which the page shows parts.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from analysis.channels import ChannelResult, inspect_channels
from analysis.inspection import Inspection
from analysis.scores import score
from analysis.settings import Settings
from figures.atlas import STRIP_PERCENTS, profile_stage, strip
from figures.image_grid import image_grid, to_array
from figures.output import output_file
from figures.style import describe_count, describe_rule, format_percent, html_template, unpooling_note
from figures.top9 import drawn_blocks

TILE_PIXELS = 128  # a side, as crisp on a phone as on a desktop
GAP_PIXELS = 4  # between tiles
BLOCK_GAP_PIXELS = 16  # one block of WebP, so that none shows the edge of another
WEBP_QUALITY = 75  # all five stages stay below 60 MB
CLASSES_SHOWN = 10  # as bars
PAGE = html_template(Path(__file__).with_suffix(".html"))

Window = tuple[int, int, int, int]  # (left, top, width, height) in pixels


def write_gallery(inspection: Inspection, settings: Settings, folder: Path, stages: Sequence[str]) -> list[Path]:
    """Write channels/*.webp, atlas.json and index.html: the channels asked for by number, or all, of these stages."""
    page, numbers = folder / "index.html", folder / "atlas.json"
    for file in (page, numbers):
        file.unlink(missing_ok=True)  # an earlier page would show these pictures with other numbers
    windows = sheet_windows(1 + len(settings.rules), min(settings.top, len(inspection.searched)))
    profiles = {stage: profile_stage(inspection, stage) for stage in stages}
    cards = {stage: write_cards(inspection, settings, folder, profiles[stage], stage, windows) for stage in stages}
    shared = {
        "images": len(inspection.searched),
        "classes": inspection.label_names,
        "network_classes": inspection.metadata.classes,
    }
    channels = {stage: {"channels": [card["numbers"] for card in cards[stage]]} for stage in stages}
    content = shared | {"stages": {stage: profiles[stage] | channels[stage] for stage in stages}}
    with output_file(numbers) as file:
        file.write(json.dumps(rounded(content), allow_nan=False).encode())
    scores, rules = score(inspection), " | ".join(("images", *settings.rules))
    text = PAGE.render(
        shared,
        what=f"{describe_count(inspection, settings)} of each channel: {rules}{unpooling_note(settings.unpool)}",
        checkpoint=inspection.checkpoint,
        accuracy=f", accuracy on these images {format_percent(scores.accuracy, 2)}" if scores else "",
        windows=windows,
        sheet=sheet_size(windows),
        stages=[stage_content(stage, profiles[stage], cards[stage]) for stage in stages],
        bars=bars,
    )
    with output_file(page) as file:
        file.write(text.encode(errors="replace"))  # a folder name need not be valid text
    return [*(folder / card["file"] for shown in cards.values() for card in shown), numbers, page]


def write_cards(
    inspection: Inspection, settings: Settings, folder: Path, profile: dict, stage: str, windows: Sequence[Window]
) -> list[dict]:
    """What the page shows of each living channel asked for, after the file of its pictures is written.

    profile  of the stage, by `profile_stage`
    Returns of each channel its `numbers` in atlas.json, the `file`, and the `rules` with their scales in words.
    """
    profiles, cards = profile["channels"], {}
    shown = [channel for channel in settings.channel_numbers or profiles if channel in profiles]
    similar_in_a_row = sorted(shown, key=lambda n: profiles[n]["representative"])  # they share images
    results = inspect_channels(inspection, settings, stage, similar_in_a_row)
    for result in tqdm(results, f"gallery, {stage}", len(shown), leave=False, disable=None):
        images, patches = strip(inspection, stage, result.channel, result.patches.shape[-1])
        name = f"channels/{stage}-{result.channel}.webp"
        with output_file(folder / name) as file:
            file.write(to_webp(compose(result, patches, windows)))
        numbers = profiles[result.channel] | {
            "correlation": result.correlation,
            "top": [asdict(image) for image in result.images],
            "strip": images,
        }
        rules = {rule: describe_rule(result, rule) for rule in result.reconstructions}
        cards[result.channel] = {"numbers": numbers, "file": name, "rules": rules}
    return [cards[channel] for channel in shown]


def sheet_windows(blocks: int, tiles: int) -> list[Window]:
    """Where the pictures of a channel lie in its file: blocks of tiles side by side, and the strip below.

    blocks  number of them: the patches, and the reconstructions by each rule
    tiles   in a block, in as many rows as columns
    """
    side, length = (
        count * (TILE_PIXELS + GAP_PIXELS) - GAP_PIXELS for count in (grid_columns(tiles), len(STRIP_PERCENTS))
    )
    lefts = [n * (side + BLOCK_GAP_PIXELS) for n in range(blocks)]
    return [*((left, 0, side, side) for left in lefts), (0, side + BLOCK_GAP_PIXELS, length, TILE_PIXELS)]


def grid_columns(tiles: int) -> int:
    """Of the smallest square grid that holds this number of tiles."""
    return math.ceil(math.sqrt(tiles))


def sheet_size(windows: Sequence[Window]) -> tuple[int, int]:
    """(width, height) in pixels of the file that holds these windows."""
    return max(left + width for left, _, width, _ in windows), max(top + height for _, top, _, height in windows)


def compose(result: ChannelResult, patches: Tensor, windows: Sequence[Window]) -> np.ndarray:
    """All pictures of a channel: (H, W, 4) uint8, transparent between tiles. patches: (n, 3, s, s) of the strip."""
    width, height = sheet_size(windows)
    canvas = np.zeros((height, width, 4), np.uint8)
    columns = [grid_columns(len(result.images))] * (len(windows) - 1) + [len(STRIP_PERCENTS)]
    blocks = [*drawn_blocks(result), to_array(patches)]
    for tiles, count, (left, top, _, _) in zip(blocks, columns, windows, strict=True):
        grid = image_grid(resize_tiles(tiles), count, GAP_PIXELS, fill=0)
        canvas[top : top + grid.shape[0], left : left + grid.shape[1]] = grid
    return canvas


def resize_tiles(tiles: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) in 0..1 -> opaque (n, TILE_PIXELS, TILE_PIXELS, 4) uint8; if possible by repeating pixels."""
    resampling = Image.Resampling.LANCZOS if TILE_PIXELS % tiles.shape[1] else Image.Resampling.NEAREST
    images = (Image.fromarray((tile * 255).round().astype(np.uint8)) for tile in tiles)
    return np.stack([
        np.asarray(image.resize((TILE_PIXELS, TILE_PIXELS), resampling).convert("RGBA")) for image in images
    ])  # fmt: skip


def to_webp(picture: np.ndarray) -> bytes:
    """A picture (H, W, 4) uint8 as the bytes of a WebP file: half as large as JPEG, and it can be transparent."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=WEBP_QUALITY, method=2)
    return file.getvalue()


def stage_content(stage: str, profile: dict, cards: Sequence[dict]) -> dict[str, Any]:
    """What gallery.html shows of a stage: its name, its profile by `profile_stage`, the cards of `write_cards`, and

    shown       channels that have a card
    sizes       representative -> how many of its group have a card; the largest group first
    similarity  the median channel's highest correlation with another; None without two living channels
    """
    shown = {card["numbers"]["channel"] for card in cards}
    sizes = {group["representative"]: len(shown.intersection(group["channels"])) for group in profile["groups"]}
    nearest = sorted(
        channel["neighbours"][0]["correlation"] for channel in profile["channels"].values() if channel["neighbours"]
    )
    return profile | {
        "name": stage,
        "cards": cards,
        "shown": shown,
        "sizes": dict(sorted(sizes.items(), key=lambda item: -item[1])),
        "similarity": nearest[len(nearest) // 2] if nearest else None,
    }


def bars(names: Sequence[str], values: Sequence[float | None]) -> list[tuple[str, float | None, float]]:
    """(name, value, value relative to the largest) of each class; of many classes, of those with the largest values."""
    largest = max((abs(value) for value in values if value is not None), default=0) or 1
    rows = [(name, value, (value or 0) / largest) for name, value in zip(names, values, strict=True)]
    return rows if len(rows) <= CLASSES_SHOWN else sorted(rows, key=lambda row: -abs(row[2]))[:CLASSES_SHOWN]


def rounded(content: Any) -> Any:
    """JSON content, every float in it to six significant digits."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content
