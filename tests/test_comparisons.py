"""The pictures and numbers of the figures that compare, against the mirrors, autograd, and definitions."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_same_pictures

from analysis.activations import SearchResult, TopActivations
from analysis.channels import robust_limit
from analysis.crops import crop, crop_boxes
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES, comparison
from figures.image_grid import diverging_rgb, to_array
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


def test_rows_are_the_strongest_units_of_living_channels(inspection):
    scores = torch.zeros(512, 1)
    scores[[3, 70, 500, 8, 100, 9, 40], 0] = torch.tensor([7.0, 6, 5, 4, 3, 2, 1])
    images = torch.arange(512)[:, None] % 12
    top = TopActivations(scores, images, torch.zeros_like(images), (1, 1))
    peaks = torch.diag(scores[:, 0])  # no two channels respond to the same image, so none are similar
    crafted = replace(inspection, search=SearchResult({"conv5_x": top}, {"conv5_x": peaks}, None))
    selected = comparison.select_units(crafted, Settings(stages=("conv5_x",)))
    assert selected.channels == [3, 70, 500, 8, 100, 9]  # six rows, the highest activation first
    assert selected.images.tolist() == [channel % 12 for channel in selected.channels]
    assert comparison.row_captions(selected)[1] == "channel 70\nimage 10\nactivation 6.00"
    asked = Settings(stages=("conv5_x",), channels=(5, 40, 6, 70))
    assert comparison.select_units(crafted, asked).channels == [40, 70]
    with pytest.raises(NotDrawn, match="zero at all units searched"):
        comparison.select_units(crafted, Settings(stages=("conv5_x",), channels=(5, 6)))


@pytest.mark.parametrize(
    "name, mirrors",
    [
        ("rules", {rule: {"rule": rule} for rule in ("gradient", "guided", "deconvnet")}),
        ("branches", {branches: {"branches": branches} for branches in ("both", "residual", "shortcut")}),
    ],
)
def test_tiles_are_the_mirrors_under_its_name(inspection, units, name, mirrors):
    """Each tile on its own scale, all of a row cropped alike."""
    figure = draw(name, inspection)
    names = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    assert names[0] == "image" and set(names[1:]) == set(mirrors)
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(inspection.images[units.images]))
        signal = isolate(trace.features[units.stage], units.channels, units.positions)
        drawn = {
            key: ReverseResNet18(inspection.network, **how)(signal, units.stage, trace) for key, how in mirrors.items()
        }
    box = crop_boxes(list(drawn.values()))
    for column, key in enumerate(names[1:], 1):
        tiles = crop(drawn[key], *box)
        shown = figure.get_axes()[column :: len(names)]
        labels = [axes.get_xlabel() for axes in shown]
        for axes, label, tile, limit in zip(shown, labels, to_array(tiles), robust_limit(tiles), strict=True):
            assert_same_pictures(axes.get_images()[0].get_array() - 0.5, diverging_rgb(tile, limit) - 0.5)
            assert float(label.split(",")[0].removeprefix("±")) == pytest.approx(limit, rel=0.06)  # two digits
        if name == "branches" and key != "both":
            shares = drawn[key].flatten(1).norm(dim=1) / drawn["both"].flatten(1).norm(dim=1)
            found = [float(label.split("norm ")[1]) for label in labels]
            assert found == pytest.approx(shares.tolist(), rel=0.06)  # two digits


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [Settings(channels="all", limit=3, top=25), Settings(limit=1, top=1)],
    ids=["all channels, fewer images than top", "one image"],
)
def test_odd_but_legal(small_run, settings):
    settings = replace(settings, stages=("conv5_x",))
    inspection = inspect(small_run / "model.pt", settings, "cpu")
    for name in ("rules", "mirrors", "sanity", "confusion_matrix"):
        draw(name, inspection, settings).draw_without_rendering()
