"""The pictures and numbers of the figures that compare, against the mirrors and definitions."""

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
from figures.style import format_percent
from reverse_network import BRANCHES, RULES, ReverseResNet18, isolate

SETTINGS = Settings()


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


def test_rows_are_the_strongest_units_of_living_channels(inspection):
    scores = torch.zeros(512, 1)
    scores[[3, 70, 500, 8, 100, 9, 40], 0] = torch.tensor([7.0, 6, 5, 4, 3, 2, 1])
    images = torch.arange(512)[:, None] % 12
    top = TopActivations(scores, images, torch.zeros_like(images), (1, 1))
    peaks = torch.diag(scores[:, 0])  # no two channels respond to the same image, so none are similar
    crafted = replace(inspection, search=SearchResult({"conv5_x": top}, {"conv5_x": peaks}, None))
    settings = Settings(stages=("conv5_x",))
    selected = comparison.select_units(crafted, settings)
    assert selected.channels == [3, 70, 500, 8, 100, 9]  # six rows, the highest activation first
    assert selected.images.tolist() == [channel % 12 for channel in selected.channels]
    assert comparison.row_captions(selected)[1] == "channel 70\nimage 10\nactivation 6.00"
    assert comparison.select_units(crafted, replace(settings, channels=(5, 40, 6, 70))).channels == [40, 70]
    with pytest.raises(NotDrawn, match="zero at all units searched"):
        comparison.select_units(crafted, replace(settings, channels=(5, 6)))


def test_comparisons_need_a_stage_above_the_pooling(inspection):
    for name in ("rules", "branches", "mirrors", "sanity"):
        with pytest.raises(NotDrawn, match="one of the --stages conv2_x"):
            next(FIGURES[name].draw(inspection, Settings(stages=("conv1",))))


def assert_shown(axes, tiles):
    """These Axes show these tiles, each on its own scale."""
    for ax, tile, limit in zip(axes, to_array(tiles), robust_limit(tiles), strict=True):
        assert_same_pictures(ax.get_images()[0].get_array() - 0.5, diverging_rgb(tile, limit) - 0.5)


@pytest.mark.parametrize("name, rows", [("rules", 6), ("branches", 3)])
def test_tiles_are_the_mirrors_under_its_name(inspection, name, rows):
    """Each tile on its own scale, all of a row cropped alike."""
    _, figure = next(FIGURES[name].draw(inspection, SETTINGS))
    names = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    units, drawn = comparison.select_units(inspection, SETTINGS, rows), {}
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(inspection.images[units.images]))
        signal = isolate(trace.features[units.stage], units.channels, units.positions)
        for shown in names[1:4]:
            how = {"rule": shown} if name == "rules" else {"rule": "guided", "branches": shown}
            drawn[shown] = ReverseResNet18(inspection.network, **how)(signal, units.stage, trace)
    assert names[0] == "image" and drawn.keys() == set(RULES if name == "rules" else BRANCHES)
    box = crop_boxes(list(drawn.values()))
    for column, (shown, pictures) in enumerate(drawn.items(), 1):
        tiles, axes = crop(pictures, *box), figure.get_axes()[column :: len(names)]
        assert_shown(axes, tiles)
        labels = [ax.get_xlabel().split("\n") for ax in axes]
        limits = [float(label[0].removeprefix("±")) for label in labels]
        assert limits == pytest.approx(robust_limit(tiles), rel=0.06)  # two digits
        if name == "branches" and shown != "both":
            shares = (pictures.flatten(1).norm(dim=1) / drawn["both"].flatten(1).norm(dim=1)).tolist()
            texts = [label[1].removesuffix(" of the norm") for label in labels]
            assert texts == [format_percent(share, 1 if share else 0) for share in shares]
    if name == "branches":  # the last column is the same picture, enlarged
        tiles = crop(drawn["shortcut"], *crop_boxes([drawn["shortcut"]]))
        assert_shown(figure.get_axes()[4 :: len(names)], tiles)
