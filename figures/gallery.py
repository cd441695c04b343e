"""A page of every channel's strongest images and their reconstructions: plots/index.html, which needs no server.

The page is complete without a script; its own script adds the search and the keys. Nothing is loaded from elsewhere.
"""

import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.inspection import Subject
from figures.image_grid import around_grey, beside, mosaic
from figures.scores import accuracy
from figures.style import two_digits
from network import CHANNELS
from runtime.checkpoint import atomic_file

TILE = 96  # pixels a side: three for each of the smallest windows' 32
QUALITY = 82  # of the JPEG files: 64 + 512 channels stay far below 60 MB


def write_gallery(subject: Subject, folder: Path) -> Path:
    """Writes index.html and channels/*.jpg into the folder: the channels asked for, or all, of the stages asked for."""
    (folder / "channels").mkdir(exist_ok=True)
    page = folder / "index.html"
    page.unlink(missing_ok=True)  # its numbers would stand above other pictures until this one is done
    sections = []
    for stage in subject.args.stages:
        asked = subject.args.channels if isinstance(subject.args.channels, list) else range(CHANNELS[stage])
        alive, dead = subject.alive_and_dead(stage, asked)
        articles = []
        for number in tqdm(alive, f"gallery, {stage}", leave=False, disable=None):
            channel = subject.channel(stage, number)
            name = f"channels/{stage}-{number}.jpg"
            picture = composed(channel)
            with atomic_file(folder / name) as file:
                file.write(as_jpeg(picture))
            articles.append(article(stage, channel, name, picture.shape))
        sections.append(section(stage, articles, dead))
    with atomic_file(page) as file:
        file.write(whole_page(subject, sections).encode(errors="replace"))  # a folder's name may be no text
    return page


def composed(channel: dict) -> np.ndarray:
    """Patches beside the reconstructions of each rule, each block a square of tiles: (H, W, 3) in 0..1."""
    side = int(np.ceil(len(channel["entries"]) ** 0.5))
    blocks = [channel["patches"]]
    blocks += [around_grey(tiles, channel["scale"][rule]) for rule, tiles in channel["pictures"].items()]
    return beside([mosaic(np.stack(list(resized(tiles))), side, gap=2) for tiles in blocks])


def resized(tiles: np.ndarray) -> Iterator[np.ndarray]:
    """Tiles (s, s, 3) in 0..1 at TILE pixels a side; where that is a multiple of s, pixels stay sharp squares."""
    for tile in tiles:
        how = Image.Resampling.LANCZOS if TILE % len(tile) else Image.Resampling.NEAREST
        yield np.asarray(Image.fromarray((tile * 255).round().astype(np.uint8)).resize((TILE, TILE), how)) / 255


def as_jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) in 0..1 as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def article(stage: str, channel: dict, image: str, shape: tuple[int, ...]) -> str:
    """A channel: its picture, a link to itself, and a table of its images."""
    number, entries = channel["channel"], channel["entries"]
    rules = ", ".join(
        f"{escape(rule)} ±{channel['scale'][rule]:.2g}, correlation {two_digits(value)}"
        for rule, value in channel["correlation"].items()
    )
    excited = [entry for entry in entries if entry["activation"] > 0]  # fewer where few images excite the channel
    rows = "".join(
        f"<tr{' class=wrong' if entry['correct'] is False else ''}><td>{entry['rank']}"
        f"<td>{entry['activation']:.2f}<td>{entry['index']}<td>{escape(entry['label'])}<td>{escape(entry['predicted'])}"
        for entry in excited
    )
    names = list(dict.fromkeys(entry["label"] for entry in excited))
    classes = ", ".join(escape(name) for name in names)
    words = escape(f"{stage} {' '.join(names)}".lower())
    peak = entries[0]["activation"]
    return (
        f'<article id="{stage}-{number}" tabindex=-1 aria-label="{stage}, channel {number}" data-words="{words}" '
        f"data-channel={number} data-peak={peak:.4f}>"
        f'<h3><a href="#{stage}-{number}">{stage} {number}</a> <small>{peak:.2f} · {classes}</small></h3>'
        f'<a href="{image}"><img loading=lazy src="{image}" width={shape[1]} height={shape[0]} '
        f'alt="{stage}, channel {number}: the strongest images ({classes}) beside their reconstructions"></a>'
        f"<p>{rules}</p><details><summary>images</summary><table><tr><th>rank<th>activation<th>image<th>class<th>"
        f"prediction{rows}</table></details></article>\n"
    )


def section(stage: str, articles: list[str], dead: list[int]) -> str:
    """A stage, with the channels that no image excites named."""
    silent = f"<p>No image excites channel {', '.join(map(str, dead))}.</p>" if dead else ""
    return f'<section><h2 id="{stage}">{stage}: {len(articles)} channels</h2>{silent}\n{"".join(articles)}</section>\n'


def whole_page(subject: Subject, sections: list[str]) -> str:
    """The page; what it is of stands at its top."""
    found = accuracy(subject)
    reached = f", accuracy on these images {found:.2%}" if found is not None else ""
    links = " ".join(f'<a href="#{stage}">{stage}</a>' for stage in subject.args.stages)
    rules = " | ".join(("images", *subject.args.rules))
    what = f"the {subject.count} of each channel: {rules}{subject.unpooling}"
    return PAGE.format(
        what=escape(what), checkpoint=escape(str(subject.args.ckpt)), reached=reached, links=links,
        sections="".join(sections),
    )  # fmt: skip


PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>What every channel looks for</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 1660px; padding: 0 12px 40vh }}
header {{ position: sticky; top: 0; background: Canvas; padding: 8px 0; border-bottom: 1px solid GrayText; z-index: 1 }}
h1 {{ font-size: 1.2em; margin: 0 }} h2 {{ font-size: 1.1em; scroll-margin-top: 9em }}
h3 {{ font-size: 1em; margin: 0 }}
form {{ display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; margin-top: 6px }}
input {{ font: inherit; padding: 3px 6px }} input[type=number] {{ width: 6em }}
section {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 14px }}
section > h2, section > p {{ grid-column: 1 / -1; margin: 16px 0 0 }}
article {{ border: 1px solid color-mix(in srgb, GrayText 40%, transparent); border-radius: 6px; padding: 8px;
  scroll-margin-top: 9em }}
article:target, article:focus {{ outline: 3px solid #2166ac }}
article img {{ max-width: 100%; height: auto; display: block; background: #8884; margin: 4px 0 }}
article p {{ margin: 2px 0; font-size: .85em }} table {{ font-size: .85em; border-spacing: 8px 0; text-align: left }}
@media (max-width: 1000px) {{ header {{ position: static }} h2, article {{ scroll-margin-top: 8px }} }}
@media (max-width: 700px) {{ form > span {{ display: none }} }}
.wrong td:last-child {{ color: #b2182b; font-weight: 600 }}
@media (prefers-color-scheme: dark) {{ .wrong td:last-child {{ color: #f4a582 }} }}
[hidden] {{ display: none !important }}
</style>
<header><h1>What every channel looks for</h1><div>{what}; {checkpoint}{reached}.
Grey: zero, or beyond the image; red: misclassified. {links}</div>
<form role=search><label>search <input id=words type=search placeholder="channel, class" autocomplete=off></label>
<label>activation from <input id=from type=number min=0 step=any></label>
<output id=count aria-live=polite></output><span>keys: / search, j and k next and previous</span></form></header>
<main>
{sections}</main>
<script>
const articles = [...document.querySelectorAll("article")], field = id => document.getElementById(id);
function filter() {{
  const words = field("words").value.toLowerCase().split(/\\s+/).filter(Boolean), from = +field("from").value || 0;
  let count = 0;
  for (const article of articles) {{
    const own = article.dataset.words.split(" ");
    const fits = words.every(word => /^\\d+$/.test(word) ? article.dataset.channel === word || own.includes(word)
      : own.some(part => part.startsWith(word))) && +article.dataset.peak >= from;
    article.hidden = !fits;
    count += fits;
  }}
  for (const section of document.querySelectorAll("section"))
    section.hidden = section.querySelector("article") && !section.querySelector("article:not([hidden])");
  field("count").textContent = `${{count}} of ${{articles.length}} channels`;
}}
function share() {{
  const query = new URLSearchParams();
  for (const id of ["words", "from"]) if (field(id).value) query.set(id, field(id).value);
  const search = `${{query}}` ? `?${{query}}` : location.pathname;
  try {{ history.replaceState(null, "", search + location.hash); }} catch {{ }}
}}
for (const [id, value] of new URLSearchParams(location.search)) if (field(id)) field(id).value = value;
document.querySelector("form").addEventListener("input", () => {{ filter(); share(); }});
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
document.addEventListener("keydown", event => {{
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "INPUT") {{ if (event.key === "Escape") event.target.blur(); return; }}
  if (event.key === "/") {{ event.preventDefault(); field("words").focus(); }}
  if (event.key !== "j" && event.key !== "k") return;
  const shown = articles.filter(article => !article.hidden);
  const now = shown.indexOf(document.activeElement.closest("article") || document.querySelector("article:target"));
  const next = shown[Math.max(0, Math.min(shown.length - 1, now + (event.key === "j" ? 1 : -1)))];
  if (next) {{ next.focus(); next.scrollIntoView({{ block: "start" }}); }}
}});
filter();
if (location.hash) field(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
</script></html>
"""
