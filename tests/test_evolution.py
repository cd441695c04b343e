"""Evolution: each snapshot against its own network, shares and correlations in cases where they are known."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures, visualize

import train
from analysis.channels import robust_limit
from analysis.crops import corner_inside, crop, energy_centers
from analysis.inspection import inspect
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures import FIGURES
from figures.evolution import channels_to_compare, evolution, evolution_figure
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
    content, pictures = evolution(inspection, SETTINGS, snapshots, channels)
    assert content["epochs"] == [1, 2] and content["image_sizes"] == [40, 32]
    for n, (file, side) in enumerate((("snapshot_1.pt", 40), ("model.pt", 32))):
        network, metadata = checkpoint.load_network(run / file)
        inputs = Preprocess(side, metadata.mean, metadata.std)(inspection.images)
        with torch.inference_mode():
            trace = network.trace(inputs)
            for stage, (channel, _) in channels.items():
                # conv1's unit i sees 2i - 3 to 2i + 3; those that see the padding are not searched
                inside = slice(2, side // 2 - 1) if stage == "conv1" else slice(None)
                maps = torch.zeros_like(trace.features[stage][:, channel])
                maps[:, inside, inside] = trace.features[stage][:, channel, inside, inside]
                entry = content["stages"][stage]
                assert entry["channels"] == channels[stage] and entry["channel"] == channel
                assert entry["activations"][n] == pytest.approx(maps.max().item(), rel=1e-4)
                strongest = maps[(image := entry["images"][n])].flatten()
                assert strongest.max().item() == pytest.approx(maps.max().item(), rel=1e-4)
                part = network.trace(inputs[image : image + 1])
                signal = isolate(part.features[stage], [channel], strongest.argmax()[None])
                expected = ReverseResNet18(network, "guided")(signal, stage, part)
                assert_same_pictures(pictures[stage][n], expected.detach())


def test_the_numbers_by_brute_force(inspection, run, drawn):
    _, content = drawn
    network, metadata = checkpoint.load_network(run / "snapshot_1.pt")
    inputs = Preprocess(40, metadata.mean, metadata.std)(inspection.images)
    final_inputs = inspection.inputs(inspection.images)
    with torch.inference_mode():
        before, after = network.trace(inputs), inspection.network.trace(final_inputs)
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
            row, column = divmod(unit, maps.shape[2])
            pictures = []
            for mirrored, seen, whole in ((network, inputs, before), (inspection.network, final_inputs, after)):
                height, width = whole.features[stage].shape[2:]
                unit = int(row * height / maps.shape[1]) * width + int(column * width / maps.shape[2])
                trace = mirrored.trace(seen[image : image + 1])
                signal = isolate(trace.features[stage], [channel], torch.tensor([unit]))
                pictures.append(ReverseResNet18(mirrored, "guided")(signal, stage, trace).detach())
            small = torch.nn.functional.interpolate(pictures[0], (32, 32), mode="bilinear").flatten()
            alike.append(np.corrcoef(small, pictures[1].flatten())[0, 1] if small.any() else 0)
        assert content["stages"][stage]["correlations"] == pytest.approx([np.mean(alike), 1], abs=1e-3)


def test_the_figure_shows_the_json(drawn):
    figure, content = drawn
    assert content["epochs"] == [1, 2] and content["image_sizes"] == [40, 32] and content["chance"] == 9 / 12
    json.dumps(content, allow_nan=False)
    tiles, shares, alike = figure.get_axes()
    assert len(tiles.get_images()) == len(STAGES) * 3
    assert [tick.get_text() for tick in tiles.get_xticklabels()] == ["epoch 1\n40 px", "epoch 2\n32 px", "last image"]
    assert "Share" in shares.get_title("left") and "Correlation" in alike.get_title("left")
    labels = [tick.get_text() for tick in tiles.get_yticklabels()]
    for n, (stage, entry) in enumerate(content["stages"].items()):
        assert list(shares.lines[n].get_xdata()) == [1, 2] and list(shares.lines[n].get_ydata()) == entry["shares"]
        assert list(alike.lines[n].get_ydata()) == entry["correlations"]
        assert labels[n] == f"{stage}\nchannel {entry['channel']}"
        first, second = tiles.texts[2 * n : 2 * n + 2]
        assert [first.get_text(), second.get_text()] == [str(image) for image in entry["images"]]
        changed = entry["images"][0] != entry["images"][1]
        assert first.get_color() == "black" and (second.get_color() != "black") == changed


def test_the_last_tile_is_the_final_picture(inspection, drawn):
    figure, content = drawn
    *_, tile, last_image = [picture.get_array() for picture in figure.get_axes()[0].get_images()]
    entry = content["stages"]["conv5_x"]
    image = inspection.images[entry["images"][-1]][None]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.inputs(image))
        signal = isolate(trace.features["conv5_x"], [entry["channel"]], "peak")
        picture = ReverseResNet18(inspection.network, "guided")(signal, "conv5_x", trace)
    corner = corner_inside(energy_centers(picture)[0], len(tile), (32, 32))
    cropped = crop(picture, len(tile), [corner])
    assert_same_pictures(tile - 0.5, 0.5 * (cropped[0].movedim(0, -1) / robust_limit(cropped)[0]).clamp(-1, 1))
    expected = crop(inspection.resized(image), len(tile), [corner])
    assert np.allclose(last_image, to_array(expected)[0], atol=1e-6)


def test_channels_by_number_where_a_stage_has_them(inspection):
    alive = channels_to_compare(inspection, SETTINGS, "conv5_x")
    high = next(channel for channel in alive if channel >= 64)
    settings = Settings(channels=(high,))
    assert channels_to_compare(inspection, settings, "conv5_x") == [high]
    assert channels_to_compare(inspection, settings, "conv1") == channels_to_compare(inspection, SETTINGS, "conv1")


def test_snapshots_with_other_classes_are_one_line(small_run, tmp_path, capsys):
    def other(state, weights):
        state["classes"] = ["a", "b"]
        weights["fc.weight"], weights["fc.bias"] = weights["fc.weight"][:2], weights["fc.bias"][:2]

    write_snapshots(checkpoint.load(small_run / "model.pt"), tmp_path, other)
    visualize(tmp_path, tmp_path / "plots", "--figures", "evolution", "--no-report")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evolution")]
    assert "left out" in line and "snapshot_1.pt has 2 classes" in line and "has 3" in line
    assert not (tmp_path / "plots" / "evolution.json").exists()


def test_it_needs_nine_images_and_the_snapshots_of_this_run(run, inspection):
    shutil.copy(run / "model.pt", run / "other.pt")
    for changed, reason in (
        ({"searched": inspection.searched[:8]}, "9 test images or more: 8"),
        ({"checkpoint": run / "snapshot_1.pt"}, "train.py --snapshots"),
        ({"checkpoint": run / "other.pt"}, "train.py --snapshots"),
    ):
        with pytest.raises(NotDrawn, match=reason):
            next(FIGURES["evolution"].draw(replace(inspection, **changed), SETTINGS))


def test_a_new_run_has_nothing_of_an_old_ones(small_run, tmp_path):
    flags = ["--data", str(small_run.parent / "pictures"), "--out", str(tmp_path), "--image-size", "32"]
    train.main([*flags, "--epochs", "1", "--snapshots", "1"])
    assert list(checkpoint.snapshots(tmp_path)) == [1]
    train.main([*flags, "--epochs", "1", "--overwrite"])
    assert not checkpoint.snapshots(tmp_path)


def test_many_snapshots_an_unknown_last_epoch_and_no_text_leaves_the_figure():
    epochs = [*range(100, 120), None]
    stage = {"channel": 511, "images": [9999] * 21, "shares": [0.5] * 21, "correlations": [0.5] * 21}
    content = {"epochs": epochs, "image_sizes": [224] * 20 + [64], "images_searched": 10_000, "chance": 9e-4}
    content["stages"] = dict.fromkeys(STAGES, stage)
    tiles = dict.fromkeys(STAGES, [RANDOM.rand(11, 11, 3)] * 22)
    figure = evolution_figure(content, tiles, "deconvnet, overwriting unpooling")
    assert_inside(figure)
    axes, shares, _ = figure.get_axes()
    assert list(shares.lines[0].get_xdata()) == [*range(100, 121)]
    first, *_, last, _ = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(axes.get_xticklabels()) == 10 and first == "epoch 100\n224 px" and last == "now\n64 px"
