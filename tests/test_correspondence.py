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

import visualizer
from analysis.correspondence import (
    LAYERS,
    ChannelCorrespondence,
    Disagreement,
    correspond,
    disagreement,
    hide,
    part_squares,
    random_squares,
)
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.correspondence import ShownCorrespondence, correspondence_figure, table, table_in_words
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
    assert (found.different, found.unchanged) == pytest.approx(by_hand(changes.tolist()))
    found = disagreement(torch.tensor([[1.0, -2, 0, 0], [3, 5, 0, 2], [0.5, -1, 0, -1]]))
    assert found.different == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3) and found.unchanged == pytest.approx(0.25)
    assert disagreement(torch.zeros(2, 3)) == Disagreement(None, 1.0)


@pytest.mark.parametrize("stage", ["conv4_x", "conv5_x"])
def test_it_is_torchvisions_network_with_the_squares_hidden(random_network, stage):
    theirs = torchvision.models.resnet18(num_classes=10).double()
    theirs.load_state_dict(random_network.state_dict())
    nodes = {"layer3": "conv4_x", "layer4": "conv5_x", "flatten": "pooled"}
    theirs = create_feature_extractor(theirs.eval(), nodes)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found = correspond(random_network, images, spots(4), stage, 7, seed=3, draws=2)
    assert found.channel == 7 and len(found.random) == len(found.random_change) == 2
    cases = [(found.parts, found.parts_change), *zip(found.random, found.random_change, strict=True)]
    for squares, change in cases:
        hidden = images.clone()
        for n, (top, left, side) in enumerate(squares):
            hidden[n, :, top : top + side, left : left + side] = 0
        with torch.no_grad():
            changes = {name: (theirs(hidden)[name] - theirs(images)[name]) for name in LAYERS}
        for name in LAYERS:
            rest = changes[name]
            if name == stage or (name == "pooled" and stage == "conv5_x"):
                rest = rest[:, [n for n in range(rest.shape[1]) if n != 7]]
            rest = torch.where(rest.abs() < 1e-10, 0, rest)  # rounding is not a change
            different, unchanged = by_hand(rest.flatten(1).tolist())
            assert change[name].different == pytest.approx(different, abs=1e-3)
            assert change[name].unchanged == pytest.approx(unchanged, abs=1e-3)


def test_identical_images_agree_in_every_feature(random_network):
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64).expand(9, -1, -1, -1)
    found = correspond(random_network, image, spots(1).expand(9, -1, -1, -1), "conv4_x", 5, seed=0)
    assert {found.different(layer, False) for layer in LAYERS} == {0.0}
    assert all(found.different(layer, True) > 0.1 for layer in LAYERS)  # the squares differ


def test_random_squares_differ_from_random_squares_by_no_more_than_their_error(random_network):
    images = torch.nn.functional.interpolate(torch.randn(9, 3, 8, 8, dtype=torch.float64), (32, 32), mode="bilinear")
    found = [correspond(random_network, images, spots(9), "conv4_x", channel, 0, draws=4) for channel in range(6)]
    halves = [
        replace(each, parts_change=each.random_change[0], random_change=each.random_change[1:2]) for each in found
    ]
    for layer in LAYERS:
        difference = table(halves, layer)["difference"]
        assert 0 < difference.error < 0.1 and abs(difference.mean) < 4 * difference.error


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


def test_hidden_is_the_mean_color_and_a_copy():
    images = torch.ones(2, 3, 6, 6)
    hidden = hide(images, [(1, 2, 3), (0, 0, 6)])
    assert images.min() == 1 and hidden[0, 0].sum() == 36 - 9 and hidden[0, :, 1:4, 2:5].eq(0).all()
    assert hidden[1].eq(0).all()


def test_the_numbers_are_those_of_the_channels(drawn):
    _, content = drawn
    assert content["stage"] == "conv4_x" and 2 <= len(content["channels"]) <= 12
    for layer in LAYERS:
        parts = np.array([each["parts_change"][layer]["different"] for each in content["channels"]])
        random = [[draw[layer]["different"] for draw in each["random_change"]] for each in content["channels"]]
        random = np.array(random).mean(1)
        rows = content["layers"][layer]
        for row, values in (("parts", parts), ("random", random), ("difference", parts - random)):
            assert rows[row]["mean"] == pytest.approx(values.mean())
            assert rows[row]["error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
        hidden = [each["parts_change"][layer]["unchanged"] for each in content["channels"]]
        assert rows["unchanged"]["parts"] == pytest.approx(np.mean(hidden))
    json.dumps(content, allow_nan=False)
    words = table_in_words(content)
    assert f"conv5_x {content['layers']['conv5_x']['parts']['mean']:.3f} against" in words


def test_the_figure_shows_the_json(inspection, drawn):
    figure, content = drawn
    tiles = [axes for axes in figure.get_axes() if axes.get_images()]
    channels = content["channels"][: len(tiles) // 9]
    assert len(tiles) == 9 * len(channels) > 0
    for axes, (each, n) in zip(tiles, itertools.product(channels, range(9)), strict=True):
        picture = inspection.resized(inspection.images[each["images"][n]][None])[0].movedim(0, -1)
        assert np.allclose(axes.get_images()[0].get_array(), picture, atol=1e-6)
        squares = [(patch.get_y(), patch.get_x(), patch.get_width()) for patch in axes.patches]
        assert squares[1] == tuple(each["random"][0][n]) and squares[3] == tuple(each["parts"][n])
    texts = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in figure.texts]
    for layer in LAYERS:
        for row in ("parts", "random", "difference"):
            found = content["layers"][layer][row]
            assert f"{found['mean']:.3f} ± {found['error']:.3f}" in texts
    peaks = inspection.search.peaks["conv4_x"]
    for each in content["channels"]:
        expected = peaks[:, each["channel"]].sort(descending=True, stable=True).indices[:9]
        assert each["images"] == inspection.searched[expected].tolist()


def test_fewer_than_nine_images_are_one_line(small_run, inspection, tmp_path, capsys):
    flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--out", str(tmp_path), "--no-report"]
    visualizer.main([*flags, "--figures", "correspondence", "--limit", "8"])
    line = "correspondence: left out, it needs 9 test images or more: 8 are searched\n"
    assert line in capsys.readouterr().out and not (tmp_path / "correspondence.json").exists()
    dead = replace(inspection.search, peaks={"conv4_x": torch.eye(256)[:12]})
    with pytest.raises(NotDrawn, match="no channel of conv4_x is excited by 9 images"):
        next(FIGURES["correspondence"].draw(replace(inspection, search=dead), SETTINGS))


def test_one_channel_has_no_error_and_no_text_leaves_the_figure():
    change = dict.fromkeys(LAYERS, Disagreement(0.98765, 0.5))
    squares = ((0, 0, 9),) * 9
    found = ChannelCorrespondence(255, squares, (squares,) * 3, change, (change,) * 3)
    content = ShownCorrespondence((found,), ((1,) * 9,), RANDOM.rand(1, 9, 24, 24, 3), "guided, overwriting unpooling")
    assert table([found], "pooled")["difference"].error is None
    nothing = replace(found, parts_change=dict.fromkeys(LAYERS, Disagreement(None, 1.0)))
    assert table([nothing], "pooled")["parts"].mean is None
    assert_inside(correspondence_figure(content))
    assert_inside(correspondence_figure(replace(content, found=(nothing,))))
    assert_inside(correspondence_figure(replace(content, found=(found,) * 12)))
