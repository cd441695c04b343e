"""How all figures and pages look and are saved: 7 inches wide for print, text of at least 7 points."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template  # comes with torch
from matplotlib import font_manager
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context
from matplotlib.textpath import text_to_path

from analysis.channels import ChannelResult
from analysis.inspection import Inspection
from analysis.settings import Settings

warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts that no installed font has show boxes

WIDTH_INCHES = 7.0
DPI = 300
MARGIN_INCHES = 0.05  # left of a title and of a caption
TITLE_FONT = (9, "bold")  # points, weight
OTHER_SCRIPTS = (  # fonts for letters that a Latin font lacks
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Hiragino Sans", "PingFang SC", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai", "DejaVu Sans",
)  # fmt: skip
STYLE = {
    "pdf.fonttype": 42,  # as journals ask for
    "text.parse_math": False,  # a $ in a file or class name is a $
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "Nimbus Sans", "DejaVu Sans"],
    "font.family": ["sans-serif", *(name for name in OTHER_SCRIPTS if name in font_manager.get_font_names())],
    "text.hinting": "no_hinting",  # so that text is equally wide at every resolution
    "font.size": 7,
    "axes.titlesize": 7,
    "figure.labelsize": 7,
    "figure.titlesize": TITLE_FONT[0],
    "figure.titleweight": TITLE_FONT[1],
    **dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width"], 0.5),
    **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 2),
}
CAPTION_COLOR = "0.35"
ERROR_COLOR = "#b2182b"
TIGHT = dict.fromkeys(("w_pad", "h_pad", "wspace", "hspace"), 0.02)  # layout of `new_figure`
# color and marker of each rule, in every figure
RULE_STYLE = {"gradient": ("#1b7837", "o"), "guided": ("#b35806", "s"), "deconvnet": ("#542788", "^")}
DECONVNET_NOTE = (
    "The dots are the lattice of the stride-2 shortcuts; all the deconvnet knows of the image are one pooling layer's "
    "switches."
)
# A decorator of drawing functions: they use this style, whatever the user's matplotlibrc says.
styled = context(["default", STYLE])


@styled
def save(figure: Figure, file, format: str = "png", dpi: int = DPI) -> None:
    """Write a figure to a path or binary file as "png" or "pdf" (text stays text), without a creation date."""
    figure.savefig(file, format=format, dpi=dpi, metadata={"CreationDate": None} if format == "pdf" else None)


def new_figure(height: float, title: str, *caption: str, width: float = WIDTH_INCHES, **layout: float) -> Figure:
    """A figure with a title, what is shown, and a caption at the bottom, how to read it; both left-aligned.

    height, width: between title and caption, and of all, in inches. layout: settings of matplotlib's constrained layout
    """
    text_width = width - 2 * MARGIN_INCHES
    title_lines, caption_lines = wrap((title,), text_width, *TITLE_FONT), wrap(caption, text_width)
    text_height = 0.16 + 0.15 * len(title_lines) + 0.13 * len(caption_lines)
    figure = Figure((width, height + text_height), layout=ConstrainedLayoutEngine(**layout))
    how = {"x": MARGIN_INCHES / width, "ha": "left"}
    figure.suptitle("\n".join(title_lines), **how)
    figure.supxlabel("\n".join(caption_lines), **how, color=CAPTION_COLOR, linespacing=1.3)
    return figure


def label_part(part: SubFigure, text: str) -> None:
    """A bold line above a part of a figure, at the left."""
    part.suptitle(text, x=MARGIN_INCHES / part.figure.get_figwidth(), ha="left", fontsize=7, weight="bold")


@styled
def wrap(texts: Iterable[str], inches: float, points: float = 7, weight: str = "normal") -> list[str]:
    """Each text in lines that are at most this wide; a longer word has a line of its own."""
    font = font_manager.FontProperties(weight=weight, size=points)
    most, lines = 72 * 0.98 * inches, []  # points
    for text in texts:
        for n, word in enumerate(text.split()):
            longer = f"{lines[-1]} {word}" if n else word
            if n and text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] <= most:
                lines[-1] = longer
            else:
                lines.append(word)
    return lines


def truncate(name: str, most: int) -> str:
    """A name in one line of at most this many letters, with an ellipsis where it was cut."""
    name = " ".join(name.split())
    return name if len(name) <= most else name[: most - 1] + "…"


def format_number(value: float | None, form: str) -> str:
    """A number in one of Python's formats, with a minus sign instead of a hyphen; a dash for None."""
    return "–" if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def format_two_digits(value: float | None) -> str:
    """A number with two decimals; a dash for None."""
    return format_number(None if value is None else round(value, 2) + 0.0, ".2f")  # -0.00 becomes 0.00


def unpooling_note(unpool: str) -> str:
    """What titles say of unpooling that is not exact."""
    return "" if unpool == "sum" else ", overwriting unpooling"


def format_percent(share: float, decimals: int = 0) -> str:
    """0.734 as 73 %, or 73.40 % with two decimals. What would round to none or to all is <1 % or >99 %."""
    text, least = f"{share:.{decimals}%}", 10.0**-decimals
    if share > 0 and text == f"{0:.{decimals}%}":
        text = f"<{least:.{decimals}f}%"
    elif share < 1 and text == f"{1:.{decimals}%}":
        text = f">{100 - least:.{decimals}f}%"
    return text.replace("%", " %")


def format_short(value: float | None) -> str:
    """A number with two decimals, or two digits below 0.1; a dash for None."""
    return format_number(value, "#.2g" if value and abs(value) < 0.1 else ".2f")


def plural(count: int, noun: str) -> str:
    """1 epoch, 2 epochs."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def html_template(file: Path) -> Template:
    """A page to render; everything put into it is escaped, and a name without a value is an error."""
    pages = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    pages.filters |= {"percent": format_percent, "short": format_short, "two_digits": format_two_digits}
    pages.globals["plural"] = plural
    return pages.from_string(file.read_text(encoding="utf-8"))


def describe_count(inspection: Inspection, settings: Settings) -> str:
    """How many images are shown of how many, for titles."""
    return f"top {min(settings.top, len(inspection.searched))} of {len(inspection.searched):,} test images"


def describe_rule(result: ChannelResult, rule: str) -> str:
    """The range of the tiles' scales, and the mean correlation of the nine."""
    scales = [image.scale[rule] for image in result.images]
    low, high = format_short(min(scales)), format_short(max(scales))
    span = f"±{low}" if low == high else f"±{low} to {high}"
    return f"{span}, correlation {format_two_digits(result.correlation[rule])}"
