"""Occlusion: torchvision's network under the same squares, one at a time; the grid and the figure against the JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from conftest import assert_inside, ends
from torchvision.models.feature_extraction import create_feature_extractor

import visualizer
from analysis.inspection import Picture, class_to_explain, inspect, one_per_class
from analysis.settings import Settings
from dataset.shapes import draw_shapes
from figures import FIGURES
from figures import occluder as occlusion
from figures.image_grid import to_array
from figures.occluder import Occlusion, costly_images, grid_centers, hide_squares, occlude, square_side
from figures.occlusion import json_entry, occlusion_figure, row_title
from figures.registry import SLOW, NotDrawn, choose_figures
from network import ResNet18

SETTINGS = Settings(occluder=9)
RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module", autouse=True)
def coarse_grid():
    """Squares are 4 pixels apart in images of 32: 64 of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occlusion, "MIN_STEP_PIXELS", 4)
        yield


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of occlusion.json."""
    (path, figure), (_, entries) = FIGURES["occlusion"].draw(inspection, SETTINGS)
    assert str(path) == "occlusion"
    return figure, entries


def torchvisions(network):
    """torchvision's network with these weights, and what cuts it off after conv5_x."""
    theirs = torchvision.models.resnet18(num_classes=network.fc.out_features)
    theirs.load_state_dict(network.state_dict())
    nodes = {"layer4": "features", "fc": "logits"}
    return create_feature_extractor(theirs.eval(), nodes)


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


def assert_same(entry, theirs, inputs, classes, squares):
    """An entry of occlusion.json at these rows and columns of its grid."""
    for i, j in squares:
        row, column = entry["rows"][i], entry["columns"][j]
        total, chances = occluded_by_hand(theirs, inputs, entry["channel"], row, column, entry["side"])
        assert entry["activation"][i][j] == pytest.approx(total, abs=1e-4, rel=1e-4)
        assert entry["probability"][i][j] == pytest.approx(chances[classes.index(entry["class"])].item(), abs=1e-4)
        predicted = classes.index(entry["predicted"][i][j])
        assert chances[predicted].item() == pytest.approx(chances.max().item(), abs=1e-4)


@pytest.mark.parametrize("size, side, count", [(64, 21, 4), (224, 48, 2)])
def test_it_is_torchvisions_network_under_the_same_squares(size, side, count):
    network = ResNet18(10).eval()
    theirs = torchvisions(network)
    images = torch.from_numpy(draw_shapes("test")[0][:3]).float() / 255 - 0.5
    images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
    for image in images.split(1):
        with torch.no_grad():
            whole = theirs(image)
        centers = np.linspace(0, size - 1, count).astype(int).tolist()
        found = occlude(network, image, side=side, batch_size=5, centers=centers)
        sums, logits = whole["features"][0].sum((1, 2)), whole["logits"][0]
        assert sums[found.channel].item() == pytest.approx(sums.max().item(), rel=1e-4) and found.side == side
        assert logits[found.number].item() == pytest.approx(logits.max().item(), abs=1e-4)
        assert found.number == found.whole[2]
        classes = tuple("abcdefghij")
        entry = json_entry(found, Picture("", "", image, None, 0), classes)
        assert_same(entry, theirs, image, classes, np.ndindex(count, count))
        assert found.activation.std() > 0


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
    monkeypatch.setattr(occlusion, "MIN_STEP_PIXELS", 2)
    for size, first, step, count in [(224, 4, 8, 28), (64, 1, 2, 32), (33, 1, 2, 16), (96, 1, 3, 32)]:
        assert grid_centers(size) == list(range(first, first + count * step, step))
    assert [square_side(size) for size in (224, 112, 64)] == [48, 24, 14] and square_side(224, 60) == 60


def test_a_square_over_the_whole_image_leaves_nothing(random_network):
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    found = occlude(random_network, image, side=32, centers=[16])
    empty = random_network.trace(torch.zeros_like(image))
    assert found.activation.item() == pytest.approx(empty.features["conv5_x"][0, found.channel].sum().item())
    with pytest.raises(ValueError, match="33 pixels does not fit an image of 32"):
        occlude(random_network, image, side=33)


def test_the_json_is_what_the_network_sees(inspection, drawn):
    _, entries = drawn
    theirs, classes = torchvisions(inspection.network), inspection.metadata.classes
    assert [entry["label"] for entry in entries] == [entry["class"] for entry in entries]
    for entry in entries:
        inputs = inspection.inputs(inspection.images[entry["image"]][None])
        assert entry["rows"] == entry["columns"] == list(range(2, 32, 4)) and entry["side"] == 9
        assert_same(entry, theirs, inputs, classes, [(0, 0), (3, 6), (7, 7)])
    json.dumps(entries, allow_nan=False)


def test_the_images_are_those_that_lose_most(inspection, drawn):
    theirs, classes = torchvisions(inspection.network), inspection.metadata.classes
    inputs, lost = inspection.inputs(inspection.images), {}
    with torch.no_grad():
        whole = theirs(inputs)["logits"].softmax(1)
    for n, number in enumerate(inspection.labels.tolist()):
        if whole[n].argmax() == number:
            squares = [(row, column) for row in (4, 12, 20, 28) for column in (4, 12, 20, 28)]
            left = [occluded_by_hand(theirs, inputs[n : n + 1], 0, *square, 9)[1][number] for square in squares]
            lost[n] = (whole[n, number] - min(left)).item()
    chosen, tried = costly_images(inspection, SETTINGS)
    assert tried == len(lost) > 0
    assert list(chosen.values()) == pytest.approx([lost[n] for n in chosen], abs=1e-4)
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)
    best = [max(loss for n, loss in lost.items() if inspection.labels[n] == inspection.labels[m]) for m in chosen]
    assert list(chosen.values()) == pytest.approx(best, abs=1e-4)
    assert len(chosen) == len({inspection.labels[n].item() for n in lost})
    entries = drawn[1]
    assert {entry["image"]: entry["coarse_loss"] for entry in entries} == pytest.approx(chosen, abs=1e-4)
    assert all(entry["class"] == classes[inspection.labels[entry["image"]]] for entry in entries)


def test_no_image_is_classified_correctly(inspection):
    wrong = torch.nn.functional.one_hot((inspection.labels + 1) % 3, 3).float()
    with pytest.raises(NotDrawn, match="no searched image is classified correctly"):
        next(FIGURES["occlusion"].draw(replace(inspection, search=replace(inspection.search, logits=wrong)), SETTINGS))


def test_the_figure_shows_the_json(inspection, drawn):
    figure, entries = drawn
    rows = np.reshape(figure.get_axes(), (len(entries), -1))
    names = np.array([entry["predicted"] for entry in entries])
    changed = [(names[n] != entry["whole"]["predicted"]) for n, entry in enumerate(entries)]
    assert rows.shape[1] == 4 + np.any(changed)
    for n, (axes, entry) in enumerate(zip(rows, entries, strict=True)):
        exciting = (inspection.search.peaks["conv5_x"][:, entry["channel"]] > 0).sum().item()
        image, total, projections, chance = (tile.get_images()[0].get_array() for tile in axes[:4])
        assert np.allclose(image, to_array(inspection.images[entry["image"]]) / 255, atol=1e-6)
        whole = entry["whole"]
        assert np.allclose(total, 100 * (1 - np.array(entry["activation"]) / whole["activation"]), atol=1e-3)
        assert np.allclose(chance, 100 * (whole["probability"] - np.array(entry["probability"])), atol=1e-3)
        for tile in axes[[1, 3]]:  # white where nothing is lost
            assert tile.get_images()[0].to_rgba(np.zeros(1)) == pytest.approx(np.ones((1, 4)), abs=0.01)
        if axes.size == 5:
            colors = np.asarray(axes[4].get_images()[1].get_array())
            assert np.array_equal(colors[:, :, 3] > 0, changed[n])
            colors, labels = colors[changed[n]], names[n][changed[n]]
            assert np.array_equal((colors[:, None] == colors).all(2), labels[:, None] == labels)  # a color per class
        shown = [projections[y : y + 32, x : x + 32] for y in range(0, len(projections), 33) for x in (0, 33)]
        assert sum(bool((tile != 1).any()) for tile in shown) == min(4, exciting) >= 1
        title = axes[0].get_title("left")
        assert f"test image {entry['image']} ({entry['label']})" in title
        assert f"channel {entry['channel']}" in [text.get_text() for text in axes[1].texts]
        box, worst = axes[0].patches[0], np.unravel_index(np.argmin(entry["probability"]), names[n].shape)
        assert (box.get_y() + 4, box.get_x() + 4) == tuple(entry["rows"][k] for k in worst)
    text = " ".join(figure.get_supxlabel().split())
    assert (
        "square of 9 px of the mean color, every 4 px" in text and "guided" in text and "correctly classified" in text
    )


def test_without_a_change_of_class_there_is_no_column_of_it():
    lost = torch.tensor([[0.0, 0.1, 0.2, 0.1], [0, 0.3, 0.8, 0.3], [0, 0.1, 0.2, 0.1], [0, 0, 0, -0.1]])
    found = Occlusion(3, 1, 8, (4, 12, 20, 28), (2.0, 0.9, 1), 2 - lost, 0.9 - lost, torch.ones(4, 4).long())
    row = ("", RANDOM.rand(32, 32, 3), found, RANDOM.rand(4, 32, 32, 3))
    figure = occlusion_figure([row], "abc", "guided")
    assert len(figure.get_axes()) == 4 and "No square changes" in figure.get_supxlabel()
    activation, probability = (figure.get_axes()[n].get_images()[0] for n in (1, 3))
    assert np.allclose(activation.get_array(), 50 * lost) and np.allclose(probability.get_array(), 100 * lost)
    assert probability.get_clim() == pytest.approx((-80, 80))
    levels = [line.levels.tolist() for axes in figure.get_axes() for line in axes.collections]
    assert levels == [pytest.approx([40])] * 2  # half of the largest loss, over the image and its map
    box = figure.get_axes()[0].patches[0]
    assert box.get_bbox().extents.tolist() == [16, 8, 24, 16]  # of the second row, the third column


def test_one_image_of_each_class_recognised_if_possible(inspection):
    logits = torch.zeros(12, 3)
    logits[1, 0] = logits[7, 1] = 9.0  # recognised
    logits[0, 0] = 0.1  # correct, but not confident
    logits[8:, 0] = 1.0  # wrong
    logits[2, 1] = logits[4, 0] = 9.0
    assert inspection.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    found = replace(inspection, search=replace(inspection.search, logits=logits))
    assert [picture.origin for picture in one_per_class(found, 5)] == [1, 7, 8]
    assert [picture.origin for picture in one_per_class(found, 1)] == [1]
    without = replace(found, labels=torch.tensor([0] * 4 + [1] * 8))  # a class without images
    assert [picture.origin for picture in one_per_class(without, 5)] == [1, 7]
    strange = replace(found, label_names=("a", "b", "c"))
    assert [picture.origin for picture in one_per_class(strange, 5)] == [1, 2]


def test_the_class_of_a_picture(inspection):
    picture = Picture("", "", inspection.images[0], "ring", 0)
    assert class_to_explain(inspection, picture, 2) == 1
    assert class_to_explain(inspection, replace(picture, label=None), 2) == 2
    assert class_to_explain(inspection, replace(picture, label="cow"), 2) == 2


def test_ones_own_pictures(small_run, tmp_path):
    files = [next((small_run.parent / "pictures" / "test" / name).iterdir()) for name in ("ring", "disk")]
    flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--out", str(tmp_path), "--dpi", "50"]
    visualizer.main([*flags, "--figures", "occlusion", "--images", *map(str, files), "--no-report"])
    entries = json.loads((tmp_path / "occlusion.json").read_text())
    assert [entry["image"] for entry in entries] == [file.name for file in files]
    for entry, file in zip(entries, files, strict=True):
        assert (tmp_path / "occlusion.png").exists() is False
        assert entry["label"] is None and entry["class"] == entry["whole"]["predicted"]
        assert any(tmp_path.glob(f"{file.stem}*/occlusion.png"))


def test_an_occluder_larger_than_the_image_is_one_line(small_run, inspection, tmp_path, capsys):
    flags = ["--ckpt", small_run / "model.pt", "--device", "cpu", "--figures", "occlusion", "--out", tmp_path / "plots"]
    ends(capsys, visualizer.main, [*flags, "--occluder", "33"], 2, "--occluder 33: the network's images have 32 pixels")
    ends(capsys, visualizer.main, [*flags, "--occluder", "0"], 2, "--occluder")
    assert not (tmp_path / "plots").exists()
    with pytest.raises(NotDrawn, match="33 pixels does not fit"):
        next(FIGURES["occlusion"].draw(inspection, Settings(occluder=33)))


def test_slow_figures_are_drawn_only_by_name(small_run, tmp_path, capsys):
    slow = [name for name, entry in FIGURES.items() if entry.is_slow]
    assert "occlusion" in slow and "top9" not in slow
    for own, gallery in ((False, False), (True, False), (True, True)):
        names, left_out = choose_figures(None, own, gallery)
        assert not set(slow) & set(names) and {left_out[name] for name in slow} == {SLOW}
        assert choose_figures(["occlusion"], own, gallery)[0] == ["occlusion"]
    flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--out", str(tmp_path), "--dpi", "50"]
    args = visualizer.parse_args(flags)
    assert not set(slow) & set(visualizer.load_what_is_needed(args, SETTINGS)[1])


def test_no_text_leaves_the_figure():
    names = ["American_Staffordshire_Terrier <b>$x$"] * 12
    predicted = torch.arange(144).reshape(12, 12) % 12
    centers = tuple(range(1, 24, 2))
    found = Occlusion(511, 11, 5, centers, (1e4, 0.9999, 3), torch.zeros(12, 12), torch.zeros(12, 12), predicted)
    title = row_title(Picture("", "a_long_file_name_" * 9, None, None, "a"), found, names)
    image, projections = RANDOM.rand(24, 24, 3), RANDOM.rand(2, 24, 24, 3)
    row = (title, image, found, projections)
    assert_inside(occlusion_figure([row, row], names, "guided, overwriting unpooling", 64))
    same = (title, image, replace(found, predicted=predicted * 0 + 3), projections)
    assert_inside(occlusion_figure([same], ["automobile", *names[1:]], "guided"))
    assert_inside(occlusion_figure([same, row], names, "guided", 64))
