"""Every figure of the registry is described, drawn and documented."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import visualizer
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES, inversion, synthesis
from figures.registry import NotDrawn
from network import STAGES

SETTINGS = Settings(score_images=2)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(inversion, "STEPS", dict.fromkeys(STAGES, 2))
    monkeypatch.setattr(synthesis, "STEPS", 2)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu", stages=STAGES)


@pytest.mark.parametrize("name, entry", FIGURES.items())
def test_every_entry_says_what_it_is_and_is_drawn(inspection, name, entry):
    assert entry.title and entry.reading.endswith(".")
    assert entry.needs in ("checkpoint", "pictures", "search", "both")
    wrong = (inspection.search.logits.argmax(1) + 1) % 3  # so that there are mistakes to draw
    inspection = replace(inspection, labels=wrong)
    if name == "evolution":  # the run kept no snapshots
        with pytest.raises(NotDrawn, match="--snapshots"):
            list(entry.draw(inspection, SETTINGS))
    else:
        drawn = [content for _, content in entry.draw(inspection, SETTINGS)]
        figures = [content for content in drawn if isinstance(content, Figure)]
        assert figures and all(figure.get_axes() for figure in figures)


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
