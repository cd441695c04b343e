"""The pictures and numbers of the figures that compare, against the mirrors, autograd, and definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures

from analysis.activations import SearchResult, TopActivations
from analysis.channels import robust_limit
from analysis.crops import crop, crop_boxes
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES, comparison
from figures.registry import NotDrawn
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings()


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def units(inspection):
    """What the comparisons show by default."""
    return comparison.select_units(inspection, SETTINGS)


def draw(name, inspection, settings=SETTINGS):
    """The figure of this name."""
    path, figure = next(FIGURES[name].draw(inspection, settings))
    assert path.name == name
    return figure


def mirrored(inspection, units, mirror):
    """The pictures of the units, by the mirror alone."""
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(inspection.images[units.images]))
        signal = isolate(trace.features[units.stage], units.channels, units.positions)
        return mirror(signal, units.stage, trace)


def shown(figure, column, rows):
    """The tiles of a column of a comparison, as values from -1 to 1 around grey."""
    across = len(figure.get_axes()) // rows
    tiles = [figure.get_axes()[row * across + column].get_images()[0].get_array() for row in range(rows)]
    return np.stack([2 * np.asarray(tile) - 1 for tile in tiles])


def own_scale(pictures):
    """(n, 3, H, W) -> (n, H, W, 3), each divided by its robust limit and clipped."""
    limits = torch.tensor(robust_limit(pictures))[:, None, None, None].clamp(min=1e-30)
    return (pictures / limits).clamp(-1, 1).permute(0, 2, 3, 1).numpy()


def test_rows_are_the_strongest_units_of_living_channels(inspection):
    scores = torch.zeros(512, 1)
    scores[[3, 70, 500, 8, 100, 9, 40], 0] = torch.tensor([7.0, 6, 5, 4, 3, 2, 1])
    images = torch.arange(512)[:, None] % 12
    top = TopActivations(scores, images, torch.zeros_like(images), (1, 1))
    peaks = torch.diag(scores[:, 0])  # no two channels respond to the same image, so none are similar
    crafted = replace(inspection, search=SearchResult({"conv5_x": top}, {"conv5_x": peaks}, None))
    found = comparison.select_units(crafted, Settings(stages=("conv5_x",)))
    assert found.channels == [3, 70, 500, 8, 100, 9]  # six rows, the highest activation first
    assert found.images.tolist() == [channel % 12 for channel in found.channels]
    assert comparison.row_captions(found)[1] == "channel 70\nimage 10\nactivation 6.00"
    asked = Settings(stages=("conv5_x",), channels=(5, 40, 6, 70))
    assert comparison.select_units(crafted, asked).channels == [40, 70]
    with pytest.raises(NotDrawn, match="no image excites"):
        comparison.select_units(crafted, Settings(stages=("conv5_x",), channels=(5, 6)))


@pytest.mark.parametrize(
    "name, mirrors",
    [
        ("rules", {rule: {"rule": rule} for rule in ("gradient", "guided", "deconvnet")}),
        (
            "branches",
            {branches: {"rule": "deconvnet", "branches": branches} for branches in ("both", "residual", "shortcut")},
        ),
    ],
)
def test_tiles_are_the_mirrors_under_its_name(inspection, units, name, mirrors):
    """Each tile on its own scale, all of a row cropped alike."""
    figure = draw(name, inspection)
    names = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    assert names[0] == "image" and set(names[1:]) == set(mirrors)
    drawn = {
        key: mirrored(inspection, units, ReverseResNet18(inspection.network, **how)) for key, how in mirrors.items()
    }
    box = crop_boxes(list(drawn.values()))
    for column, key in enumerate(names[1:], 1):
        expected = own_scale(crop(drawn[key], *box))
        assert_same_pictures(shown(figure, column, len(units.channels)), expected)
        if name == "branches" and key != "both":
            shares = drawn[key].flatten(1).norm(dim=1) / drawn["both"].flatten(1).norm(dim=1)
            labels = [axes.get_xlabel() for axes in figure.get_axes()[column :: len(names)]]
            found = [float(label.split("norm ")[1]) for label in labels]
            assert found == pytest.approx(shares.tolist(), rel=0.06)  # two digits


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [Settings(channels="all"), Settings(limit=1), Settings(top=1), Settings(limit=3, top=25)],
    ids=["all channels", "one image", "top 1", "fewer images than top"],
)
def test_odd_but_legal(small_run, settings):
    settings = replace(settings, stages=("conv5_x",))
    inspection = inspect(small_run / "model.pt", settings, "cpu")
    for name in ("rules", "mirrors", "sanity", "confusion_matrix"):
        draw(name, inspection, settings).draw_without_rendering()
