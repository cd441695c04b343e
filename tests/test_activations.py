"""The search against brute force over all activations; crops by the energy they must hold."""

import copy

import numpy as np
import pytest
import torch

from analysis.activations import RowBuffer, search, split_dead_channels
from analysis.crops import bounding_boxes, crop, crop_boxes, energy_centers, mean_correlation
from network import CHANNELS, ResNet18


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ResNet18().eval()


def top_activations(network, batches, stage):
    top = search(network, batches, [stage]).top[stage]
    return top.scores, top.indices, top.positions


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("stage", ["conv1", "conv5_x"])
def test_the_search_equals_brute_force(network, stage, batch_size):
    images = torch.randn(40, 3, 48, 48)
    scores, indices, positions = top_activations(network, images.split(batch_size), stage)
    with torch.inference_mode():
        features = torch.cat([network.trace(part).features[stage] for part in images.split(batch_size)])
    peaks = features.flatten(2).max(2)  # all there is: (40, C)
    expected = peaks.values.T.sort(dim=1, descending=True, stable=True)
    assert scores.shape == (CHANNELS[stage], 9)
    assert torch.equal(scores, expected.values[:, :9]) and torch.equal(indices, expected.indices[:, :9])
    channels = torch.arange(CHANNELS[stage])[:, None]
    assert torch.equal(features.flatten(2)[indices, channels, positions], scores)


def test_units_at_the_border_are_left_out(network):
    """Brute force over the units inside; positions are those in the whole map."""
    images = torch.randn(30, 3, 48, 48)
    found = search(network, images.split(7), ["conv1", "conv2_x"], inside={"conv1": slice(2, 22), "conv2_x": None})
    with torch.inference_mode():
        features = torch.cat([network.trace(part, "conv1").features["conv1"] for part in images.split(7)])
    masked = torch.full_like(features, -1)
    masked[:, :, 2:22, 2:22] = features[:, :, 2:22, 2:22]
    peaks = masked.flatten(2).max(2)
    expected, top = peaks.values.T.sort(dim=1, descending=True, stable=True), found.top["conv1"]
    assert torch.equal(top.scores, expected.values[:, :9]) and torch.equal(top.indices, expected.indices[:, :9])
    assert torch.equal(features.flatten(2)[top.indices, torch.arange(64)[:, None], top.positions], top.scores)
    rows, columns = top.positions // 24, top.positions % 24
    assert min(rows.min(), columns.min()) >= 2 and max(rows.max(), columns.max()) <= 21
    assert torch.equal(found.peaks["conv1"], peaks.values)
    units = found.positions["conv1"].long()[:, :, None]
    assert torch.equal(features.flatten(2).gather(2, units)[:, :, 0], found.peaks["conv1"])
    assert torch.equal(found.top["conv2_x"].scores, top_activations(network, images.split(7), "conv2_x")[0])


def test_training_mode_is_refused():
    with pytest.raises(RuntimeError, match="evaluation mode"):
        top_activations(ResNet18(), [torch.randn(2, 3, 32, 32)], "conv1")


def test_all_stages_in_one_pass(network):
    images = torch.randn(12, 3, 32, 32)
    passes = []

    def batches():
        for part in images.split(5):
            passes.append(len(part))
            yield part

    found = search(network, batches(), CHANNELS, with_logits=True)
    assert passes == [5, 5, 2]
    assert torch.allclose(found.logits, network(images), atol=1e-5)
    assert search(network, batches(), ["conv1", "conv4_x"]).logits is None
    assert torch.equal(search(network, batches(), ["conv1"], with_logits=True).logits, found.logits)
    for stage, top in found.top.items():
        assert torch.equal(top.scores, top_activations(network, images.split(5), stage)[0])
        assert top.scores.shape == (CHANNELS[stage], 9)


def test_a_row_buffer_is_a_concatenation():
    parts = [torch.randn(n, 3) for n in (700, 1, 400, 2000, 24)]
    buffer = RowBuffer()
    for part in parts:
        buffer.append(part)
    assert torch.equal(buffer.rows(), torch.cat(parts))
    before = buffer.rows()
    buffer.append(torch.zeros(5, 3))
    assert torch.equal(before, torch.cat(parts))


def test_of_equal_scores_the_earlier_image_comes_first(network):
    images = torch.randn(1, 3, 32, 32).expand(20, -1, -1, -1)
    _, indices, _ = top_activations(network, images.split(1), "conv1")
    assert torch.equal(indices, torch.arange(9).expand(64, 9))


def test_fewer_images_than_asked_for(network):
    scores, indices, _ = top_activations(network, [torch.randn(4, 3, 32, 32)], "conv2_x")
    assert scores.shape == indices.shape == (64, 4)


def test_dead_channels_are_those_that_are_zero_in_every_image(network):
    network = copy.deepcopy(network)
    with torch.no_grad():
        for channel in (5, 40):
            network.bn1.weight[channel] = network.bn1.bias[channel] = 0
        network.bn1.bias[[3, 7, 60]] = 10.0
    top = search(network, [torch.randn(3, 3, 32, 32)], ["conv1"]).top["conv1"]
    assert split_dead_channels(top, [60, 40, 3, 5, 7]) == ([60, 3, 7], [40, 5])


def test_what_is_kept_does_not_grow_with_the_images(network):
    few = search(network, torch.randn(20, 3, 32, 32).split(10), ["conv5_x"]).top["conv5_x"]
    many = search(network, torch.randn(60, 3, 32, 32).split(10), ["conv5_x"]).top["conv5_x"]
    for name in ("scores", "indices", "positions"):
        assert getattr(few, name).untyped_storage().nbytes() == getattr(many, name).untyped_storage().nbytes()


def energy_within(picture, side, corner):
    tile = crop(picture[None], side, [corner])
    return (tile.square().sum() / picture.square().sum()).item()


def test_the_bounding_box_holds_95_percent_of_the_energy():
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    for width in (1.0, 4.0, 12.0):
        blob = torch.exp(-((y - 20) ** 2 + (x - 50) ** 2) / (2 * width**2)) * torch.randn(
            3, 64, 80, generator=generator
        )
        [(top, left, bottom, right)] = bounding_boxes(blob[None])
        held = blob[:, top:bottom, left:right].square().sum() / blob.square().sum()
        assert held >= 0.95
        assert bottom - top < 6 * width + 3 and right - left < 6 * width + 3  # and little more than it must


def test_crops_share_their_size_and_hold_the_energy_of_every_rule():
    pictures = [torch.zeros(4, 3, 100, 100) for _ in range(2)]
    for n in range(4):
        pictures[0][n, :, 10 * n : 10 * n + 20, 40:60] = 1
        pictures[1][n, :, 10 * n + 30 : 10 * n + 40, 45:50] = -1
    side, corners = crop_boxes(pictures)
    assert 30 <= side <= 40
    for rule in pictures:
        for n in range(4):
            assert energy_within(rule[n], side, corners[n]) >= 0.95


def test_a_small_bounding_box_is_centred_and_shifted_into_the_image():
    picture = torch.zeros(2, 3, 64, 64)
    picture[0, :, 30:37, 40:47] = 1
    picture[1, :, 0:7, 57:64] = 1
    side, corners = crop_boxes([picture])
    assert side == 11 and corners == [(28, 38), (0, 53)]
    assert crop_boxes([picture], least=1)[0] == 7
    tiles = crop(picture, side, corners)
    assert torch.equal(tiles[0], picture[0, :, 28:39, 38:49]) and torch.equal(tiles[1], picture[1, :, :11, 53:])


def test_the_centre_of_the_energy_is_its_median():
    picture = torch.zeros(3, 3, 20, 30)
    picture[0, :, 4, 7] = 2
    picture[1, 0, 2:9, 10:21] = -1
    assert energy_centers(picture) == [(4, 7), (5, 15), (10, 15)]  # the last one has no energy


def test_crops_of_pictures_without_energy():
    nothing = torch.zeros(2, 3, 64, 64)
    assert bounding_boxes(nothing) == [None, None]
    something = nothing.clone()
    something[0, :, 0:5, 0:5] = 1
    assert crop_boxes([nothing])[0] == 11
    assert crop_boxes([something, nothing])[1] == crop_boxes([something])[1]  # an all-zero picture moves no crop


def test_small_images_are_shown_whole():
    assert crop_boxes([torch.rand(3, 3, 10, 10)]) == (10, [(0, 0)] * 3)


def test_mean_correlation_is_numpys():
    pictures = np.random.RandomState(0).randn(5, 8, 8, 3)
    expected = np.corrcoef(pictures.reshape(5, -1))[np.triu_indices(5, 1)].mean()
    assert mean_correlation(pictures) == pytest.approx(expected, abs=1e-12)
    assert mean_correlation(np.stack([pictures[0]] * 3)) == pytest.approx(1)
    assert mean_correlation(np.zeros((9, 4, 4, 3))) is None
    assert mean_correlation(pictures[:1]) is None
