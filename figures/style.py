"""How all figures and pages look and are saved: 7 inches wide for print, text of at least 6 points."""

import textwrap
import warnings
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from analysis.channels import ChannelResult
from analysis.inspection import Inspection
from analysis.settings import Settings

WIDTH_INCHES = 7.0
DPI = 300
STYLE = {
    "pdf.fonttype": 42,  # as journals ask for
    "text.parse_math": False,  # a $ in a file or class name is a $
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
}
ERROR_COLOR = "#b2182b"
# color and marker of each rule, in every figure
RULE_STYLE = {
    "gradient": ("#1b7837", "o"),
    "guided": ("#b35806", "s"),
    "deconvnet": ("#542788", "^"),
}


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


def heading(figure: Figure, *lines: str, width: int = 105) -> None:
    """A title over the whole figure, wrapped at `width` letters."""
    figure.suptitle("\n".join(wrapped(lines, width)))


def wrapped(lines: Iterable[str], width: int = 105) -> list[str]:
    """The lines that `heading` makes of these."""
    return "\n".join(textwrap.fill(line, width) for line in lines).split("\n")


def text_at(figure: Figure, left: float, top: float, text: str, **how) -> None:
    """Text at a place in inches from the figure's upper left corner: centred, 6 points, unless said otherwise."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"fontsize": 6, "ha": "center", "va": "center"} | how)


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
