"""Which figures are drawn, why the others are not, and what those drawn need."""

from collections.abc import Iterable, Sequence

from figures import FIGURES
from network import STAGES

SLOW = "it can take minutes on a CPU and is drawn only when --figures names it"


def choose_figures(
    asked: Sequence[str] | None, has_own_pictures: bool, has_gallery: bool
) -> tuple[list[str], dict[str, str]]:
    """The names of the figures to draw, and for every other one the reason why it is not.

    By default all are drawn, except the slow ones, and those that search the test images if the pictures are the
    user's own. Those that explain these pictures are drawn if the gallery searches the test images anyway.
    """
    if asked:
        return list(dict.fromkeys(asked)), {name: "not asked for" for name in FIGURES if name not in asked}
    skipped = () if not has_own_pictures else ("search",) if has_gallery else ("search", "both")
    reason = "with --images, the test images are searched only for what --figures names"
    left_out = {name: SLOW for name, entry in FIGURES.items() if entry.is_slow}
    left_out |= {name: reason for name, entry in FIGURES.items() if entry.needs in skipped and not entry.is_slow}
    return [name for name in FIGURES if name not in left_out], left_out


def needs_of(names: Iterable[str]) -> set[str]:
    """What these figures need: "checkpoint", "pictures", "search"."""
    needs = {FIGURES[name].needs for name in names}
    return needs | ({"pictures", "search"} if "both" in needs else set())


def searched_stages(names: Iterable[str], stages: Sequence[str]) -> tuple[str, ...]:
    """These stages, and those that a figure always shows, from the image on."""
    wanted = {*stages, *(stage for name in names for stage in FIGURES[name].stages)}
    return tuple(stage for stage in STAGES if stage in wanted)
