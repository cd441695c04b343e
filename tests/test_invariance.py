"""Invariance: the transformations against PIL and by hand, the distances against torchvision, the figure."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import torchvision_layers
from PIL import Image

from analysis.inspection import inspect, one_per_class
from analysis.settings import Settings
from figures import FIGURES
from figures.invariance import MEASURES, inputs_and_classes, sensitivity, statistics, transform, transformations
from network import ResNet18


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


def test_shifts_fill_with_the_mean_color_and_are_in_proportion():
    (shifts, *_), *_ = transformations(64).values()
    assert [shifts[n] for n in (0, 6, 7, 12)] == [-17, 0, 3, 17]
    image = torch.arange(1.0, 65)[:, None].expand(1, 3, 64, 64)
    for shift, column in ((17, [0] * 17 + [*range(1, 48)]), (-17, [*range(18, 65)] + [0] * 17)):
        assert transform(image, shift)[0, 0, :, 0].tolist() == pytest.approx(column, abs=1e-4)


@pytest.mark.parametrize("degrees, scale", [(10, 1.2), (90, 1.5), (200, 1.8)])
def test_rotating_and_enlarging_are_pils(degrees, scale):
    y, x = np.mgrid[:48, :48] / 48
    picture = (np.sin(7 * x + 3 * y) + np.cos(5 * y * x + 1)).astype(np.float32)  # smooth: interpolations agree
    image, side = Image.fromarray(picture), 48 / scale
    images = torch.from_numpy(picture)[None, None].expand(1, 3, -1, -1)
    inside = np.hypot(48 * y - 23.5, 48 * x - 23.5) < 22  # the border is blended with the mean color
    turned = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR))
    assert np.abs(transform(images, rotation=degrees)[0, 1].numpy() - turned)[inside].max() < 1e-4
    box = (24 - side / 2, 24 - side / 2, 24 + side / 2, 24 + side / 2)
    enlarged = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR, box))
    assert np.abs(transform(images, scale=scale)[0, 2].numpy() - enlarged).max() < 1e-4
    corner = transform(torch.ones(1, 3, 48, 48), rotation=45)[0, 0]
    assert corner[0, 0] == 0 and corner[24, 24] == pytest.approx(1)


@pytest.mark.parametrize("name, values", [("translation", (0, 13)), ("scale", (1, 1.4)), ("rotation", (0, 40, 130))])
def test_distances_are_torchvisions(name, values):
    network, numbers = ResNet18(5).eval(), (4, 0, 2)
    nodes = {"relu": "conv1", "layer4": "conv5_x", "flatten": "pooled", "fc": "logits"}
    theirs = torchvision_layers(network, nodes)
    images = torch.randn(3, 3, 48, 48)
    measured = sensitivity(network, images, torch.tensor(numbers), name, values, batch_size=2)
    for step, value in enumerate(values):
        with torch.no_grad():
            whole, changed = theirs(images), theirs(transform(images, **{name: value}))
        chances = changed["logits"].softmax(1)[range(3), numbers].double()
        assert torch.allclose(measured["probability"][:, step], chances, atol=1e-5)
        for layer in MEASURES[:3]:
            distances = (changed[layer] - whole[layer]).flatten(1).norm(dim=1) / whole[layer].flatten(1).norm(dim=1)
            assert torch.allclose(measured[layer][:, step], distances.double(), atol=1e-4)
            assert measured[layer][:, step].eq(0).all() if step == 0 else measured[layer][:, step].gt(0.01).all()


def test_features_of_zero_have_no_distance():
    network = ResNet18(5).eval()
    torch.nn.init.zeros_(network.bn1.weight)
    measured = sensitivity(network, torch.randn(1, 3, 32, 32), torch.tensor([0]), "scale", (1, 1.5), batch_size=1)
    assert measured["conv1"].isnan().all() and not measured["probability"].isnan().any()
    values = torch.tensor([[0.0, torch.nan], [4, torch.nan], [1, torch.nan], [torch.nan, torch.nan]]).double()
    assert statistics(values) == {"mean": [5 / 3, None], "low": [0.5, None], "high": [2.5, None]}


def test_the_figure_shows_the_json(inspection):
    (path, figure), (_, content) = FIGURES["invariance"].draw(inspection, Settings())
    assert str(path) == "invariance"
    assert content["classes"] == ["disk", "ring", "stripes"] and content["many"] == list(range(12))
    assert content["translation"]["values"] == [-9, -7, -6, -4, -3, -1, 0, 1, 3, 4, 6, 7, 9]  # of 32 pixels
    json.dumps(content, allow_nan=False)
    curves = [axes for axes in figure.get_axes() if len(axes.lines) > 1]
    for axes, (name, measure) in zip(curves, itertools.product(transformations(32), MEASURES), strict=True):
        shown, many = content[name], content[name]["many"][measure]
        *lines, mean = axes.lines
        assert np.allclose([line.get_ydata() for line in lines], shown["examples"][measure])
        assert all(list(line.get_xdata()) == shown["values"] for line in lines)
        assert np.allclose(mean.get_ydata(), many["mean"])
        edge = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert {edge.min(), edge.max()} == {min(many["low"]), max(many["high"])}
    tile_axes = [axes for axes in figure.get_axes() if axes.get_images()]
    labels = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in tile_axes]
    assert labels == [["\N{MINUS SIGN}9", "0", "9"], ["1", "1.4", "1.8"], ["0", "50", "100"]]
    tiles = [axes.get_images()[0].get_array() for axes in tile_axes]
    assert [tile.shape for tile in tiles] == [(3 * 34 - 2, 3 * 34 - 2, 3)] * 3
    expected = inspection.resized(inspection.images[content["images"]]).movedim(1, -1)
    for shift, column in ((-9, 0), (0, 34), (9, 68)):  # pixels of 32
        for row, image in enumerate(expected.numpy()):
            tile = np.asarray(tiles[0])[34 * row : 34 * row + 32, column : column + 32]
            rows = slice(max(shift, 0), 32 + min(shift, 0))
            assert np.allclose(tile[rows], np.roll(image, shift, 0)[rows], atol=1e-5)


def test_one_image_of_each_class_recognised_if_possible(inspection):
    logits = torch.zeros(12, 3)
    logits[1, 0] = logits[7, 1] = 9.0  # recognised
    logits[0, 0] = 0.1  # correct, but not confident
    logits[8:, 0] = logits[2, 1] = logits[4, 0] = 9.0  # wrong
    assert inspection.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    changed = replace(inspection, search=replace(inspection.search, logits=logits))
    without = replace(changed, labels=torch.tensor([0] * 4 + [1] * 8))  # a class without images
    strange = replace(changed, label_names=("a", "b", "c"))
    for searched, count, origins in (
        (changed, 5, [1, 7, 8]), (changed, 1, [1]), (without, 5, [1, 7]), (strange, 5, [1, 2]),
    ):  # fmt: skip
        assert [picture.origin for picture in one_per_class(searched, count)] == origins
    crafted, images = replace(changed, searched=torch.arange(1, 12)), [2, 5, 8]
    assert inputs_and_classes(crafted, images)[1].tolist() == [0, 1, 2]
    _, predicted = inputs_and_classes(replace(crafted, label_names=("a", "b", "c")), images)
    assert predicted.tolist() == logits[[1, 4, 7]].argmax(1).tolist()
