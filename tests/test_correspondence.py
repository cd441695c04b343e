"""Correspondence: sign changes by brute force, squares by definition, the figure against the JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import torchvision_layers

from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.correspondence import CHANGED_LAYERS, correspond, random_squares
from figures.registry import NotDrawn


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu", stages=["conv4_x", "conv5_x"])


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of correspondence.json."""
    (path, figure), (_, content) = FIGURES["correspondence"].draw(inspection, Settings())
    assert str(path) == "correspondence"
    return figure, content


def by_hand(changes):
    """Shares of different and of unchanged features over all pairs of rows, one feature at a time."""
    different, unchanged = [], []
    for first, second in itertools.combinations(changes, 2):
        signs = [(np.sign(a), np.sign(b)) for a, b in zip(first, second, strict=True)]
        changed = [(a, b) for a, b in signs if a != 0 or b != 0]
        unchanged.append((len(signs) - len(changed)) / len(signs))
        if changed:
            different.append(sum(a != b for a, b in changed) / len(changed))
    return np.mean(different), np.mean(unchanged)


def test_it_is_torchvisions_network_with_the_squares_hidden(random_network):
    theirs = torchvision_layers(random_network, {"layer3": "conv4_x", "layer4": "conv5_x", "flatten": "pooled"})
    images, pictures = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.zeros(4, 3, 32, 32)
    for n, picture in enumerate(pictures):
        picture[:, 4 + n : 12 + n, 8 : 18 + n] = 1
    entry = correspond(random_network, images, pictures, 7, seed=3)
    assert entry["parts"] == [(3, 8, 10), (4, 8, 11), (4, 8, 12), (5, 8, 13)]  # around the energy
    cases = [(entry["parts"], entry["parts_change"]), *zip(entry["random"], entry["random_change"], strict=True)]
    assert len(cases) == 4
    for squares, change in cases:
        hidden = images.clone()
        for n, (top, left, side) in enumerate(squares):
            assert side == entry["parts"][n][2]
            hidden[n, :, top : top + side, left : left + side] = 0
        with torch.no_grad():
            before, after = theirs(images), theirs(hidden)
        for name in CHANGED_LAYERS:
            rest = after[name] - before[name]
            if name == "conv4_x":
                rest = rest[:, [n for n in range(256) if n != 7]]
            rest = torch.where(rest.abs() < 1e-10, 0, rest)  # rounding is not a change
            different, unchanged = by_hand(rest.flatten(1).tolist())
            assert change[name] == pytest.approx({"different": different, "unchanged": unchanged}, abs=1e-3)


def test_random_squares_are_centred_on_the_pixels_allowed():
    allowed = torch.zeros(3, 64, 64, dtype=torch.bool)
    allowed[0, 20:30, 40] = allowed[1, :, :5] = True
    random, drawn = np.random.default_rng(0), []
    for _ in range(50):
        squares = random_squares(allowed, [10, 9, 20], random)
        (top, left, _), (upper, corner, _), _ = squares
        assert 15 <= top < 25 and left == 35 and [side for *_, side in squares] == [10, 9, 20]
        assert 0 <= upper <= 55 and corner == 0  # shifted into the image
        drawn.append(squares[2])
    assert len(set(drawn)) > 40  # anywhere, as nothing is allowed


def shares(channels, layer, measure):
    """(2, channels): of each channel's parts, and the mean over its random squares."""
    parts = [entry["parts_change"][layer][measure] for entry in channels]
    return np.array([parts, [np.mean([draw[layer][measure] for draw in entry["random_change"]]) for entry in channels]])


def test_the_numbers_are_those_of_the_channels(drawn):
    _, content = drawn
    channels = content["channels"]
    assert content["stage"] == "conv4_x" and 2 <= len(channels) <= 12
    for layer, rows in content["layers"].items():
        unchanged = shares(channels, layer, "unchanged").mean(1)
        assert [rows["unchanged"][row] for row in ("parts", "random")] == pytest.approx(unchanged)
        parts, random = shares(channels, layer, "different")
        for row, values in (("parts", parts), ("random", random), ("difference", parts - random)):
            assert rows[row]["mean"] == pytest.approx(values.mean())
            assert rows[row]["error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    json.dumps(content, allow_nan=False)


def test_the_figure_shows_the_json(inspection, drawn):
    figure, content = drawn
    *rows, table_axes, pairs = figure.get_axes()
    channels, peaks = content["channels"], inspection.search.peaks["conv4_x"]
    assert len(rows) == min(4, len(channels)) > 0
    for axes, entry in zip(rows, channels, strict=False):
        assert axes.get_title("left") == f"channel {entry['channel']} of conv4_x"
        expected = peaks[:, entry["channel"]].sort(descending=True, stable=True).indices[:9]
        assert entry["images"] == inspection.searched[expected].tolist()
        strip, images = axes.get_images()[0].get_array(), inspection.resized(inspection.images[entry["images"]])
        for n, image in enumerate(images):
            left = 33 * n  # 32 pixels, and one between the images
            assert np.allclose(strip[:, left : left + 32], image.movedim(0, -1), atol=1e-6)
            _, random, _, part = axes.patches[4 * n : 4 * n + 4]
            for square, expected in ((random, entry["random"][0][n]), (part, entry["parts"][n])):
                assert (square.get_y() + 0.5, square.get_x() + 0.5 - left, square.get_width()) == expected
    assert [text.get_text() for text in pairs.texts] == list(CHANGED_LAYERS)
    cells = np.reshape([text.get_text() for text in table_axes.texts], (6, 4))
    for column, (layer, numbers) in enumerate(content["layers"].items(), 1):
        expected = [f"{numbers[row]['mean']:.3f} ± {numbers[row]['error']:.3f}" for row in list(numbers)[:3]]
        expected += [f"{share:.1%}".replace("%", " %") for share in numbers["unchanged"].values()]
        assert [cell.replace("\N{MINUS SIGN}", "-") for cell in cells[:, column]] == [layer, *expected]
        count = len(channels)  # of lines, then one of dots on either side
        *lines, left, right = [line.get_ydata() for line in pairs.lines[(column - 1) * (count + 2) :][: count + 2]]
        random_and_parts = shares(channels, layer, "different")[::-1]
        assert np.allclose(np.transpose(lines), random_and_parts) and np.allclose([left, right], random_and_parts)


def test_too_few_images_or_channels_are_one_line(inspection):
    for peaks in (torch.rand(8, 256), torch.eye(256)[:12]):
        search = replace(inspection.search, peaks={"conv4_x": peaks})
        with pytest.raises(NotDrawn, match="two channels of conv4_x that 9 searched images excite"):
            next(FIGURES["correspondence"].draw(replace(inspection, search=search), Settings()))
