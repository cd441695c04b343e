"""Every figure of the registry is described and documented; tests/test_visualizer.py draws them all."""

from pathlib import Path

import pytest

import visualizer
from figures import FIGURES
from figures.registry import SECTIONS


def test_every_entry_says_what_it_is_in_the_documentation_and_in_the_help(capsys):
    rows = (Path(__file__).parent.parent / "docs" / "figures.md").read_text(encoding="utf-8").splitlines()
    with pytest.raises(SystemExit):
        visualizer.parse_args(["--help"])
    text = capsys.readouterr().out
    for name, entry in FIGURES.items():
        assert entry.title and entry.reading.endswith(".") and f"  {name} " in text and entry.title in text
        assert entry.needs in ("checkpoint", "pictures", "search", "both", "either") and entry.section in SECTIONS
        (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
        assert row.endswith(f"| {entry.title} | {entry.reading} |")
