"""Correspondence: sign changes by brute force, squares by definition, the figure against the JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from conftest import assert_inside
from torchvision.models.feature_extraction import create_feature_extractor

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


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu", stages=["conv4_x", "conv5_x"])


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of correspondence.json."""
    (path, figure), (_, content) = FIGURES["correspondence"].draw(inspection, SETTINGS)
    assert str(path) == "correspondence"
    return figure, content


def spots(count, size=32):
    """Pictures (count, 3, size, size) that are zero except for a bright rectangle."""
    pictures = torch.zeros(count, 3, size, size, dtype=torch.float64)
    for n, picture in enumerate(pictures):
        picture[:, 4 + n : 12 + n, 8 : 18 + n] = 1 + n
    return pictures


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
    found = disagreement(changes)
    assert (found["different"], found["unchanged"]) == pytest.approx(by_hand(changes.tolist()))
    found = disagreement(torch.tensor([[1.0, -2, 0, 0], [3, 5, 0, 2], [0.5, -1, 0, -1]]))
    assert found == pytest.approx({"different": (2 / 3 + 1 / 3 + 2 / 3) / 3, "unchanged": 0.25})
    assert disagreement(torch.zeros(2, 3)) == {"different": None, "unchanged": 1.0}


@pytest.mark.parametrize("stage", ["conv4_x", "conv5_x"])
def test_it_is_torchvisions_network_with_the_squares_hidden(random_network, stage):
    theirs = torchvision.models.resnet18(num_classes=10).double()
    theirs.load_state_dict(random_network.state_dict())
    nodes = {"layer3": "conv4_x", "layer4": "conv5_x", "flatten": "pooled"}
    theirs = create_feature_extractor(theirs.eval(), nodes)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found = correspond(random_network, images, spots(4), stage, 7, seed=3, draws=2)
    cases = [(found["parts"], found["parts_change"]), *zip(found["random"], found["random_change"], strict=True)]
    assert len(cases) == 3
    for squares, change in cases:
        hidden = images.clone()
        for n, (top, left, side) in enumerate(squares):
            hidden[n, :, top : top + side, left : left + side] = 0
        with torch.no_grad():
            changes = {name: (theirs(hidden)[name] - theirs(images)[name]) for name in CHANGED_LAYERS}
        for name in CHANGED_LAYERS:
            rest = changes[name]
            if name == stage or (name == "pooled" and stage == "conv5_x"):
                rest = rest[:, [n for n in range(rest.shape[1]) if n != 7]]
            rest = torch.where(rest.abs() < 1e-10, 0, rest)  # rounding is not a change
            different, unchanged = by_hand(rest.flatten(1).tolist())
            assert change[name] == pytest.approx({"different": different, "unchanged": unchanged}, abs=1e-3)


def test_identical_images_agree_in_every_feature(random_network):
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64).expand(9, -1, -1, -1)
    found = correspond(random_network, image, spots(1).expand(9, -1, -1, -1), "conv4_x", 5, seed=0)
    for layer in CHANGED_LAYERS:
        part, random = sign_changes(found, layer)
        assert part == 0 and random > 0.1  # the random squares differ


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
    for layer in CHANGED_LAYERS:
        parts = np.array([entry["parts_change"][layer]["different"] for entry in content["channels"]])
        random = [[draw[layer]["different"] for draw in entry["random_change"]] for entry in content["channels"]]
        random = np.array(random).mean(1)
        rows = content["layers"][layer]
        for row, values in (("parts", parts), ("random", random), ("difference", parts - random)):
            assert rows[row]["mean"] == pytest.approx(values.mean())
            assert rows[row]["error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
        parts = [entry["parts_change"][layer]["unchanged"] for entry in content["channels"]]
        random = [[draw[layer]["unchanged"] for draw in entry["random_change"]] for entry in content["channels"]]
        assert rows["unchanged"] == pytest.approx({"parts": np.mean(parts), "random": np.mean(random)})
    json.dumps(content, allow_nan=False)
    words = table_in_words(content)
    assert f"conv5_x {content['layers']['conv5_x']['parts']['mean']:.3f} against" in words


def test_the_figure_shows_the_json(inspection, drawn):
    figure, content = drawn
    *rows, table_axes, pairs = figure.get_axes()
    assert len(rows) == min(4, len(content["channels"])) > 0
    for axes, entry in zip(rows, content["channels"], strict=False):
        assert axes.get_title("left") == f"channel {entry['channel']} of conv4_x"
        strip, images = axes.get_images()[0].get_array(), inspection.resized(inspection.images[entry["images"]])
        for n, image in enumerate(images):
            left = 33 * n  # 32 pixels, and one between the images
            assert np.allclose(strip[:, left : left + 32], image.movedim(0, -1), atol=1e-6)
            _, random, _, part = axes.patches[4 * n : 4 * n + 4]
            for square, expected in ((random, entry["random"][0][n]), (part, entry["parts"][n])):
                assert (square.get_y() + 0.5, square.get_x() + 0.5 - left, square.get_width()) == expected
    cells = {place: cell.get_text().get_text() for place, cell in table_axes.tables[0].get_celld().items()}
    for column, layer in enumerate(CHANGED_LAYERS, 1):
        layer_rows = content["layers"][layer]
        for line, row in enumerate(("parts", "random", "difference"), 1):
            expected = f"{layer_rows[row]['mean']:.3f} ± {layer_rows[row]['error']:.3f}"
            assert cells[line, column].replace("\N{MINUS SIGN}", "-") == expected and cells[0, column] == layer
        for line, row in enumerate(("parts", "random"), 4):
            assert cells[line, column] == f"{layer_rows['unchanged'][row]:.1%}".replace("%", " %")
        lines = [line.get_ydata() for line in pairs.lines[3 * len(content["channels"]) * (column - 1) :: 3]]
        shares = [sign_changes(entry, layer)[::-1] for entry in content["channels"]]
        assert np.allclose(lines[: len(shares)], shares)
    peaks = inspection.search.peaks["conv4_x"]
    for entry in content["channels"]:
        expected = peaks[:, entry["channel"]].sort(descending=True, stable=True).indices[:9]
        assert entry["images"] == inspection.searched[expected].tolist()


def test_too_few_images_are_one_line(inspection):
    for count, reason in ((8, "9 test images or more: 8 are searched"), (12, "of conv4_x is excited by 9 images")):
        search = replace(inspection.search, peaks={"conv4_x": torch.eye(256)[:count]})
        with pytest.raises(NotDrawn, match=reason):
            next(FIGURES["correspondence"].draw(replace(inspection, search=search), SETTINGS))


def test_one_channel_has_no_error_and_no_text_leaves_the_figure():
    change = dict.fromkeys(CHANGED_LAYERS, {"different": 0.98765, "unchanged": 0.5})
    squares = [(0, 0, 9)] * 9
    entry = {"channel": 255, "parts": squares, "random": [squares] * 3} | {
        "parts_change": change, "random_change": [change] * 3,
    }  # fmt: skip
    nothing = entry | {"parts_change": dict.fromkeys(CHANGED_LAYERS, {"different": None, "unchanged": 1.0})}
    assert table([entry], "pooled")["difference"] == {"mean": 0, "error": None}
    assert table([nothing], "pooled")["parts"] == {"mean": None, "error": None}
    for channels in ([nothing], [entry] * 12):
        content = {"channels": channels, "layers": {layer: table(channels, layer) for layer in CHANGED_LAYERS}}
        images = RANDOM.rand(min(4, len(channels)), 9, 24, 24, 3)
        assert_inside(correspondence_figure(content, images, "guided, overwriting unpooling"))
