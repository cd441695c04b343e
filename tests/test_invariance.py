"""Invariance: the transformations against PIL and by hand, the distances against torchvision, the figure."""

import json
import math
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
import torchvision
from conftest import assert_inside
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor

from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.invariance import (
    COMPARED_LAYERS,
    MEASURES,
    TRANSFORMATIONS,
    enlarge,
    invariance_figure,
    relative_distances,
    rotate,
    sensitivity,
    shift_down,
    shift_in_pixels,
    statistics,
)
from network import ResNet18

SETTINGS = Settings()
RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure, the content of invariance.json, and what was printed."""
    with redirect_stdout(StringIO()) as printed:
        (path, figure), (_, content) = FIGURES["invariance"].draw(inspection, SETTINGS)
    assert str(path) == "invariance"
    return figure, content, printed.getvalue()


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_no_transformation_changes_nothing_at_all(name):
    transformation = TRANSFORMATIONS[name]
    coarse = replace(transformation, values=(transformation.values[-1], transformation.neutral))
    images = torch.randn(3, 3, 32, 32)
    network = ResNet18(4).eval()
    found = sensitivity(network, images, torch.tensor([0, 3, 1]), coarse, batch_size=2)
    for layer in COMPARED_LAYERS:
        assert found[layer][:, 1].eq(0).all() and found[layer][:, 0].gt(0.01).all()
    assert torch.allclose(transformation.apply(images, transformation.neutral), images, atol=1e-5)
    with torch.no_grad():
        chances = network(images).softmax(1)[[0, 1, 2], [0, 3, 1]].double()
    assert torch.allclose(found["probability"][:, 1], chances, atol=1e-6)


def test_a_shift_by_a_multiple_of_the_stride_moves_conv1(random_network):
    image = torch.zeros(1, 3, 224, 32, dtype=torch.float64)
    image[:, :, 100:120] = torch.randn(1, 3, 20, 32, dtype=torch.float64)
    with torch.no_grad():
        before = random_network.trace(image, "conv1").features["conv1"]
    rows = slice(49, 62)  # row n sees 2n - 3 to 2n + 3, and some of 100 to 119
    moved = before[:, :, :1].repeat(1, 1, 112, 1)  # row 0 sees the background alone
    moved[:, :, 52:65] = before[:, :, rows]
    expected = (moved - before).norm() / before.norm()
    shift = replace(TRANSFORMATIONS["translation"], values=(6,))
    found = sensitivity(random_network, image, torch.tensor([0]), shift)["conv1"].item()
    assert found == pytest.approx(expected.item(), rel=1e-10) and found > 0.1


def test_shifts_fill_with_the_mean_color_and_are_in_proportion():
    image = torch.arange(1.0, 65)[:, None].expand(1, 3, 64, 64)
    assert [shift_in_pixels(by, 64) for by in (60, -60, 10, 0)] == [17, -17, 3, 0]
    down, up = shift_down(image, 60)[0, 0, :, 0], shift_down(image, -60)[0, 0, :, 0]
    assert down.tolist() == [0.0] * 17 + list(range(1, 48)) and up.tolist() == list(range(18, 65)) + [0.0] * 17


@pytest.mark.parametrize("degrees, scale", [(10, 1.2), (90, 1.5), (200, 1.8)])
def test_rotating_and_enlarging_are_pils(degrees, scale):
    y, x = np.mgrid[:48, :48] / 48
    picture = (np.sin(7 * x + 3 * y) + np.cos(5 * y * x + 1)).astype(np.float32)  # smooth: interpolations agree
    image, side = Image.fromarray(picture), 48 / scale
    images = torch.from_numpy(picture)[None, None].expand(1, 3, -1, -1)
    inside = np.hypot(48 * y - 23.5, 48 * x - 23.5) < 22  # the border is blended with the mean color
    turned = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR))
    assert np.abs(rotate(images, degrees)[0, 1].numpy() - turned)[inside].max() < 1e-4
    box = (24 - side / 2, 24 - side / 2, 24 + side / 2, 24 + side / 2)
    enlarged = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR, box))
    assert np.abs(enlarge(images, scale)[0, 2].numpy() - enlarged).max() < 1e-4
    corner = rotate(torch.ones(1, 3, 48, 48), 45)[0, 0]
    assert corner[0, 0] == 0 and corner[24, 24] == pytest.approx(1)


def test_distances_are_torchvisions():
    network = ResNet18(5).eval()
    theirs = torchvision.models.resnet18(num_classes=5)
    theirs.load_state_dict(network.state_dict())
    nodes = {"relu": "conv1", "layer4": "conv5_x", "flatten": "pooled", "fc": "logits"}
    theirs = create_feature_extractor(theirs.eval(), nodes)
    images = torch.randn(3, 3, 48, 48)
    turn = replace(TRANSFORMATIONS["rotation"], values=(0, 40, 130))
    found = sensitivity(network, images, torch.tensor([4, 0, 2]), turn, batch_size=2)
    for n, number in enumerate((4, 0, 2)):
        with torch.no_grad():
            whole = theirs(images[n : n + 1])
            for step, degrees in enumerate(turn.values):
                changed = theirs(rotate(images[n : n + 1], degrees))
                chance = changed["logits"][0].softmax(0)[number].item()
                assert found["probability"][n, step].item() == pytest.approx(chance, abs=1e-5)
                for layer in COMPARED_LAYERS:
                    distance = (changed[layer] - whole[layer]).norm() / whole[layer].norm()
                    assert found[layer][n, step].item() == pytest.approx(distance.item(), abs=1e-4)


def test_features_of_zero_have_no_distance():
    features = torch.tensor([[3.0, 4], [1, 0], [0, 0]])
    found = relative_distances(features, torch.tensor([[0.0, 4], [0, 0], [0, 0]]))
    assert found[0] == 0.75 and found[1:].isnan().all()
    values = torch.tensor([[0.0, math.nan], [4.0, math.nan], [1.0, math.nan], [math.nan, math.nan]]).double()
    found = statistics(values)
    assert found == {"mean": [5 / 3, None], "low": [0.5, None], "high": [2.5, None]}


def test_the_figure_shows_the_json(inspection, drawn):
    figure, content, printed = drawn
    assert printed == "invariance: 3 images instead of 5, the searched images have no more classes\n"
    assert content["classes"] == ["disk", "ring", "stripes"] and content["many"] == list(range(12))
    curves = [axes for axes in figure.get_axes() if len(axes.lines) > 1]
    assert len(curves) == 12
    for row, name in enumerate(TRANSFORMATIONS):
        found = content[name]
        assert found["many_values"] == found["values"][:: TRANSFORMATIONS[name].every]
        for column, measured in enumerate(MEASURES):
            *lines, mean = curves[4 * row + column].lines
            assert np.allclose([line.get_ydata() for line in lines], found["examples"][measured])
            assert all(list(line.get_xdata()) == found["values"] for line in lines)
            assert np.allclose(mean.get_ydata(), found["many"][measured]["mean"])
            (band,) = curves[4 * row + column].collections
            edge = band.get_paths()[0].vertices[:, 1]
            assert {edge.min(), edge.max()} == {
                min(found["many"][measured]["low"]),
                max(found["many"][measured]["high"]),
            }
    assert content["translation"]["values"] == [-9, -7, -6, -4, -3, -1, 0, 1, 3, 4, 6, 7, 9]  # of 32 pixels
    json.dumps(content, allow_nan=False)
    tiles = [axes.get_images()[0].get_array() for axes in figure.get_axes() if axes.get_images()]
    assert [tile.shape for tile in tiles] == [(3 * 34 - 2, 3 * 34 - 2, 3)] * 3
    expected = inspection.resized(inspection.images[content["images"]]).movedim(1, -1)
    for shift, column in ((-9, 0), (0, 34), (9, 68)):  # pixels of 32
        for row, image in enumerate(expected.numpy()):
            tile = np.asarray(tiles[0])[34 * row : 34 * row + 32, column : column + 32]
            rows = slice(max(shift, 0), 32 + min(shift, 0))
            assert np.allclose(tile[rows], np.roll(image, shift, 0)[rows], atol=1e-5)


def test_no_text_leaves_the_figure():
    content = {"classes": ["American_Staffordshire_Terrier <b>$x$"] * 5, "many": list(range(200))}
    for name, transformation in TRANSFORMATIONS.items():
        values, rows = list(transformation.values), RANDOM.rand(5, len(transformation.values)) * 9
        summary = statistics(torch.from_numpy(rows))
        content[name] = {
            "values": values,
            "examples": dict.fromkeys(MEASURES, rows),
            "many_values": values,
            "many": dict.fromkeys(MEASURES, summary),
        }
    assert_inside(invariance_figure(content, {name: RANDOM.rand(5, 3, 8, 8, 3) for name in TRANSFORMATIONS}))
