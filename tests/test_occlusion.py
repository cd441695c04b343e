"""Occlusion: torchvision's network under the same squares, one at a time; the grid and the figure against the JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures, ends, torchvision_layers, visualize

import visualizer
from analysis.inspection import Picture, inspect
from analysis.settings import Settings
from figures import FIGURES, occluder
from figures.image_grid import diverging_tiles, image_grid, to_array
from figures.occluder import costly_images, grid_centers, hide_squares, most_exciting_others, square_side
from figures.occlusion import occlusion_figure, row_title
from figures.registry import SLOW, NotDrawn, choose_figures
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings(occluder=9)
RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module", autouse=True)
def coarse_grid():
    """Squares are 4 pixels apart in images of 32: 64 of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occluder, "MIN_STEP_PIXELS", 4)
        yield


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


def entry_of(activation, probability, predicted, side, whole):
    """A picture's part of occlusion.json, for squares 32 / n pixels apart."""
    step = 32 // len(predicted)
    centers = list(range(step // 2, 32, step))
    whole = dict(zip(("activation", "probability", "predicted"), whole, strict=True))
    entry = {"class": "b", "channel": 511, "side": side, "rows": centers, "columns": centers, "whole": whole}
    maps = {"activation": activation, "probability": probability, "predicted": predicted}
    return entry | {name: values.tolist() for name, values in maps.items()}


def occluded_by_hand(theirs, inputs, channel, row, column, side):
    """Sum of the map, and all probabilities, of one image (1, 3, S, S) under one square, pixel by pixel."""
    hidden = inputs.clone(memory_format=torch.contiguous_format)
    size = inputs.shape[-1]
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < size and 0 <= x < size:
                hidden[0, :, y, x] = 0
    with torch.no_grad():
        output = theirs(hidden)
    return output["features"][0, channel].sum().item(), output["logits"][0].softmax(0)


def test_the_squares_cover_what_they_should():
    images = torch.ones(1, 3, 7, 9)
    hidden = hide_squares(images, torch.tensor([0, 3, 6]), torch.tensor([8, 4, 0]), 4)
    assert hidden.shape == (3, 3, 7, 9)
    expected = torch.ones(3, 3, 7, 9)
    expected[0, :, 0:2, 6:9] = 0  # rows -2 to 1, columns 6 to 9
    expected[1, :, 1:5, 2:6] = 0
    expected[2, :, 4:7, 0:2] = 0
    assert torch.equal(hidden, expected)


def test_the_grid_and_the_default_side_are_in_proportion(monkeypatch):
    monkeypatch.setattr(occluder, "MIN_STEP_PIXELS", 2)
    for size, first, step, count in [(224, 4, 8, 28), (64, 1, 2, 32), (33, 1, 2, 16), (96, 1, 3, 32)]:
        assert grid_centers(size) == list(range(first, first + count * step, step))
    assert [square_side(size) for size in (224, 112, 64)] == [48, 24, 14]


def test_the_json_is_what_torchvisions_network_sees(inspection, theirs, drawn):
    classes = inspection.metadata.classes
    json.dumps(drawn[1], allow_nan=False)
    for entry in drawn[1]:
        assert entry["label"] == entry["class"] and entry["side"] == 9
        assert entry["rows"] == entry["columns"] == list(range(2, 32, 4))
        inputs, channel = inspection.inputs(inspection.images[entry["image"]][None]), entry["channel"]
        with torch.no_grad():
            sums = theirs(inputs)["features"][0].sum((1, 2))
        assert sums[channel].item() == pytest.approx(sums.max().item(), rel=1e-4)
        cases = [(occluded_by_hand(theirs, inputs, channel, 0, 0, 0), entry["whole"])]
        for i, j in [(0, 0), (3, 6), (7, 7)]:
            values = occluded_by_hand(theirs, inputs, channel, entry["rows"][i], entry["columns"][j], 9)
            cases.append((values, {key: entry[key][i][j] for key in entry["whole"]}))
        for (total, chances), stated in cases:
            assert stated["activation"] == pytest.approx(total, abs=1e-4, rel=1e-4)
            assert stated["probability"] == pytest.approx(chances[classes.index(entry["class"])].item(), abs=1e-4)
            predicted = chances[classes.index(stated["predicted"])].item()
            assert predicted == pytest.approx(chances.max().item(), abs=1e-4)


def test_the_images_are_those_that_lose_most(inspection, theirs, drawn):
    inputs, lost = inspection.inputs(inspection.images), {}
    with torch.no_grad():
        whole = theirs(inputs)["logits"].softmax(1)
    for n, number in enumerate(inspection.labels.tolist()):
        if whole[n].argmax() == number:
            squares = itertools.product((4, 12, 20, 28), repeat=2)
            left = [occluded_by_hand(theirs, inputs[n : n + 1], 0, *square, 9)[1][number] for square in squares]
            lost[n] = (whole[n, number] - min(left)).item()
    chosen, tried = costly_images(inspection, SETTINGS)
    assert tried == len(lost) > 0
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)
    for n, loss in chosen.items():  # of its class, none loses more
        assert loss == pytest.approx(lost[n], abs=1e-4)
        same_class = [other for m, other in lost.items() if inspection.labels[m] == inspection.labels[n]]
        assert loss == pytest.approx(max(same_class), abs=1e-4)
    assert len(chosen) == len({inspection.labels[n].item() for n in lost})
    assert {entry["image"]: entry["coarse_loss"] for entry in drawn[1]} == pytest.approx(chosen, abs=1e-4)


def test_the_figure_shows_the_json(inspection, drawn):
    figure, entries = drawn
    rows = np.reshape(figure.get_axes(), (len(entries), -1))
    for axes, entry in zip(rows, entries, strict=True):
        names, whole, channel = np.array(entry["predicted"]), entry["whole"], entry["channel"]
        image, total, projections, chance = (tile.get_images()[0].get_array() for tile in axes[:4])
        assert np.allclose(image, to_array(inspection.images[entry["image"]]) / 255, atol=1e-6)
        assert np.allclose(total, 100 * (1 - np.array(entry["activation"]) / whole["activation"]), atol=1e-3)
        assert np.allclose(chance, 100 * (whole["probability"] - np.array(entry["probability"])), atol=1e-3)
        for tile in axes[[1, 3]]:  # white where nothing is lost
            assert tile.get_images()[0].to_rgba(np.zeros(1)) == pytest.approx(np.ones((1, 4)), abs=0.01)
        changed = names != whole["predicted"]
        if axes.size == 5:
            colors = np.asarray(axes[4].get_images()[1].get_array())
            assert np.array_equal(colors[:, :, 3] > 0, changed)
            colors, labels = colors[changed], names[changed]
            assert np.array_equal((colors[:, None] == colors).all(2), labels[:, None] == labels)  # a color per class
        else:
            assert not changed.any()
        ranked = inspection.search.peaks["conv5_x"][:, channel].sort(descending=True, stable=True)
        others = [n for n in ranked.indices[ranked.values > 0].tolist() if n != entry["image"]][:3]
        inputs = inspection.inputs(inspection.images[[entry["image"], *others]])
        with torch.inference_mode():
            trace = inspection.network.trace(inputs)
            signal = isolate(trace.features["conv5_x"], channel)
            expected = diverging_tiles(ReverseResNet18(inspection.network, "guided")(signal, "conv5_x", trace))
        assert_same_pictures(projections - 0.5, image_grid(expected, 2) - 0.5)
        assert f"test image {entry['image']} ({entry['label']})" in axes[0].get_title("left")
        assert f"channel {channel}" in [text.get_text() for text in axes[1].texts]
        box, worst = axes[0].patches[0], np.unravel_index(np.argmin(entry["probability"]), names.shape)
        assert (box.get_y() + 4, box.get_x() + 4) == tuple(entry["rows"][k] for k in worst)
    text = " ".join(figure.get_supxlabel().split())
    assert all(words in text for words in ("square of 9 px", "every 4 px", "guided", "correctly classified"))


def test_the_other_images_excite_the_map_most(inspection):
    peaks = torch.zeros(12, 512)
    peaks[:4, 7] = torch.tensor([1.0, 4, 3, 2])
    changed = replace(inspection, search=replace(inspection.search, peaks={"conv5_x": peaks}))
    for channel, origin, expected in ((7, 1, [2, 3, 0]), (7, "file.png", [1, 2, 3]), (8, 1, [])):
        assert most_exciting_others(changed, channel, origin).tolist() == expected


def test_without_a_change_of_class_there_is_no_column_of_it():
    lost = np.array([[0.0, 0.1, 0.2, 0.1], [0, 0.3, 0.8, 0.3], [0, 0.1, 0.2, 0.1], [0, 0, 0, -0.1]])
    entry = entry_of(2 - lost, 0.9 - lost, np.full((4, 4), "b"), side=8, whole=(2.0, 0.9, "b"))
    figure = occlusion_figure([("", RANDOM.rand(32, 32, 3), entry, RANDOM.rand(4, 32, 32, 3))], "guided")
    assert len(figure.get_axes()) == 4 and "No square changes" in figure.get_supxlabel()
    activation, probability = (figure.get_axes()[n].get_images()[0] for n in (1, 3))
    assert np.allclose(activation.get_array(), 50 * lost) and np.allclose(probability.get_array(), 100 * lost)
    assert probability.get_clim() == pytest.approx((-80, 80))
    levels = [line.levels.tolist() for axes in figure.get_axes() for line in axes.collections]
    assert levels == [pytest.approx([40])] * 2  # half of the largest loss, over the image and its map
    box = figure.get_axes()[0].patches[0]
    assert box.get_bbox().extents.tolist() == [16, 8, 24, 16]  # of the second row, the third column


def test_ones_own_pictures(small_run, tmp_path):
    files = [next((small_run.parent / "pictures" / "test" / name).iterdir()) for name in ("ring", "disk")]
    visualize(small_run, tmp_path, "--figures", "occlusion", "--no-report", "--images", *map(str, files))
    entries = json.loads((tmp_path / "occlusion.json").read_text())
    assert [entry["image"] for entry in entries] == [file.name for file in files]
    assert not (tmp_path / "occlusion.png").exists()
    for entry, file in zip(entries, files, strict=True):
        assert entry["label"] is None and entry["class"] == entry["whole"]["predicted"]
        assert any(tmp_path.glob(f"{file.stem}*/occlusion.png"))


def test_an_occluder_larger_than_the_image_is_one_line(small_run, tmp_path, capsys):
    flags = ["--ckpt", small_run / "model.pt", "--device", "cpu", "--figures", "occlusion", "--out", tmp_path / "plots"]
    ends(capsys, visualizer.main, [*flags, "--occluder", "33"], 2, "--occluder 33", "32 pixels")
    assert not (tmp_path / "plots").exists()


def test_what_cannot_be_drawn(inspection):
    wrong = torch.nn.functional.one_hot((inspection.labels + 1) % 3, 3).float()
    wrong = replace(inspection, search=replace(inspection.search, logits=wrong))
    shallow = replace(inspection, search=replace(inspection.search, peaks={}))
    for changed, occluder_side, reason in (
        (wrong, 9, "no searched image"), (shallow, 9, "conv5_x"), (inspection, 33, "33 pixels does not fit"),
    ):  # fmt: skip
        with pytest.raises(NotDrawn, match=reason):
            next(FIGURES["occlusion"].draw(changed, Settings(occluder=occluder_side)))


def test_slow_figures_are_drawn_only_by_name():
    slow = {name for name, entry in FIGURES.items() if entry.is_slow}
    assert "occlusion" in slow and "top9" not in slow
    for own, gallery in ((False, False), (True, False), (True, True)):
        names, left_out = choose_figures(None, own, gallery)
        assert not slow & set(names) and {left_out[name] for name in slow} == {SLOW}
        assert choose_figures(["occlusion"], own, gallery)[0] == ["occlusion"]


def test_no_text_leaves_the_figure():
    names = [f"{n} American_Staffordshire_Terrier <b>$x$" for n in range(12)]
    zeros, predicted = np.zeros((16, 16)), np.array(names)[np.arange(256).reshape(16, 16) % 12]
    entry = entry_of(zeros, zeros, predicted, 5, (1e4, 0.9999, names[3])) | {"class": names[11]}
    title = row_title(Picture("", "a_long_file_name_" * 9, None, None, "a"), entry)
    image, projections = RANDOM.rand(32, 32, 3), RANDOM.rand(2, 32, 32, 3)
    row = (title, image, entry, projections)
    same = (title, image, entry | {"predicted": np.full((16, 16), names[3]).tolist()}, projections)
    for rows, tried in (([row, row], 64), ([same], 0), ([same, row], 64)):
        assert_inside(occlusion_figure(rows, "guided, overwriting unpooling", tried))
