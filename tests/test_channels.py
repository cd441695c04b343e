"""Which channels, images and units are shown, and with what said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures, write_folder

from analysis.channels import chosen_channels, inspect_channels, reconstruct_top_images, robust_limit, strongest_units
from analysis.crops import crop, crop_boxes
from analysis.inspection import add_preprocessing, add_search, inspect, load_inspection
from analysis.pictures import spread
from analysis.settings import Settings
from figures import hierarchy, top9
from network import ResNet18
from reverse_network import ReverseResNet18, isolate
from runtime import checkpoint

SETTINGS = Settings()


def inspect_channel(inspection, settings, stage, channel):
    return next(inspect_channels(inspection, settings, stage, [channel]))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


def test_the_reconstructions_shown_are_the_mirrors(inspection):
    result = inspect_channel(inspection, SETTINGS, "conv5_x", 7)
    one_scale = inspect_channel(inspection, replace(SETTINGS, scale="channel"), "conv5_x", 7)
    images = inspection.images[[image.index for image in result.images]]
    boxes = [image.crop for image in result.images]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(images))
        signal = isolate(trace.features["conv5_x"], 7, "peak")
    for rule, shown in result.reconstructions.items():
        with torch.inference_mode():
            pictures = ReverseResNet18(inspection.network, rule)(signal, "conv5_x", trace)
        for n, (top, left, bottom, right) in enumerate(boxes):
            cropped = pictures[n, :, top:bottom, left:right]
            assert_same_pictures(shown[n], cropped)
            limit = np.quantile(cropped.abs().amax(0).numpy(), 0.99)
            assert result.images[n].scale[rule] == pytest.approx(limit, rel=0.02)
        assert {image.scale[rule] for image in one_scale.images} == {shown.abs().max().item()}
    for pixels, patch, (top, left, bottom, right) in zip(images, result.patches, boxes, strict=True):
        assert torch.allclose(patch, pixels[:, top:bottom, left:right] / 255, atol=1e-6)


def test_channels_in_groups_are_what_each_is_alone(inspection, monkeypatch):
    picture = 3 * inspection.metadata.image_size**2 * 4
    monkeypatch.setattr("analysis.channels.GROUP_BYTES", 2 * 9 * 2 * picture)  # two channels, nine images, two rules
    traced, trace = [], ResNet18.trace
    monkeypatch.setattr(
        ResNet18, "trace", lambda self, images, until: traced.append(len(images)) or trace(self, images, until)
    )
    remaining = inspect_channels(inspection, SETTINGS, "conv5_x", [7, 3, 12])
    results = [next(remaining)]
    assert traced == [len(inspection.search.top["conv5_x"].indices[[7, 3]].unique())]  # once, and the next group waits
    results += remaining
    assert [result.channel for result in results] == [7, 3, 12]
    for result in results:
        alone = inspect_channel(inspection, SETTINGS, "conv5_x", result.channel)
        places = [[(image.index, image.crop) for image in of.images] for of in (result, alone)]
        assert places[0] == places[1]
        for rule, tiles in result.reconstructions.items():
            assert_same_pictures(tiles, alone.reconstructions[rule])


def test_the_hierarchy_shows_what_a_unit_sees(inspection):
    """Of conv1, 7 pixels: tiles hold the filter and no margin, and patches are the pixels below it."""
    top = inspection.search.top["conv1"]
    channel = int(top.scores[:, 8].argmax())
    whole = reconstruct_top_images(inspection, replace(SETTINGS, rules=("guided",)), "conv1", [channel])["guided"][0]
    patches, tiles = hierarchy.crop_channel(inspection, "conv1", channel, whole)
    side, corners = crop_boxes([whole], least=1)
    assert patches.shape == tiles.shape == (9, side, side, 3) and side <= 7
    assert (crop(whole, side, corners).square().sum((1, 2, 3)) >= 0.95 * whole.square().sum((1, 2, 3))).all()
    pixels = crop(inspection.images[inspection.top_images(top, channel)], side, corners)
    assert np.allclose(patches, pixels.movedim(1, -1) / 255, atol=1e-6)


def test_the_robust_limit_is_numpys_quantile_or_the_maximum_of_a_dot_on_rounding_errors():
    tiles = torch.randn(5, 3, 20, 20)
    tiles[1] = 0
    tiles[2] = 1e-11 * torch.rand(3, 20, 20)
    tiles[2, 1, 7, 7] = -0.02  # a pixel of 400: the quantile is a rounding error
    tiles[3] = 1e-11
    tiles[3, :, 4:6] = 0.5  # a tenth of the tile
    tiles[4, 0, 0, 0] = 1000
    limits = robust_limit(tiles)
    for n in (0, 4):
        assert limits[n] == pytest.approx(np.quantile(tiles[n].abs().amax(0).numpy(), 0.99), rel=1e-5)
    assert limits[1] == 0 and limits[2:4] == pytest.approx([0.02, 0.5])


def test_channels_by_strength_by_a_seed_and_by_number(inspection):
    def chosen(stage="conv5_x", **choice):
        return chosen_channels(replace(SETTINGS, **choice), inspection.search, stage)

    peaks = inspection.search.peaks["conv5_x"].amax(0)
    assert torch.equal(peaks[chosen(channels="strongest")], peaks.sort(descending=True).values[:9])
    first, again, other = (chosen(channels="random", seed=seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 9 and (peaks[first] > 0).all()
    assert chosen(channels=(5, 3)) == [5, 3] and chosen("conv1", channels=(500, 5)) == [5]
    assert chosen("conv1", channels=(500,)) == chosen("conv1")


def test_all_channels_on_several_pages(inspection):
    settings = Settings(stages=("conv1",), channels="all", top=1, rules=("guided",))
    drawn = dict(top9.draw_top9(add_search(inspection, settings), settings))
    entries = drawn.pop(Path("top9"))
    alive = (inspection.search.peaks["conv1"].amax(0) > 0).nonzero().flatten().tolist()
    pages = {f"conv1_top9_page_{n}" for n in range(1, -(-len(alive) // top9.CHANNELS_PER_PAGE) + 1)}
    assert {path.name for path in drawn} == {f"conv1_top9_channel_{channel}" for channel in alive} | pages
    assert [entry["channel"] for entry in entries] == alive


def test_a_class_that_the_network_does_not_know_is_not_misclassified(small_run, tmp_path):
    other = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
    inspection = inspect(small_run / "model.pt", SETTINGS, "cpu", source=str(other))
    assert not inspection.knows_labels
    for index, label in enumerate(("cross", "disk", "ring")):
        verdicts = [inspection.verdict(4 * index, n) for n in range(3)]
        known = label != "cross"
        assert verdicts == [(label, name, name == label if known else None) for name in ("disk", "ring", "stripes")]


def test_images_are_spread_over_all_classes_whatever_their_order():
    numbers = spread(100, 1000)
    assert torch.equal(numbers // 10, torch.arange(100))  # classes one after the other
    assert (numbers % 10).bincount(minlength=10).min() > 0  # alternating classes
    assert spread(7, 7).tolist() == list(range(7))


def test_a_limited_search_shows_the_images_it_searched(small_run):
    settings = Settings(limit=5)
    inspection = inspect(small_run / "model.pt", settings, "cpu")
    searched, top = spread(5, 12), inspection.search.top["conv5_x"]
    with torch.inference_mode():
        inputs = inspection.preprocess(inspection.images[searched])
        features = inspection.network.trace(inputs).features["conv5_x"].flatten(2)
        predicted = inspection.network(inputs).argmax(1)
    channels = chosen_channels(settings, inspection.search, "conv5_x")[:3]
    units = strongest_units(inspection, "conv5_x", channels, top)
    for n, result in enumerate(inspect_channels(inspection, settings, "conv5_x", channels)):
        assert sorted(image.index for image in result.images) == searched.tolist()
        first = result.images[0]
        assert units.images[n] == first.index and units.scores[n] == first.activation
        for image in result.images:
            row = searched.tolist().index(image.index)
            assert image.label == inspection.label_names[inspection.labels[image.index]]
            assert image.predicted == inspection.metadata.classes[predicted[row]]
            peak = features[row, channels[n]].max().item()
            assert image.activation == pytest.approx(peak, rel=1e-4, abs=1e-5 * features.max().item())
        position = features[searched.tolist().index(first.index), channels[n]].argmax()
        assert units.positions[n] == position == first.row * top.map_size[1] + first.column


def test_others_take_names_and_statistics_from_the_data(tmp_path, small_run):
    state = checkpoint.load(small_run / "model.pt")
    torch.save(state["model"], tmp_path / "plain.pth")
    inspection = load_inspection(tmp_path / "plain.pth", "cpu", source=str(small_run.parent / "pictures"))
    metadata = add_preprocessing(inspection).metadata
    assert metadata.classes == tuple(state["classes"])
    assert (*metadata.mean, *metadata.std) == pytest.approx((*state["mean"], *state["std"]))
