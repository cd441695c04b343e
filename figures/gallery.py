"""A page of every channel's top images, reconstructions and profile: index.html, which needs no server; atlas.json.

The page is complete without a script; its own script adds search, order, filters and keys. Nothing is loaded from
elsewhere. A channel's pictures are one file, of which the page shows parts.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from analysis.atlas import STRIP_PERCENTS, StageProfile, profile_stage, strip
from analysis.channels import ChannelResult, inspect_channels
from analysis.inspection import Inspection
from analysis.scores import score
from analysis.settings import Settings
from figures.gallery_card import Card, StagePage, article, group_options, section
from figures.image_grid import image_grid, to_array
from figures.style import describe_count, unpooling_note
from figures.top9 import drawn_blocks
from runtime.checkpoint import atomic_file

TILE_PIXELS = 128  # a side, as crisp on a phone as on a desktop
GAP_PIXELS = 4  # between tiles
BLOCK_GAP_PIXELS = 16  # one block of WebP, so that none shows the edge of another
WEBP_QUALITY = 75  # all five stages stay below 60 MB
CHANNELS_AT_A_TIME = 12
IMAGES_AT_A_TIME = 12
PAGE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Sheet:
    """Where the pictures of a channel lie in its file: blocks of tiles side by side, the strip below.

    blocks  number of them: the patches, and the reconstructions by each rule
    tiles   in a block, in as many rows as columns
    """

    blocks: int
    tiles: int

    @property
    def columns(self) -> int:
        """Of a block."""
        return math.ceil(math.sqrt(self.tiles))

    def windows(self) -> list[tuple[int, int, int, int]]:
        """(left, top, width, height) in pixels of every block, and of the strip."""
        side, length = extent(self.columns), extent(len(STRIP_PERCENTS))
        lefts = [n * (side + BLOCK_GAP_PIXELS) for n in range(self.blocks)]
        return [*((left, 0, side, side) for left in lefts), (0, side + BLOCK_GAP_PIXELS, length, TILE_PIXELS)]

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        windows = self.windows()
        return max(left + width for left, _, width, _ in windows), max(top + height for _, top, _, height in windows)

    def css(self) -> str:
        """The rules by which an element of class b0, b1, ..., or strip shows its window alone."""
        width, height = self.size()
        names = [*(f"b{n}" for n in range(self.blocks)), "strip"]
        return "".join(
            f".{name} .window {{ aspect-ratio: {w} / {h} }} .{name} img {{ width: {100 * width / w:.4f}%; "
            f"left: {-100 * x / w:.4f}%; top: {-100 * y / h:.4f}% }}\n"
            for name, (x, y, w, h) in zip(names, self.windows(), strict=True)
        )


def extent(tiles: int) -> int:
    """Width of a row of tiles in pixels."""
    return tiles * (TILE_PIXELS + GAP_PIXELS) - GAP_PIXELS


def write_gallery(inspection: Inspection, settings: Settings, folder: Path, stages: Sequence[str]) -> list[Path]:
    """Write index.html, atlas.json and channels/*.webp: the channels asked for by number, or all, of these stages."""
    (folder / "channels").mkdir(exist_ok=True)
    page, numbers = folder / "index.html", folder / "atlas.json"
    for file in (page, numbers):
        file.unlink(missing_ok=True)  # an earlier page would show these pictures with other numbers
    sheet = Sheet(1 + len(settings.rules), min(settings.top, len(inspection.searched)))
    pages, sections, content = [], [], {}
    for stage in stages:
        pages.append(stage_page(inspection, settings, stage))
        articles, entries = {}, {}
        for card in write_cards(inspection, settings, folder, pages[-1], sheet):
            articles[card.profile.channel] = article(card, pages[-1])
            entries[card.profile.channel] = channel_content(card)
        sections.append(section(pages[-1], [articles[channel] for channel in pages[-1].shown]))
        content[stage] = stage_content(pages[-1].profile) | {"channels": [entries[n] for n in pages[-1].shown]}
    with atomic_file(numbers) as file:
        file.write(json.dumps(header_content(inspection) | {"stages": content}, allow_nan=False).encode())
    with atomic_file(page) as file:
        text = fill_page(inspection, settings, sheet, pages, sections)
        file.write(text.encode(errors="replace"))  # a folder name need not be valid text
    return [numbers, page]


def stage_page(inspection: Inspection, settings: Settings, stage: str) -> StagePage:
    """What the stage's cards share; the channels shown are the living ones of those asked for."""
    profile = profile_stage(inspection, stage)
    shown = [channel for channel in settings.channel_numbers or profile.channels if channel in profile.channels]
    return StagePage(profile, shown, inspection.label_names, inspection.metadata.classes, len(inspection.searched))


def write_cards(
    inspection: Inspection, settings: Settings, folder: Path, page: StagePage, sheet: Sheet
) -> Iterator[Card]:
    """The card of each channel shown, after its file is written; channels of a group follow each other."""
    stage = page.profile.stage
    results = inspect_in_groups(inspection, settings, page)
    for result in tqdm(results, f"gallery, {stage}", len(page.shown), leave=False, disable=None):
        images, patches = strip(inspection, stage, result.channel, result.patches.shape[-1])
        name = f"channels/{stage}-{result.channel}.webp"
        with atomic_file(folder / name) as file:
            file.write(to_webp(compose(result, patches, sheet)))
        yield Card(result, page.profile.channels[result.channel], images, name)


def inspect_in_groups(inspection: Inspection, settings: Settings, page: StagePage) -> Iterator[ChannelResult]:
    """The result of each channel shown, a few similar ones at a time: they share images, and little memory is used."""
    settings = replace(settings, batch_size=min(settings.batch_size, IMAGES_AT_A_TIME))
    order = sorted(page.shown, key=lambda channel: page.profile.channels[channel].representative)
    for first in range(0, len(order), CHANNELS_AT_A_TIME):
        channels = order[first : first + CHANNELS_AT_A_TIME]
        yield from inspect_channels(inspection, settings, page.profile.stage, channels)


def compose(result: ChannelResult, patches: Tensor, sheet: Sheet) -> np.ndarray:
    """All pictures of a channel: (H, W, 4) uint8, transparent between tiles. patches: (n, 3, s, s) of the strip."""
    width, height = sheet.size()
    canvas = np.zeros((height, width, 4), np.uint8)
    columns = [sheet.columns] * sheet.blocks + [len(patches)]
    blocks = [*drawn_blocks(result), to_array(patches)]
    for tiles, count, (left, top, _, _) in zip(blocks, columns, sheet.windows(), strict=True):
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


def header_content(inspection: Inspection) -> dict[str, Any]:
    """What the lists of atlas.json refer to."""
    return {
        "images": len(inspection.searched),
        "classes": inspection.label_names,
        "network_classes": inspection.metadata.classes,
    }


def stage_content(profile: StageProfile) -> dict[str, Any]:
    """A stage's groups and dead channels, for atlas.json."""
    groups = zip(profile.groups.representatives, profile.groups.members, strict=True)
    return {
        "dead": profile.dead,
        "groups": [{"representative": first, "channels": members} for first, members in groups],
    }


def channel_content(card: Card) -> dict[str, Any]:
    """A channel's numbers, for atlas.json; to six digits."""
    content = asdict(card.profile) | {
        "correlation": card.result.correlation,
        "top": [asdict(image) for image in card.result.images],
        "strip": [asdict(image) for image in card.strip],
    }
    return rounded(content)


def rounded(content: Any) -> Any:
    """JSON content, every float in it to six significant digits."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def fill_page(
    inspection: Inspection, settings: Settings, sheet: Sheet, pages: Sequence[StagePage], sections: Sequence[str]
) -> str:
    """The page, with what it shows at its top."""
    scores = score(inspection)
    rules = " | ".join(("images", *settings.rules))
    what = f"{describe_count(inspection, settings)} of each channel: {rules}{unpooling_note(settings.unpool)}"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        what=escape(what),
        checkpoint=escape(str(inspection.checkpoint)),
        accuracy=f", accuracy on these images {scores.accuracy:.2%}" if scores else "",
        links=" ".join(
            f'<a href="#{page.profile.stage}">{page.profile.stage} <small>{len(page.shown)}</small></a>'
            for page in pages
        ),
        names="".join(f"<option>{escape(name)}" for name in inspection.label_names),
        groups=group_options(pages),
        windows=sheet.css(),
        sections="".join(sections),
    )
