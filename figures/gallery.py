"""A page of every channel's top images and reconstructions: index.html, which needs no server.

The page is complete without a script; its own script adds the search and the keys. Nothing is loaded from elsewhere.
"""

import io
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.activations import split_dead_channels
from analysis.channels import ChannelResult, TopImage, inspect_channels
from analysis.inspection import Inspection
from analysis.scores import score
from analysis.settings import Settings
from figures.image_grid import hstack_images, image_grid
from figures.style import unpooling_note
from figures.top9 import describe_count, describe_rule, drawn_blocks
from network import CHANNELS
from runtime.checkpoint import atomic_file

TILE_PIXELS = 96  # a side: three times that of the smallest crops
JPEG_QUALITY = 82  # 64 + 512 channels stay far below 60 MB
PAGE = Path(__file__).with_suffix(".html")


def write_gallery(inspection: Inspection, settings: Settings, folder: Path) -> Path:
    """Write index.html and channels/*.jpg: the channels asked for by number, or all, of the chosen stages."""
    (folder / "channels").mkdir(exist_ok=True)
    page = folder / "index.html"
    page.unlink(missing_ok=True)  # an earlier page would show these pictures with other numbers
    sections = []
    for stage in settings.stages:
        channels = settings.channel_numbers or range(CHANNELS[stage])
        alive, dead = split_dead_channels(inspection.search.top[stage], channels)
        articles = []
        results = inspect_channels(inspection, settings, stage, alive)
        for result in tqdm(results, f"gallery, {stage}", len(alive), leave=False, disable=None):
            picture = compose(result)
            name = f"channels/{stage}-{result.channel}.jpg"
            with atomic_file(folder / name) as file:
                file.write(to_jpeg(picture))
            articles.append(article(result, name, picture.shape))
        sections.append(section(stage, articles, dead))
    with atomic_file(page) as file:
        text = fill_page(inspection, settings, sections)
        file.write(text.encode(errors="replace"))  # a folder name need not be valid text
    return page


def compose(result: ChannelResult) -> np.ndarray:
    """Patches beside the reconstructions by each rule, each block a square of tiles: (H, W, 3) in 0..1."""
    side = int(np.ceil(len(result.images) ** 0.5))
    return hstack_images([image_grid(resize_tiles(tiles), side, gap=2) for tiles in drawn_blocks(result)])


def resize_tiles(tiles: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) in 0..1 -> TILE_PIXELS a side; by repeating pixels where that is a multiple of s."""
    resampling = Image.Resampling.LANCZOS if TILE_PIXELS % tiles.shape[1] else Image.Resampling.NEAREST
    images = (Image.fromarray((tile * 255).round().astype(np.uint8)) for tile in tiles)
    return np.stack([np.asarray(image.resize((TILE_PIXELS, TILE_PIXELS), resampling)) / 255 for image in images])


def to_jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) in 0..1 as the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def article(result: ChannelResult, image: str, shape: tuple[int, ...]) -> str:
    """A channel: its picture, a link to itself, and a table of its images. shape: (H, W, 3) of the picture."""
    stage, channel = result.stage, result.channel
    rules = "; ".join(f"{escape(rule)} {describe_rule(result, rule)}" for rule in result.reconstructions)
    exciting = [image for image in result.images if image.activation > 0]  # fewer where few images excite the channel
    names = list(dict.fromkeys(image.label for image in exciting))
    classes = ", ".join(escape(name) for name in names)
    words = escape(f"{stage} {' '.join(names)}".lower())
    peak = result.images[0].activation
    return (
        f'<article id="{stage}-{channel}" tabindex=-1 aria-label="{stage}, channel {channel}" data-words="{words}" '
        f"data-channel={channel} data-peak={peak:.4f}>"
        f'<h3><a href="#{stage}-{channel}">{stage} {channel}</a> <small>{peak:.2f} · {classes}</small></h3>'
        f'<a href="{image}"><img loading=lazy src="{image}" width={shape[1]} height={shape[0]} '
        f'alt="{stage}, channel {channel}: the strongest images ({classes}) beside their reconstructions"></a>'
        f"<p>{rules}</p><details><summary>images</summary><table><tr><th>rank<th>activation<th>image<th>class<th>"
        f"prediction{''.join(map(table_row, exciting))}</table></details></article>\n"
    )


def table_row(image: TopImage) -> str:
    """A line of a channel's table."""
    return (
        f"<tr{' class=wrong' if image.correct is False else ''}><td>{image.rank}<td>{image.activation:.2f}"
        f"<td>{image.index}<td>{escape(image.label)}<td>{escape(image.predicted)}"
    )


def section(stage: str, articles: list[str], dead: list[int]) -> str:
    """A stage; its dead channels are named."""
    note = f"<p>No image excites channel {', '.join(map(str, dead))}.</p>" if dead else ""
    return f'<section><h2 id="{stage}">{stage}: {len(articles)} channels</h2>{note}\n{"".join(articles)}</section>\n'


def fill_page(inspection: Inspection, settings: Settings, sections: list[str]) -> str:
    """The page, with what it shows at its top."""
    scores = score(inspection)
    rules = " | ".join(("images", *settings.rules))
    what = f"{describe_count(inspection, settings)} of each channel: {rules}{unpooling_note(settings.unpool)}"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        what=escape(what),
        checkpoint=escape(str(inspection.checkpoint)),
        accuracy=f", accuracy on these images {scores.accuracy:.2%}" if scores else "",
        links=" ".join(f'<a href="#{stage}">{stage}</a>' for stage in settings.stages),
        sections="".join(sections),
    )
