"""A page of every channel's top images, reconstructions and profile: index.html, which needs no server; atlas.json.

The page is complete without a script; its own script adds search, order, filters and keys. Nothing is loaded from
elsewhere. A channel's pictures are one file, of which the page shows parts.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from analysis.channels import ChannelResult, inspect_channels
from analysis.inspection import Inspection, score
from analysis.settings import Settings
from figures import style
from figures.atlas import STRIP_PERCENTS, profile_stage, strip
from figures.image_grid import image_grid, to_array
from figures.output import output_file, write_text
from figures.top9 import drawn_blocks

TILE_PIXELS = 128  # a side, as crisp on a phone as on a desktop
GAP_PIXELS = 4  # between tiles
BLOCK_GAP_PIXELS = 16  # one block of WebP, so that none shows the edge of another
WEBP_QUALITY = 75  # all five stages stay below 60 MB; half as large as JPEG, and it can be transparent
CLASSES_SHOWN = 10  # as bars
PAGE = style.html_template(Path(__file__).with_suffix(".html"))

Window = tuple[int, int, int, int]  # (left, top, width, height) in pixels


def write_gallery(inspection: Inspection, settings: Settings, folder: Path, stages: Sequence[str]) -> list[Path]:
    """Write channels/*.webp, atlas.json and index.html: the channels asked for by number, or all, of these stages.

    Returns their paths below the folder.
    """
    page, numbers = folder / "index.html", folder / "atlas.json"
    for file in (page, numbers):
        file.unlink(missing_ok=True)  # an earlier page would show these pictures with other numbers
    windows = sheet_windows(1 + len(settings.rules), min(settings.top, len(inspection.searched)))
    profiles = {stage: profile_stage(inspection, stage) for stage in stages}
    cards = {stage: write_cards(inspection, settings, folder, profiles[stage], stage, windows) for stage in stages}
    content = {"images": len(inspection.searched), "classes": inspection.label_names}
    content["network_classes"] = inspection.metadata.classes
    channels = {stage: {"channels": [card["numbers"] for card in cards[stage]]} for stage in stages}
    atlas = json.dumps(content | {"stages": {stage: profiles[stage] | channels[stage] for stage in stages}})
    rounded = json.loads(atlas, parse_float=lambda number: float(f"{float(number):.6g}"))
    write_text(numbers, json.dumps(rounded, allow_nan=False))
    scores, rules = score(inspection), " | ".join(("images", *settings.rules)) + style.unpooling_note(settings.unpool)
    right = scores and scores.labels == scores.predicted
    text = PAGE.render(
        content,
        what=f"{style.describe_count(inspection, settings)} of each channel: {rules}",
        checkpoint=inspection.checkpoint,
        accuracy=f", accuracy on these images {style.format_percent(right.mean(), 2)}" if scores else "",
        windows=windows,
        sheet=sheet_size(windows),
        stages=[stage_content(stage, profiles[stage], cards[stage]) for stage in stages],
        bars=bars,
    )
    write_text(page, text)
    return [Path(file) for file in (*(card["file"] for card in sum(cards.values(), [])), numbers.name, page.name)]


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
            sheet = Image.fromarray(compose(result, patches, windows))
            sheet.save(file, "WEBP", quality=WEBP_QUALITY, method=2)
        top = [asdict(image) for image in result.images]
        cards[result.channel] = {
            "numbers": profiles[result.channel] | {"correlation": result.correlation, "top": top, "strip": images},
            "file": name,
            "rules": {rule: style.describe_rule(result, rule) for rule in result.reconstructions},
        }
    return [cards[channel] for channel in shown]


def sheet_windows(blocks: int, tiles: int) -> list[Window]:
    """Where a channel's pictures lie in its file: blocks of as many rows of tiles as columns, and the strip below.

    blocks: number of them, of the patches and of the reconstructions by each rule
    """
    pitch = TILE_PIXELS + GAP_PIXELS
    side, length = math.ceil(math.sqrt(tiles)) * pitch - GAP_PIXELS, len(STRIP_PERCENTS) * pitch - GAP_PIXELS
    lefts = [n * (side + BLOCK_GAP_PIXELS) for n in range(blocks)]
    return [*((left, 0, side, side) for left in lefts), (0, side + BLOCK_GAP_PIXELS, length, TILE_PIXELS)]


def sheet_size(windows: Sequence[Window]) -> tuple[int, int]:
    """(width, height) in pixels of the file that holds these windows."""
    return max(left + width for left, _, width, _ in windows), max(top + height for _, top, _, height in windows)


def compose(result: ChannelResult, patches: Tensor, windows: Sequence[Window]) -> np.ndarray:
    """All pictures of a channel: (H, W, 4) uint8, transparent between tiles. patches: (n, 3, s, s) of the strip.

    Tiles are enlarged by repeating pixels, if possible.
    """
    canvas = np.zeros((*sheet_size(windows)[::-1], 4), np.uint8)
    for tiles, (left, top, width, _) in zip([*drawn_blocks(result), to_array(patches)], windows, strict=True):
        resampling = Image.Resampling.LANCZOS if TILE_PIXELS % tiles.shape[1] else Image.Resampling.NEAREST
        images = (Image.fromarray(tile) for tile in (tiles * 255).round().astype(np.uint8))
        images = [image.resize((TILE_PIXELS, TILE_PIXELS), resampling).convert("RGBA") for image in images]
        grid = image_grid(np.stack(images), round(width / (TILE_PIXELS + GAP_PIXELS)), GAP_PIXELS, fill=0)
        canvas[top : top + grid.shape[0], left : left + grid.shape[1]] = grid
    return canvas


def stage_content(stage: str, profile: dict, cards: Sequence[dict]) -> dict[str, Any]:
    """A stage for gallery.html: profile, cards, and `sizes`: how many of each representative's group have a card."""
    counts = Counter(card["numbers"]["representative"] for card in cards)
    sizes = {group["representative"]: counts[group["representative"]] for group in profile["groups"]}
    return profile | {"name": stage, "cards": cards, "sizes": sizes}


def bars(names: Sequence[str], values: Sequence[float | None]) -> list[tuple[str, float | None, float]]:
    """(name, value, value relative to the largest) of each class; of many classes, of those with the largest values."""
    largest = max((abs(value) for value in values if value is not None), default=0) or 1
    rows = [(name, value, (value or 0) / largest) for name, value in zip(names, values, strict=True)]
    return rows if len(rows) <= CLASSES_SHOWN else sorted(rows, key=lambda row: -abs(row[2]))[:CLASSES_SHOWN]
