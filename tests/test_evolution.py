"""Evolution: each snapshot against its own network, shares and correlations in cases where they are known."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures

import train
import visualizer
from analysis.channels import robust_limit
from analysis.crops import corner_inside, crop, energy_centers
from analysis.inspection import inspect
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures import FIGURES
from figures.evolution import (
    best_images,
    channels_to_compare,
    columns_shown,
    epochs_of,
    evolution,
    evolution_figure,
    mean_share,
)
from figures.image_grid import to_array
from figures.registry import NotDrawn
from network import STAGES
from reverse_network import ReverseResNet18, isolate
from runtime import checkpoint

SETTINGS = Settings()
RANDOM = np.random.RandomState(0)


def write_snapshots(state, folder, *changes):
    """model.pt, the small run's, and one snapshot per change to its entries or weights."""
    torch.save(state, folder / "model.pt")
    for epoch, change in enumerate(changes, 1):
        weights = dict(state["model"])
        other = state | {"model": weights}
        change(other, weights)
        torch.save(other, folder / f"snapshot_{epoch}.pt")


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A run of two epochs: the first snapshot is smaller and has other filters."""
    folder = tmp_path_factory.mktemp("evolution")
    generator = torch.Generator().manual_seed(0)

    def other(state, weights):
        state["image_size"] = 40
        weights["conv1.weight"] = weights["conv1.weight"] + 0.05 * torch.randn(64, 3, 7, 7, generator=generator)

    write_snapshots(checkpoint.load(small_run / "model.pt"), folder, other, lambda state, weights: None)
    return folder


@pytest.fixture(scope="module")
def inspection(run):
    return inspect(run / "model.pt", SETTINGS, "cpu", stages=STAGES)


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of evolution.json."""
    (path, figure), (_, content) = FIGURES["evolution"].draw(inspection, SETTINGS)
    assert str(path) == "evolution"
    return figure, content


def test_each_epoch_is_its_own_network_at_its_own_size(inspection, run):
    channels = {stage: channels_to_compare(inspection, SETTINGS, stage)[:2] for stage in ("conv1", "conv5_x")}
    snapshots = {epoch: run / f"snapshot_{epoch}.pt" for epoch in (1, 2)}
    found = list(evolution(inspection, SETTINGS, snapshots, channels))
    assert [(each.epoch, each.image_size) for each in found] == [(1, 40), (2, 32)]
    for each, file in zip(found, ("snapshot_1.pt", "model.pt"), strict=True):
        network, metadata = checkpoint.load_network(run / file)
        inputs = Preprocess(each.image_size, metadata.mean, metadata.std)(inspection.images)
        with torch.inference_mode():
            trace = network.trace(inputs)
            for stage, (channel, _) in channels.items():
                # conv1's unit i sees 2i - 3 to 2i + 3; those that see the padding are not searched
                inside = slice(2, each.image_size // 2 - 1) if stage == "conv1" else slice(None)
                maps = trace.features[stage][:, channel]
                peaks = maps[:, inside, inside].amax((1, 2))
                units = each.units[stage]
                assert units.channels == [channel]
                assert units.scores.item() == pytest.approx(peaks.max().item(), rel=1e-4)
                assert maps[units.images].flatten()[units.positions].item() == pytest.approx(units.scores.item())
                part = network.trace(inputs[units.images])
                signal = isolate(part.features[stage], [channel], units.positions)
                expected = ReverseResNet18(network, "guided")(signal, stage, part)
                assert_same_pictures(each.pictures[stage], expected.detach())


def test_the_numbers_by_brute_force(inspection, run, drawn):
    _, content = drawn
    network, metadata = checkpoint.load_network(run / "snapshot_1.pt")
    inputs = Preprocess(40, metadata.mean, metadata.std)(inspection.images)
    with torch.inference_mode():
        before, after = network.trace(inputs), inspection.network.trace(inspection.inputs(inspection.images))
    for stage in ("conv4_x", "conv5_x"):
        shares = []
        for channel in range(after.features[stage].shape[1]):
            nine = []
            for trace in (before, after):
                peaks = trace.features[stage][:, channel].amax((1, 2)).tolist()
                order = sorted(range(12), key=lambda n: -peaks[n])[:9]
                nine.append({n for n in order if peaks[n] > 0})
            if nine[1]:
                shares.append(len(nine[0] & nine[1]) / len(nine[1]))
        assert content["stages"][stage]["shares"] == pytest.approx([np.mean(shares), 1], abs=0.01)
        alike = []
        for channel in content["stages"][stage]["channels"]:
            maps = after.features[stage][:, channel]
            image, unit = divmod(maps.flatten().argmax().item(), maps[0].numel())
            pictures = []
            for each, side in ((network, 40), (inspection.network, 32)):
                trace = each.trace(Preprocess(side, metadata.mean, metadata.std)(inspection.images[image : image + 1]))
                height, width = trace.features[stage].shape[2:]
                row, column = unit // maps.shape[2], unit % maps.shape[2]
                place = int(row * height / maps.shape[1]) * width + int(column * width / maps.shape[2])
                signal = isolate(trace.features[stage], [channel], torch.tensor([place]))
                pictures.append(ReverseResNet18(each, "guided")(signal, stage, trace).detach())
            small = torch.nn.functional.interpolate(pictures[0], (32, 32), mode="bilinear").flatten()
            is_empty = not small.any()
            alike.append(0 if is_empty else np.corrcoef(small, pictures[1].flatten())[0, 1])
        assert content["stages"][stage]["correlations"] == pytest.approx([np.mean(alike), 1], abs=1e-3)


def test_shares_by_hand():
    peaks = torch.zeros(12, 3)
    peaks[:, 0] = torch.arange(12.0)
    peaks[:3, 1] = 1.0  # channel 2 is dead
    final = best_images(peaks)
    assert final[:, 0].tolist() == [False] * 3 + [True] * 9 and final.sum(0).tolist() == [9, 3, 0]
    assert mean_share(best_images(peaks.flip(0)), final) == pytest.approx((6 / 9 + 0) / 2)


def test_the_figure_shows_the_json(inspection, drawn):
    figure, content = drawn
    assert content["epochs"] == [1, 2] and content["image_sizes"] == [40, 32] and content["chance"] == 9 / 12
    json.dumps(content, allow_nan=False)
    tiles, shares, alike = figure.get_axes()
    assert len(tiles.get_images()) == len(STAGES) * 3
    for stage, line, other in zip(STAGES, shares.lines, alike.lines, strict=False):
        found = content["stages"][stage]
        assert list(line.get_xdata()) == [1, 2] and list(line.get_ydata()) == found["shares"]
        assert list(other.get_ydata()) == found["correlations"]
    assert [tick.get_text() for tick in tiles.get_xticklabels()] == ["epoch 1\n40 px", "epoch 2\n32 px", "last image"]
    labels = [tick.get_text() for tick in tiles.get_yticklabels()]
    assert labels == [f"{stage}\nchannel {content['stages'][stage]['channel']}" for stage in STAGES]
    for stage, first, second in zip(STAGES, tiles.texts[::2], tiles.texts[1::2], strict=True):
        images = content["stages"][stage]["images"]
        assert [first.get_text(), second.get_text()] == [str(image) for image in images]
        assert first.get_color() == "black" and (second.get_color() != "black") == (images[0] != images[1])


def test_the_last_tile_is_the_final_picture(inspection, drawn):
    figure, content = drawn
    tiles = [picture.get_array() for picture in figure.get_axes()[0].get_images()]
    found = content["stages"]["conv5_x"]
    image = inspection.images[found["images"][-1]][None]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.inputs(image))
        signal = isolate(trace.features["conv5_x"], [found["channel"]], "peak")
        picture = ReverseResNet18(inspection.network, "guided")(signal, "conv5_x", trace)
    side = tiles[-2].shape[0]
    corner = corner_inside(energy_centers(picture)[0], side, (32, 32))
    tile = crop(picture, side, [corner])
    expected = 0.5 * (tile[0].movedim(0, -1) / robust_limit(tile)[0]).clamp(-1, 1)
    assert_same_pictures(tiles[-2] - 0.5, expected)
    assert np.allclose(tiles[-1], to_array(crop(inspection.resized(image), side, [corner]))[0], atol=1e-6)


def test_channels_by_number_where_a_stage_has_them(inspection):
    alive = channels_to_compare(inspection, SETTINGS, "conv5_x")
    high = next(channel for channel in alive if channel >= 64)
    settings = Settings(channels=(high,))
    assert channels_to_compare(inspection, settings, "conv5_x") == [high]
    assert channels_to_compare(inspection, settings, "conv1") == channels_to_compare(inspection, SETTINGS, "conv1")


class TestBadInput:
    def test_snapshots_with_other_classes_are_one_line(self, small_run, tmp_path, capsys):
        def other(state, weights):
            state["classes"] = ["a", "b"]
            weights["fc.weight"], weights["fc.bias"] = weights["fc.weight"][:2], weights["fc.bias"][:2]

        write_snapshots(checkpoint.load(small_run / "model.pt"), tmp_path, other)
        flags = ["--ckpt", str(tmp_path / "model.pt"), "--device", "cpu", "--out", str(tmp_path / "plots")]
        visualizer.main([*flags, "--figures", "evolution", "--no-report"])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evolution")]
        assert "left out" in line and "snapshot_1.pt has 2 classes" in line and "has 3" in line
        assert not (tmp_path / "plots" / "evolution.json").exists()

    def test_fewer_than_nine_images(self, inspection):
        with pytest.raises(NotDrawn, match="9 test images or more: 8 are searched"):
            next(FIGURES["evolution"].draw(replace(inspection, searched=inspection.searched[:8]), SETTINGS))

    def test_of_a_run_and_not_of_what_lies_beside_it(self, run, inspection):
        shutil.copy(run / "model.pt", run / "other.pt")
        for name in ("snapshot_1.pt", "other.pt"):
            with pytest.raises(NotDrawn, match="train.py --snapshots"):
                next(FIGURES["evolution"].draw(replace(inspection, checkpoint=run / name), SETTINGS))

    def test_a_new_run_has_nothing_of_an_old_ones(self, small_run, tmp_path):
        flags = ["--data", str(small_run.parent / "pictures"), "--out", str(tmp_path), "--image-size", "32"]
        train.main([*flags, "--epochs", "1", "--snapshots", "1"])
        assert list(checkpoint.snapshots(tmp_path)) == [1]
        train.main([*flags, "--epochs", "1", "--overwrite"])
        assert not checkpoint.snapshots(tmp_path)


def test_many_snapshots_share_the_columns():
    assert columns_shown(3) == [0, 1, 2] and columns_shown(1) == [0]
    many = columns_shown(40)
    assert len(many) == 9 and many[0] == 0 and many[-1] == 39


def test_an_unknown_last_epoch_and_no_text_leaves_the_figure():
    epochs = [*range(100, 120), None]
    assert epochs_of(epochs) == [*range(100, 121)]
    stage = {"channel": 511, "images": [9999] * 21, "shares": [0.5] * 21, "correlations": [0.5] * 21}
    content = {"epochs": epochs, "image_sizes": [224] * 20 + [64], "images_searched": 10_000, "chance": 9e-4}
    content["stages"] = dict.fromkeys(STAGES, stage)
    tiles = dict.fromkeys(STAGES, [RANDOM.rand(11, 11, 3)] * 22)
    assert_inside(evolution_figure(content, tiles, "deconvnet, overwriting unpooling"))
