"""Every figure of the registry is described and documented; tests/test_visualizer.py draws them all."""

from pathlib import Path

import pytest

import visualizer
from figures import FIGURES
from figures.registry import SECTIONS


@pytest.mark.parametrize("name, entry", FIGURES.items())
def test_every_entry_says_what_it_is(name, entry):
    assert entry.title and entry.reading.endswith(".")
    assert entry.needs in ("checkpoint", "pictures", "search", "both", "either") and entry.section in SECTIONS


def test_the_documentation_follows_the_registry():
    text = (Path(__file__).parent.parent / "docs" / "figures.md").read_text(encoding="utf-8")
    for name, entry in FIGURES.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert row.endswith(f"| {entry.title} | {entry.reading} |")


def test_help_lists_every_figure(capsys):
    with pytest.raises(SystemExit):
        visualizer.parse_args(["--help"])
    text = capsys.readouterr().out
    assert all(name in text and entry.title in text for name, entry in FIGURES.items())
