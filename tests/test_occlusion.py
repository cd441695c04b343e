"""Occlusion: torchvision's network under the same squares, one at a time; the grid and the figure against the JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures, ends, torchvision_layers, visualize

import visualizer
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.occlusion import grid_centers, occlusion_figure, row_title
from figures.registry import SLOW, NotDrawn, choose_figures
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings(occluder=9)
RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def theirs(inspection):
    return torchvision_layers(inspection.network, {"layer4": "features", "fc": "logits"})


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of occlusion.json."""
    (path, figure), (_, entries) = FIGURES["occlusion"].draw(inspection, SETTINGS)
    assert str(path) == "occlusion"
    return figure, entries


@torch.no_grad()
def occluded_by_hand(theirs, inputs, channel, row, column, side):
    """Sum of the map, and all probabilities, of one image (1, 3, S, S) under one square, pixel by pixel."""
    hidden = inputs.clone(memory_format=torch.contiguous_format)
    for y, x in itertools.product(range(inputs.shape[-1]), repeat=2):
        if 0 <= y - row + side // 2 < side and 0 <= x - column + side // 2 < side:
            hidden[0, :, y, x] = 0
    output = theirs(hidden)
    return output["features"][0, channel].sum().item(), output["logits"][0].softmax(0)


def test_the_grid_is_in_proportion():
    for size, first, step, count in [(224, 4, 8, 28), (64, 1, 2, 32), (33, 1, 2, 16), (96, 1, 3, 32)]:
        assert grid_centers(size) == list(range(first, first + count * step, step))


def test_the_json_is_what_torchvisions_network_sees(inspection, theirs, drawn):
    classes = inspection.metadata.classes
    json.dumps(drawn[1], allow_nan=False)
    for entry in drawn[1]:
        assert entry["label"] == entry["class"] and entry["side"] == 9
        assert entry["rows"] == entry["columns"] == list(range(1, 32, 2))
        inputs, channel = inspection.inputs(inspection.images[entry["image"]][None]), entry["channel"]
        sums = theirs(inputs)["features"][0].sum((1, 2)).tolist()
        assert sums[channel] == pytest.approx(max(sums), rel=1e-4)
        cases = [(occluded_by_hand(theirs, inputs, channel, 0, 0, 0), entry["whole"])]
        for i, j in [(0, 0), (7, 12), (15, 15)]:
            values = occluded_by_hand(theirs, inputs, channel, entry["rows"][i], entry["columns"][j], 9)
            cases.append((values, {key: entry[key][i][j] for key in entry["whole"]}))
        for (total, chances), stated in cases:
            assert stated["activation"] == pytest.approx(total, abs=1e-4, rel=1e-4)
            assert stated["probability"] == pytest.approx(chances[classes.index(entry["class"])].item(), abs=1e-4)
            predicted = chances[classes.index(stated["predicted"])].item()
            assert predicted == pytest.approx(chances.max().item(), abs=1e-4)


def test_the_images_are_those_that_lose_most(inspection, theirs, drawn):
    inputs, lost = inspection.inputs(inspection.images), {}
    for n, number in enumerate(inspection.labels.tolist()):
        squares = [(0, 0, 0), *itertools.product((4, 12, 20, 28), (4, 12, 20, 28), [9])]  # the first hides nothing
        whole, *left = (occluded_by_hand(theirs, inputs[n : n + 1], 0, *square)[1] for square in squares)
        if whole.argmax() == number:
            lost[n] = (whole[number] - min(chances[number] for chances in left)).item()
    chosen = {entry["image"]: entry["coarse_loss"] for entry in drawn[1]}
    assert f"of {len(lost)} correctly classified" in " ".join(drawn[0].get_supxlabel().split())
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)
    assert len(chosen) == len({inspection.labels[n].item() for n in lost}) > 0
    for n, loss in chosen.items():  # of its class, none loses more
        assert loss == pytest.approx(lost[n], abs=1e-4)
        same_class = [other for m, other in lost.items() if inspection.labels[m] == inspection.labels[n]]
        assert loss == pytest.approx(max(same_class), abs=1e-4)


def test_the_figure_shows_the_json(inspection, drawn):
    figure, entries = drawn
    rows = np.reshape(figure.get_axes(), (len(entries), 5))
    for axes, entry in zip(rows, entries, strict=True):
        names, whole, channel = np.array(entry["predicted"]), entry["whole"], entry["channel"]
        image, total, projections, chance = (tile.get_images()[0].get_array() for tile in axes[:4])
        assert np.allclose(image, to_array(inspection.images[entry["image"]]) / 255, atol=1e-6)
        assert np.allclose(total, 100 * (1 - np.array(entry["activation"]) / whole["activation"]), atol=1e-3)
        assert np.allclose(chance, 100 * (whole["probability"] - np.array(entry["probability"])), atol=1e-3)
        for tile in axes[[1, 3]]:  # white where nothing is lost
            assert tile.get_images()[0].to_rgba(np.zeros(1)) == pytest.approx(np.ones((1, 4)), abs=0.01)
        changed = names != whole["predicted"]
        colors = np.asarray(axes[4].get_images()[1].get_array())
        assert np.array_equal(colors[:, :, 3] > 0, changed)
        colors, labels = colors[changed], names[changed]
        assert np.array_equal((colors[:, None] == colors).all(2), labels[:, None] == labels)  # a color per class
        ranked = inspection.search.peaks["conv5_x"][:, channel].sort(descending=True, stable=True)
        others = [n for n in ranked.indices[ranked.values > 0].tolist() if n != entry["image"]][:3]
        inputs = inspection.inputs(inspection.images[[entry["image"], *others]])
        with torch.inference_mode():
            trace = inspection.network.trace(inputs)
            signal = isolate(trace.features["conv5_x"], channel)
            expected = diverging_tiles(ReverseResNet18(inspection.network, "guided")(signal, "conv5_x", trace))
        assert_same_pictures(projections - 0.5, image_grid(expected, 2) - 0.5)
        assert any(f"test image {entry['image']} ({entry['label']})" in text.get_text() for text in axes[0].texts)
        assert f"channel {channel}" in [text.get_text() for text in axes[1].texts]
        box, worst = axes[0].patches[0], np.unravel_index(np.argmin(entry["probability"]), names.shape)
        assert (box.get_y() + 4, box.get_x() + 4) == tuple(entry["rows"][k] for k in worst)
    assert all(words in figure.get_supxlabel().replace("\n", " ") for words in ("9 px wide, 2 px from", "guided"))


def test_ones_own_pictures(small_run, tmp_path):
    files = [next((small_run.parent / "pictures" / "test" / name).iterdir()) for name in ("ring", "disk")]
    visualize(small_run, tmp_path, "--figures", "occlusion", "--no-report", "--images", *map(str, files))
    entries = json.loads((tmp_path / "occlusion.json").read_text())
    assert [entry["image"] for entry in entries] == [file.name for file in files]
    assert not (tmp_path / "occlusion.png").exists()
    for entry, file in zip(entries, files, strict=True):
        assert entry["label"] is None and entry["class"] == entry["whole"]["predicted"]
        assert entry["side"] == 7  # 48 of 224
        assert any(tmp_path.glob(f"{file.stem}*/occlusion.png"))


def test_an_occluder_larger_than_the_image_is_one_line(small_run, tmp_path, capsys):
    flags = ["--ckpt", small_run / "model.pt", "--device", "cpu", "--figures", "occlusion", "--out", tmp_path / "plots"]
    ends(capsys, visualizer.main, [*flags, "--occluder", "33"], 2, "--occluder 33", "32 pixels")
    assert not (tmp_path / "plots").exists()


def test_without_a_correct_image_it_is_not_drawn(inspection):
    wrong = torch.nn.functional.one_hot((inspection.labels + 1) % 3, 3).float()
    wrong = replace(inspection, search=replace(inspection.search, logits=wrong))
    with pytest.raises(NotDrawn, match="no searched image"):
        next(FIGURES["occlusion"].draw(wrong, SETTINGS))


def test_slow_figures_are_drawn_only_by_name():
    for own, gallery in ((False, False), (True, False), (True, True)):
        names, left_out = choose_figures(None, own, gallery)
        assert "occlusion" not in names and left_out["occlusion"] == SLOW
        assert choose_figures(["occlusion"], own, gallery)[0] == ["occlusion"]


def test_known_losses_are_drawn_and_no_text_leaves_the_figure():
    names = [f"{n} American_Staffordshire_Terrier <b>$x$" for n in range(12)]
    lost = np.array([[0.0, 0.1, 0.2, 0.1], [0, 0.3, 0.8, 0.3], [0, 0.1, 0.2, 0.1], [0, 0, 0, -0.1]])
    maps = ((1e4 - 5e3 * lost).tolist(), (0.9 - lost).tolist(), [names[n : n + 4] for n in (0, 4, 8, 0)])
    entry = {"class": names[11], "label": None, "channel": 511, "side": 8, "rows": [4, 12, 20, 28]}
    entry |= {"columns": entry["rows"], "whole": {"activation": 1e4, "probability": 0.9, "predicted": names[3]}}
    entry |= dict(zip(entry["whole"], maps, strict=True))
    title = row_title("a_long_file_name_" * 9, entry)
    row = (title, RANDOM.rand(32, 32, 3), entry, RANDOM.rand(2, 32, 32, 3))
    same = (title, RANDOM.rand(32, 32, 3), entry | {"predicted": [names[3:4] * 4] * 4}, RANDOM.rand(4, 32, 32, 3))
    for rows in ([row], [row, same]):
        figure = occlusion_figure(rows, "guided, overwriting unpooling", tried="64 images")
        assert_inside(figure)
        assert figure.get_axes()[0].texts[-1].get_window_extent().x1 < figure.bbox.x1  # the title, out of the layout
    image, activation, _, probability, *_, changes = figure.get_axes()
    assert probability.get_images()[0].get_clim() == pytest.approx((-80, 80))
    levels = [line.levels.tolist() for axes in (image, activation) for line in axes.collections]
    assert levels == [pytest.approx([40])] * 2  # half of the largest loss, over the image and its map
    assert image.patches[0].get_bbox().extents.tolist() == [16, 8, 24, 16]  # of the second row, the third column
    assert changes.get_legend().texts[0].get_text() == "nowhere"
