"""Evolution: each snapshot against its own network, shares and correlations by brute force, the figure."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures, visualize

from analysis.channels import robust_limit
from analysis.crops import crop, crop_boxes
from analysis.inspection import inspect
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures import FIGURES
from figures.evolution import evolution, evolution_figure
from figures.image_grid import to_array
from figures.registry import NotDrawn
from network import STAGES
from reverse_network import ReverseResNet18, isolate
from runtime import checkpoint

RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A run of two epochs: the first snapshot is smaller and has other filters."""
    folder = tmp_path_factory.mktemp("evolution")
    state = checkpoint.load(small_run / "model.pt")
    noise = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    other = state["model"] | {"conv1.weight": state["model"]["conv1.weight"] + 0.05 * noise}
    torch.save(state | {"image_size": 40, "model": other}, folder / "snapshot_1.pt")
    for name in ("snapshot_2.pt", "model.pt"):
        torch.save(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def inspection(run):
    return inspect(run / "model.pt", Settings(), "cpu", stages=STAGES)


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figure and the content of evolution.json."""
    (path, figure), (_, content) = FIGURES["evolution"].draw(inspection, Settings())
    assert str(path) == "evolution"
    return figure, content


@pytest.fixture(scope="module")
def epochs(run, inspection):
    """Network, inputs and features of both epochs."""
    found = []
    for file, side in (("snapshot_1.pt", 40), ("model.pt", 32)):
        network, metadata = checkpoint.load_network(run / file)
        inputs = Preprocess(side, metadata.mean, metadata.std)(inspection.images)
        with torch.inference_mode():
            found.append((network, inputs, network.trace(inputs).features))
    return found


@torch.inference_mode()
def seen_by(network, inputs, stage, channel, unit):
    """What a unit of a channel saw in one image, (1, 3, S, S)."""
    trace = network.trace(inputs)
    signal = isolate(trace.features[stage], [channel], torch.as_tensor(unit)[None])
    return ReverseResNet18(network, "guided")(signal, stage, trace)


def test_each_epoch_is_its_own_network_at_its_own_size(inspection, run, drawn, epochs):
    channels = {stage: drawn[1]["stages"][stage]["channels"][:1] for stage in ("conv1", "conv5_x")}
    content, pictures = evolution(inspection, Settings(), checkpoint.snapshots(run), channels)
    assert content["epochs"] == [1, 2] and content["image_sizes"] == [40, 32]
    for n, (network, inputs, features) in enumerate(epochs):
        for stage, (channel,) in channels.items():
            # conv1's unit i sees 2i - 3 to 2i + 3; those that see the padding are not searched
            inside = slice(2, inputs.shape[2] // 2 - 1) if stage == "conv1" else slice(None)
            maps = torch.zeros_like(features[stage][:, channel])
            maps[:, inside, inside] = features[stage][:, channel, inside, inside]
            entry = content["stages"][stage]
            assert entry["activations"][n] == pytest.approx(maps.max().item(), rel=1e-4)
            strongest = maps[(image := entry["images"][n])].flatten()
            assert strongest.max().item() == pytest.approx(maps.max().item(), rel=1e-4)
            expected = seen_by(network, inputs[image : image + 1], stage, channel, strongest.argmax())
            assert_same_pictures(pictures[stage][n], expected)


@pytest.mark.parametrize("stage", ["conv4_x", "conv5_x"])
def test_the_numbers_by_brute_force(drawn, epochs, stage):
    entry, (*_, after) = drawn[1]["stages"][stage], epochs[1]
    shares = []
    for channel in range(after[stage].shape[1]):
        nine = []
        for *_, features in epochs:
            peaks = features[stage][:, channel].amax((1, 2)).tolist()
            nine.append({n for n in sorted(range(12), key=lambda n: -peaks[n])[:9] if peaks[n] > 0})
        if nine[1]:
            shares.append(len(nine[0] & nine[1]) / len(nine[1]))
    assert entry["shares"] == pytest.approx([np.mean(shares), 1], abs=0.01)
    alike = []
    for channel in entry["channels"]:
        maps = after[stage][:, channel]
        image, row, column = np.unravel_index(maps.argmax().item(), maps.shape)
        pictures = []
        for network, inputs, features in epochs:
            height, width = features[stage].shape[2:]
            unit = int(row * height / maps.shape[1]) * width + int(column * width / maps.shape[2])
            pictures.append(seen_by(network, inputs[image : image + 1], stage, channel, unit))
        small = torch.nn.functional.interpolate(pictures[0], (32, 32), mode="bilinear").flatten()
        alike.append(np.corrcoef(small, pictures[1].flatten())[0, 1] if small.any() else 0)
    assert entry["correlations"] == pytest.approx([np.mean(alike), 1], abs=1e-3)


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


def test_the_last_tile_is_the_final_picture(inspection, drawn, epochs):
    *_, tile, last_image = [picture.get_array() for picture in drawn[0].get_axes()[0].get_images()]
    entry, (network, inputs, features) = drawn[1]["stages"]["conv5_x"], epochs[1]
    image, channel = entry["images"][-1], entry["channel"]
    unit = features["conv5_x"][image, channel].argmax()
    picture = seen_by(network, inputs[image : image + 1], "conv5_x", channel, unit)
    box = crop_boxes([picture], least=len(tile))
    cropped = crop(picture, *box)
    assert_same_pictures(tile - 0.5, 0.5 * (cropped[0].movedim(0, -1) / robust_limit(cropped)[0]).clamp(-1, 1))
    expected = to_array(crop(inspection.resized(inspection.images[image][None]), *box))
    assert np.allclose(last_image, expected[0], atol=1e-6)


def test_snapshots_with_other_classes_are_one_line(run, tmp_path, capsys):
    state = checkpoint.load(run / "model.pt")
    torch.save(state, tmp_path / "model.pt")
    fc = {name: state["model"][name][:2] for name in ("fc.weight", "fc.bias")}
    torch.save(state | {"classes": ["a", "b"], "model": state["model"] | fc}, tmp_path / "snapshot_1.pt")
    visualize(tmp_path, tmp_path / "plots", "--figures", "evolution", "--no-report")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evolution")]
    assert "left out" in line and "snapshot_1.pt has 2 classes" in line and "has 3" in line
    assert not (tmp_path / "plots" / "evolution.json").exists()


def test_it_needs_the_snapshots_of_this_run(run, inspection):
    for name in ("snapshot_1.pt", "other.pt"):
        with pytest.raises(NotDrawn, match="train.py --snapshots"):
            next(FIGURES["evolution"].draw(replace(inspection, checkpoint=run / name), Settings()))


def test_of_many_snapshots_eleven_are_shown_and_no_text_leaves_the_figure():
    stage = {"channel": 511, "images": [9999] * 21, "shares": [0.5] * 21, "correlations": [0.5] * 21}
    content = {"epochs": [*range(100, 121)], "image_sizes": [224] * 20 + [64], "images_searched": 10_000}
    content |= {"chance": 9e-4, "stages": dict.fromkeys(STAGES, stage)}
    tiles = dict.fromkeys(STAGES, [RANDOM.rand(11, 11, 3)] * 22)
    figure = evolution_figure(content, tiles, "deconvnet, overwriting unpooling")
    assert_inside(figure)
    labels = [tick.get_text() for tick in figure.get_axes()[0].get_xticklabels()]
    assert len(labels) == 12 and labels[0] == "epoch 100\n224 px" and labels[-2] == "epoch 120\n64 px"
