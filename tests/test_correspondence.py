"""Correspondence: sign changes by brute force, squares by definition, the figure against the JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, torchvision_layers

from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.correspondence import (
    CHANGED_LAYERS,
    correspond,
    correspondence_figure,
    disagreement,
    part_squares,
    random_squares,
    sign_changes,
    table,
    table_in_words,
)
from figures.registry import NotDrawn

SETTINGS = Settings()
RANDOM = np.random.RandomState(0)
ROWS = ("parts", "random", "difference")


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu", stages=["conv4_x", "conv5_x"])


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of correspondence.json."""
    (path, figure), (_, content) = FIGURES["correspondence"].draw(inspection, SETTINGS)
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


def test_disagreement_by_brute_force():
    changes = torch.from_numpy(RANDOM.randint(-1, 2, (5, 40)) * RANDOM.rand(5, 40))
    different, unchanged = by_hand(changes.tolist())
    assert disagreement(changes) == pytest.approx({"different": different, "unchanged": unchanged})
    assert disagreement(torch.zeros(2, 3)) == {"different": None, "unchanged": 1.0}


def test_it_is_torchvisions_network_with_the_squares_hidden(random_network):
    nodes = {"layer3": "conv4_x", "layer4": "conv5_x", "flatten": "pooled"}
    theirs = torchvision_layers(random_network, nodes)
    images, pictures = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.zeros(4, 3, 32, 32)
    for n, picture in enumerate(pictures):
        picture[:, 4 + n : 12 + n, 8 : 18 + n] = 1
    entry = correspond(random_network, images, pictures, 7, seed=3, draws=2)
    cases = [(entry["parts"], entry["parts_change"]), *zip(entry["random"], entry["random_change"], strict=True)]
    assert len(cases) == 3
    for squares, change in cases:
        hidden = images.clone()
        for n, (top, left, side) in enumerate(squares):
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


def test_the_parts_hold_the_energy():
    pictures = torch.zeros(3, 3, 40, 40)
    pictures[0, 1, 10:14, 20:26] = 2
    pictures[1, 0, 0:2, 38:40] = -1
    found = part_squares(pictures)
    assert found[0] == (9, 20, 6) and found[1] == (0, 38, 2)
    assert found[2] == (0, 0, 40)  # nothing to hold
    for (top, left, side), picture in zip(found, pictures, strict=True):
        inside = picture[:, top : top + side, left : left + side]
        assert inside.shape == (3, side, side) and torch.equal(inside.square().sum(), picture.square().sum())


def test_random_squares_are_centred_where_the_class_is_seen():
    activation = -torch.ones(3, 4, 4)
    activation[0, 1, 2] = activation[1, :, 0] = 50.0
    random, size = np.random.default_rng(0), 64
    allowed = torch.nn.functional.interpolate(activation[:, None], (size, size), mode="bilinear")[:, 0] > 0
    centers = []
    for _ in range(50):
        squares = random_squares(activation, [(0, 0, 10), (5, 5, 9), (1, 2, 20)], size, random)
        assert [side for *_, side in squares] == [10, 9, 20]
        for n, (top, left, side) in enumerate(squares):
            assert 0 <= top <= size - side and 0 <= left <= size - side
            if n < 2 and 0 < top < size - side and 0 < left < size - side:
                assert allowed[n, top + side // 2, left + side // 2]
        centers.append(squares[2][:2])
    assert len(set(centers)) > 40  # anywhere, as this class is nowhere


def test_the_numbers_are_those_of_the_channels(drawn):
    _, content = drawn
    assert content["stage"] == "conv4_x" and 2 <= len(content["channels"]) <= 12
    for layer, rows in content["layers"].items():
        shares = {}
        for key in ("different", "unchanged"):
            parts = [entry["parts_change"][layer][key] for entry in content["channels"]]
            random = [np.mean([draw[layer][key] for draw in entry["random_change"]]) for entry in content["channels"]]
            shares[key] = np.array([parts, random])
        assert rows["unchanged"] == pytest.approx(
            dict(zip(("parts", "random"), shares["unchanged"].mean(1), strict=True))
        )
        parts, random = shares["different"]
        for row, values in (("parts", parts), ("random", random), ("difference", parts - random)):
            assert rows[row]["mean"] == pytest.approx(values.mean())
            assert rows[row]["error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    json.dumps(content, allow_nan=False)
    assert f"conv5_x {content['layers']['conv5_x']['parts']['mean']:.3f} against" in table_in_words(content)


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
    cells = {cell: texts.get_text().get_text() for cell, texts in table_axes.tables[0].get_celld().items()}
    for column, (layer, numbers) in enumerate(content["layers"].items(), 1):
        expected = [f"{numbers[row]['mean']:.3f} ± {numbers[row]['error']:.3f}" for row in ROWS]
        expected += [f"{numbers['unchanged'][row]:.1%}".replace("%", " %") for row in ROWS[:2]]
        shown = [cells[line, column].replace("\N{MINUS SIGN}", "-") for line in range(6)]
        assert shown == [layer, *expected]
        lines = [line.get_ydata() for line in pairs.lines[3 * len(channels) * (column - 1) :: 3]]
        assert np.allclose(lines[: len(channels)], [sign_changes(entry, layer)[::-1] for entry in channels])


def test_too_few_images_are_one_line(inspection):
    for count, reason in ((8, "9 test images or more: 8 are searched"), (12, "of conv4_x is excited by 9 images")):
        search = replace(inspection.search, peaks={"conv4_x": torch.eye(256)[:count]})
        with pytest.raises(NotDrawn, match=reason):
            next(FIGURES["correspondence"].draw(replace(inspection, search=search), SETTINGS))


def test_one_channel_has_no_error_and_no_text_leaves_the_figure():
    change = dict.fromkeys(CHANGED_LAYERS, {"different": 0.98765, "unchanged": 0.5})
    squares = [(0, 0, 9)] * 9
    entry = {"channel": 255, "parts": squares, "random": [squares] * 3}
    entry |= {"parts_change": change, "random_change": [change] * 3}
    nothing = entry | {"parts_change": dict.fromkeys(CHANGED_LAYERS, {"different": None, "unchanged": 1.0})}
    assert table([entry], "pooled")["difference"] == {"mean": 0, "error": None}
    assert table([nothing], "pooled")["parts"] == {"mean": None, "error": None}
    for channels in ([nothing], [entry] * 12):
        content = {"channels": channels, "layers": {layer: table(channels, layer) for layer in CHANGED_LAYERS}}
        images = RANDOM.rand(min(4, len(channels)), 9, 24, 24, 3)
        assert_inside(correspondence_figure(content, images, "guided, overwriting unpooling"))
