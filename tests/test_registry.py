"""Every figure of the registry is described and documented; tests/test_visualizer.py draws them all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import score_under

import visualizer
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.registry import SECTIONS
from network import STAGES


@pytest.mark.parametrize("name, entry", FIGURES.items())
def test_every_entry_says_what_it_is(name, entry):
    assert entry.title and entry.reading.endswith(".")
    assert entry.needs in ("checkpoint", "pictures", "search", "both", "either") and entry.section in SECTIONS


def test_scores_in_bf16_are_close_to_those_in_fp32(small_run, monkeypatch):
    """bf16 rounds to 8 bits, 0.4 % a layer; a wrong cast, as of the softmax or the removed blocks, costs far more."""
    settings = Settings(score_images=2)
    inspection = inspect(small_run / "model.pt", settings, "cpu", stages=STAGES)

    def curves():
        *_, (_, content) = FIGURES["faithfulness"].draw(replace(inspection), settings)  # its scores are cached
        return np.array([content["methods"][name][order] for name in content["methods"] for order in ("most", "least")])

    exact = curves()
    score_under(monkeypatch, lambda: torch.autocast("cpu", torch.bfloat16))
    rounded = curves()
    assert np.abs(rounded - exact).max() > 0  # it was bf16
    assert np.abs(rounded - exact).max() < 0.1


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
