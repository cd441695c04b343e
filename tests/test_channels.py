"""Which channels, images and units are shown, and with what said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures, write_folder

from analysis.activations import SearchResult, TopActivations
from analysis.channels import (
    chosen_channels,
    inspect_channels,
    reconstruct_top_images,
    robust_limit,
    strongest_units,
)
from analysis.crops import crop_boxes
from analysis.inspection import add_preprocessing, add_search, inspect, load_inspection, spread
from analysis.settings import Settings
from figures import FIGURES, hierarchy, top9
from figures.registry import NotDrawn
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
    images = inspection.images[[image.index for image in result.images]]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(images))
        signal = isolate(trace.features["conv5_x"], 7, "peak")
        for rule in ("deconvnet", "guided"):
            expected = ReverseResNet18(inspection.network, rule)(signal, "conv5_x", trace)
            for image, picture, shown in zip(result.images, expected, result.reconstructions[rule], strict=True):
                top, left, bottom, right = image.crop
                cropped = picture[:, top:bottom, left:right]
                assert_same_pictures(shown, cropped)
                limit = np.quantile(cropped.abs().amax(0).numpy(), 0.99)
                assert image.scale[rule] == pytest.approx(limit, rel=0.02)
    for image, pixels, patch in zip(result.images, images, result.patches, strict=True):
        top, left, bottom, right = image.crop
        assert torch.allclose(patch, pixels[:, top:bottom, left:right] / 255, atol=1e-6)


def test_channels_in_groups_are_what_each_is_alone(inspection, monkeypatch):
    picture = 3 * inspection.metadata.image_size**2 * 4
    monkeypatch.setattr("analysis.channels.GROUP_BYTES", 2 * 9 * 2 * picture)  # two channels, nine images, two rules
    traced = []
    trace = ResNet18.trace
    monkeypatch.setattr(
        ResNet18, "trace", lambda self, images, until: traced.append(len(images)) or trace(self, images, until)
    )
    found = inspect_channels(inspection, SETTINGS, "conv5_x", [7, 3, 12])
    results = [next(found)]
    distinct = inspection.search.top["conv5_x"].indices[[7, 3]].unique()
    assert traced == [len(distinct)]  # the next group waits, and an image that both show is traced once
    results += found
    assert [result.channel for result in results] == [7, 3, 12]
    for result in results:
        alone = inspect_channel(inspection, SETTINGS, "conv5_x", result.channel)
        assert [image.index for image in result.images] == [image.index for image in alone.images]
        assert [image.crop for image in result.images] == [image.crop for image in alone.images]
        for rule, tiles in result.reconstructions.items():
            assert_same_pictures(tiles, alone.reconstructions[rule])


def test_the_hierarchy_shows_what_a_unit_sees(inspection):
    """Of conv1, 7 pixels: tiles hold the filter and no margin, and patches are the pixels below it."""
    settings = replace(SETTINGS, rules=("guided",))
    channel = int(inspection.search.top["conv1"].scores[:, 8].argmax())
    whole = reconstruct_top_images(inspection, settings, "conv1", [channel])["guided"][0]
    patches, tiles = hierarchy.crop_channel(inspection, "conv1", channel, whole)
    side, corners = crop_boxes([whole], least=1)
    assert patches.shape == tiles.shape == (9, side, side, 3) and side <= 7
    images = inspection.images[inspection.top_images(inspection.search.top["conv1"], channel)]
    for image, picture, patch, (top, left) in zip(images, whole, patches, corners, strict=True):
        inside = picture[:, top : top + side, left : left + side]
        assert inside.square().sum() >= 0.95 * picture.square().sum()
        assert np.allclose(patch, image[:, top : top + side, left : left + side].permute(1, 2, 0) / 255, atol=1e-6)


def test_one_scale_for_a_channel(inspection):
    result = inspect_channel(inspection, replace(SETTINGS, scale="channel"), "conv5_x", 7)
    for rule, tiles in result.reconstructions.items():
        assert {image.scale[rule] for image in result.images} == {tiles.abs().max().item()}


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


def test_random_channels_follow_the_seed_and_are_alive(inspection):
    settings = replace(SETTINGS, channels="random")
    first, again, other = (
        chosen_channels(replace(settings, seed=seed), inspection.search, "conv5_x") for seed in (0, 0, 1)
    )
    assert first == again != other and len(set(first)) == 9
    assert (inspection.search.peaks["conv5_x"].amax(0)[first] > 0).all()


def test_strongest_channels_descend(inspection):
    found = chosen_channels(replace(SETTINGS, channels="strongest"), inspection.search, "conv5_x")
    peaks = inspection.search.peaks["conv5_x"].amax(0)
    assert torch.equal(peaks[found], peaks.sort(descending=True).values[:9])


def test_channels_asked_for_by_number(inspection):
    assert chosen_channels(replace(SETTINGS, channels=(5, 3)), inspection.search, "conv5_x") == [5, 3]
    with_high = replace(SETTINGS, channels=(500, 5))
    assert chosen_channels(with_high, inspection.search, "conv1") == [5]
    assert chosen_channels(replace(SETTINGS, channels=(500,)), inspection.search, "conv1") == chosen_channels(
        SETTINGS, inspection.search, "conv1"
    )


def test_with_the_border_every_unit_is_searched(small_run):
    inside, border = (
        inspect(small_run / "model.pt", replace(SETTINGS, border=border), "cpu") for border in (False, True)
    )
    with torch.inference_mode():
        features = inside.network.trace(inside.inputs(inside.images), "conv1").features["conv1"]
    assert torch.allclose(border.search.peaks["conv1"], features.amax((2, 3)), atol=1e-5)
    assert torch.allclose(inside.search.peaks["conv1"], features[:, :, 2:15, 2:15].amax((2, 3)), atol=1e-5)


def test_all_channels_on_several_pages(inspection):
    settings = Settings(stages=("conv1",), channels="all", top=1, rules=("guided",))
    drawn = dict(top9.draw_top9(add_search(inspection, settings), settings))
    entries = drawn.pop(Path("top9"))
    names = {path.name for path in drawn}
    dead = (inspection.search.top["conv1"].scores[:, 0] <= 0).nonzero().flatten().tolist()
    alive = set(range(64)) - set(dead)
    pages = {f"conv1_top9_page_{n}" for n in range(1, -(-len(alive) // top9.CHANNELS_PER_PAGE) + 1)}
    assert names == {f"conv1_top9_channel_{channel}" for channel in alive} | pages
    assert [entry["channel"] for entry in entries] == sorted(alive)


def test_comparisons_need_a_stage_above_the_pooling(inspection):
    for name in ("rules", "branches", "mirrors", "sanity"):
        with pytest.raises(NotDrawn, match="one of the --stages conv2_x"):
            next(FIGURES[name].draw(inspection, Settings(stages=("conv1",))))


def test_a_class_that_the_network_does_not_know_is_not_misclassified(small_run, tmp_path):
    other = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
    inspection = inspect(small_run / "model.pt", SETTINGS, "cpu", source=str(other))
    every_image = TopActivations(
        torch.ones(64, 12), torch.arange(12).expand(64, 12), torch.zeros(64, 12, dtype=torch.int64), (16, 16)
    )
    search = SearchResult({"conv1": every_image}, inspection.search.peaks, inspection.search.logits)
    result = inspect_channel(replace(inspection, search=search), SETTINGS, "conv1", 3)
    assert {image.label for image in result.images} == {"disk", "ring", "cross"}
    for image in result.images:
        known = image.label != "cross"
        assert image.correct == (image.label == image.predicted if known else None)


def test_images_are_spread_over_all_classes_whatever_their_order():
    found = spread(100, 1000)
    assert torch.equal(found // 10, torch.arange(100))  # classes one after the other
    assert (found % 10).bincount(minlength=10).min() > 0  # alternating classes
    assert spread(7, 7).tolist() == list(range(7))


def test_a_limited_search_shows_the_images_it_searched(small_run):
    settings = Settings(limit=5)
    inspection = inspect(small_run / "model.pt", settings, "cpu")
    images, labels = inspection.images, inspection.labels
    searched = spread(5, 12).tolist()
    with torch.inference_mode():
        inputs = inspection.preprocess(images)
        features = inspection.network.trace(inputs).features["conv5_x"]
        peaks, predicted = features.amax((2, 3)), inspection.network(inputs).argmax(1)
    for channel in chosen_channels(settings, inspection.search, "conv5_x")[:3]:
        result = inspect_channel(inspection, settings, "conv5_x", channel)
        found = [image.index for image in result.images]
        assert sorted(found) == searched
        for image, patch in zip(result.images, result.patches, strict=True):
            top, left, bottom, right = image.crop
            assert torch.allclose(patch, images[image.index][:, top:bottom, left:right] / 255, atol=1e-6)
            assert image.label == inspection.label_names[labels[image.index]]
            assert image.predicted == inspection.metadata.classes[predicted[image.index]]
            rounding = 1e-5 * peaks.max().item()
            assert image.activation == pytest.approx(peaks[image.index, channel].item(), rel=1e-4, abs=rounding)


def test_strongest_units_are_told_by_their_place_in_the_test_split(small_run):
    inspection = inspect(small_run / "model.pt", Settings(limit=5), "cpu")
    top = TopActivations(
        torch.tensor([[4.0, 3], [2, 1], [9, 8]]),
        torch.tensor([[1, 0], [4, 2], [3, 1]]),
        torch.tensor([[7, 0], [8, 0], [9, 0]]),
        (4, 4),
    )
    units = strongest_units(inspection, "conv3_x", [2, 0], top)
    assert torch.equal(units.images, inspection.searched[[3, 1]]) and units.positions.tolist() == [9, 7]
    assert units.channels == [2, 0] and units.scores.tolist() == [9, 4]


def test_others_take_names_and_statistics_from_the_data(tmp_path, small_run):
    state = checkpoint.load(small_run / "model.pt")
    torch.save(state["model"], tmp_path / "plain.pth")
    inspection = load_inspection(tmp_path / "plain.pth", "cpu", source=str(small_run.parent / "pictures"))
    metadata = add_preprocessing(inspection).metadata
    assert metadata.classes == tuple(state["classes"])
    assert metadata.mean == pytest.approx(tuple(state["mean"]))
    assert metadata.std == pytest.approx(tuple(state["std"]))
