"""How all figures and pages look and are saved: 7 inches wide for print, text of at least 7 points."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template  # comes with torch
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.textpath import text_to_path

from analysis.channels import ChannelResult
from analysis.inspection import Inspection
from analysis.settings import Settings

WIDTH_INCHES = 7.0
DPI = 300
MARGIN_INCHES = 0.05  # left of a title and of a caption
LINE_INCHES = 0.13  # of a caption
# The first of these that is installed, then fonts for letters that it lacks.
FONTS = ("Helvetica", "Arial", "Liberation Sans", "Nimbus Sans", "DejaVu Sans")
FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Hiragino Sans", "PingFang SC", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew",
    "Noto Sans Devanagari", "Noto Sans Thai", "DejaVu Sans",
)  # fmt: skip


def font_families() -> list[str]:
    """The installed ones of FONTS and FONTS_OF_OTHER_SCRIPTS, the first of FONTS first."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [name for name in FONTS if name in installed][:1]
    return list(dict.fromkeys(families + [name for name in FONTS_OF_OTHER_SCRIPTS if name in installed]))


STYLE = {
    "pdf.fonttype": 42,  # as journals ask for
    "text.parse_math": False,  # a $ in a file or class name is a $
    "font.family": font_families(),
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "figure.titleweight": "bold",
    "figure.labelsize": 7,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
}
CAPTION_COLOR = "0.35"
ERROR_COLOR = "#b2182b"
# color and marker of each rule, in every figure
RULE_STYLE = {
    "gradient": ("#1b7837", "o"),
    "guided": ("#b35806", "s"),
    "deconvnet": ("#542788", "^"),
}
DECONVNET_NOTE = (
    "The dots are the lattice of the stride-2 shortcuts; all the deconvnet knows of the image are one pooling layer's "
    "switches."
)


def styled(draw):
    """Decorate a drawing function: it uses this file's style, whatever the user's matplotlibrc says."""

    def drawn(*args, **kwargs):
        with context(["default", STYLE]):
            return draw(*args, **kwargs)

    drawn.__name__, drawn.__doc__ = draw.__name__, draw.__doc__
    return drawn


@styled
def save(figure: Figure, file, format: str = "png", dpi: int = DPI) -> None:
    """Write a figure to a path or binary file as "png" or "pdf" (text stays text), without a creation date."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts that the font lacks show boxes
        figure.savefig(file, format=format, dpi=dpi, metadata={"CreationDate": None} if format == "pdf" else None)


def heading(figure: Figure, title: str, *caption: str) -> None:
    """A title over the whole figure, what is shown, and a caption below it, how to read it; both left-aligned.

    Layout engines make room for both; other figures leave `heading_inches`.
    """
    lines, left = _wrapped(title, caption, figure.get_figwidth()), MARGIN_INCHES / figure.get_figwidth()
    figure.suptitle("\n".join(lines[0]), x=left, ha="left")
    if caption:
        figure.supxlabel("\n".join(lines[1]), x=left, ha="left", color=CAPTION_COLOR, linespacing=1.3)


def heading_inches(title: str, *caption: str, width: float = WIDTH_INCHES) -> tuple[float, float]:
    """The height of `heading`'s title and of its caption in a figure of this width, in inches."""
    title_lines, caption_lines = _wrapped(title, caption, width)
    return 0.1 + 0.15 * len(title_lines), (0.06 + LINE_INCHES * len(caption_lines)) * bool(caption)


@styled
def _wrapped(title: str, caption: Iterable[str], width: float) -> tuple[list[str], list[str]]:
    inner = 0.97 * (width - 2 * MARGIN_INCHES)  # at some resolutions, letters are drawn up to 3 % wider
    title_lines = wrap(title, inner, STYLE["figure.titlesize"], STYLE["figure.titleweight"])
    return title_lines, [line for text in caption for line in wrap(text, inner)]


def wrap(text: str, inches: float, points: float = STYLE["font.size"], weight: str = "normal") -> list[str]:
    """The text in lines that are at most this wide; a longer word has a line of its own."""
    font = font_manager.FontProperties(family=rcParams["font.family"], weight=weight, size=points)
    lines: list[str] = []
    most = 70 * inches  # in points; not 72, because text is a few percent wider at some resolutions
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] <= most:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def text_at(figure: Figure, left: float, top: float, text: str, **how) -> None:
    """Text at a place in inches from the figure's upper left corner: centred, unless said otherwise."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"ha": "center", "va": "center"} | how)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def bare_axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """`axes_at` without ticks and frame."""
    axes = axes_at(figure, left, top, width, height)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def truncate(name: str, most: int) -> str:
    """A name in one line of at most this many letters, with an ellipsis where it was cut."""
    name = " ".join(name.split())
    return name if len(name) <= most else name[: most - 1] + "…"


def format_number(value: float | None, form: str) -> str:
    """A number in one of Python's formats; a dash for None."""
    return "–" if value is None else format(value, form)


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
    return format_number(value, ".2g" if value and abs(value) < 0.1 else ".2f")


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
    searched = len(inspection.searched)
    return f"top {min(settings.top, searched)} of {searched:,} test images"


def describe_rule(result: ChannelResult, rule: str) -> str:
    """The range of the tiles' scales, and the mean correlation of the nine."""
    scales = [image.scale[rule] for image in result.images]
    low, high = f"{min(scales):.2g}", f"{max(scales):.2g}"
    span = f"±{low}" if low == high else f"±{low} to {high}"
    return f"{span}, correlation {format_two_digits(result.correlation[rule])}"
