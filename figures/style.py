"""How all figures look: sized for print, 7 inches wide, text of 6 points and more; and how they are saved."""

import textwrap
import warnings

from matplotlib.figure import Figure
from matplotlib.style import context

WIDTH = 7.0  # inches
DPI = 300
STYLE = {
    "pdf.fonttype": 42,  # as journals ask for
    "text.parse_math": False,  # a $ in the name of a file or class is a $
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
WRONG = "#b2182b"


def styled(draw):
    """A drawing function under this file's style, whatever the reader's matplotlibrc says."""

    def drawn(*args, **kwargs):
        with context(["default", STYLE]):
            return draw(*args, **kwargs)

    drawn.__name__, drawn.__doc__ = draw.__name__, draw.__doc__
    return drawn


@styled
def save(figure: Figure, file, format: str = "png", dpi: int = DPI) -> None:
    """Writes a figure to a path or a binary file, as "png" or, with text as text, as "pdf"; without the time of day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script the font lacks shows boxes
        figure.savefig(file, format=format, dpi=dpi, metadata={"CreationDate": None} if format == "pdf" else None)


def heading(figure: Figure, *lines: str, width: int = 105) -> None:
    """A title over the whole figure, whose long lines are broken before they leave it."""
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines))


def short(name: str, most: int) -> str:
    """A name cut to so many letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def number(value: float | None, form: str) -> str:
    """A number in a format of Python's, a dash for none."""
    return "–" if value is None else format(value, form)


def two_digits(value: float | None) -> str:
    """A number as captions give it, a dash for none."""
    return number(None if value is None else round(value, 2) + 0.0, ".2f")  # -0.00 is 0.00
