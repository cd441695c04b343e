"""Brute force over all activations is the judge of the search; the windows are checked by what they must hold."""

import numpy as np
import pytest
import torch

from analysis.activations import cut, mean_correlation, search, supports, windows
from network import CHANNELS, ResNet18
from visualizer import top_activations


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ResNet18().eval()


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
@pytest.mark.parametrize("stage", ["conv1", "conv3_x", "conv5_x"])
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

    found, logits = search(network, batches(), CHANNELS)
    assert passes == [5, 5, 2]
    assert torch.allclose(logits, network(images), atol=1e-5)
    assert search(network, batches(), ["conv1", "conv4_x"])[1] is None
    for stage, top in found.items():
        assert torch.equal(top.scores, top_activations(network, images.split(5), stage)[0])
        assert top.scores.shape == (CHANNELS[stage], 9)


def test_of_equal_scores_the_earlier_image_comes_first(network):
    images = torch.randn(1, 3, 32, 32).expand(20, -1, -1, -1)
    _, indices, _ = top_activations(network, images.split(1), "conv1")
    assert torch.equal(indices, torch.arange(9).expand(64, 9))


def test_fewer_images_than_asked_for(network):
    scores, indices, _ = top_activations(network, [torch.randn(4, 3, 32, 32)], "conv2_x")
    assert scores.shape == indices.shape == (64, 4)


def test_what_is_kept_does_not_grow_with_the_images(network):
    few = search(network, torch.randn(20, 3, 32, 32).split(10), ["conv5_x"])[0]["conv5_x"]
    many = search(network, torch.randn(60, 3, 32, 32).split(10), ["conv5_x"])[0]["conv5_x"]
    for name in ("scores", "indices", "positions"):
        assert getattr(few, name).untyped_storage().nbytes() == getattr(many, name).untyped_storage().nbytes()


def energy_within(picture, side, corner):
    tile = cut(picture[None], side, [corner], outside=0.0)
    return (tile.square().sum() / picture.square().sum()).item()


def test_the_support_holds_95_percent_of_the_energy():
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    for width in (1.0, 4.0, 12.0):
        blob = torch.exp(-((y - 20) ** 2 + (x - 50) ** 2) / (2 * width**2)) * torch.randn(
            3, 64, 80, generator=generator
        )
        [(top, left, bottom, right)] = supports(blob[None])
        held = blob[:, top:bottom, left:right].square().sum() / blob.square().sum()
        assert held >= 0.95
        assert bottom - top < 6 * width + 3 and right - left < 6 * width + 3  # and little more than it must


def test_windows_are_of_one_size_and_hold_the_energy_of_every_rule():
    pictures = [torch.zeros(4, 3, 100, 100) for _ in range(2)]
    for n in range(4):
        pictures[0][n, :, 10 * n : 10 * n + 20, 40:60] = 1
        pictures[1][n, :, 10 * n + 30 : 10 * n + 40, 45:50] = -1
    side, corners = windows(pictures)
    assert 32 <= side <= 40
    for rule in pictures:
        for n in range(4):
            assert energy_within(rule[n], side, corners[n]) >= 0.95


def test_a_small_support_stays_in_the_middle_even_at_a_border():
    picture = torch.zeros(2, 3, 64, 64)
    picture[0, :, 30:37, 30:37] = 1
    picture[1, :, 0:7, 57:64] = 1
    side, corners = windows([picture])
    tiles = cut(picture, side, corners, outside=0.0)
    assert side == 32 and torch.equal(tiles[0], tiles[1])
    assert mean_correlation(tiles.numpy()) == pytest.approx(1)
    beyond = cut(torch.zeros_like(picture), side, corners, outside=1.0)
    assert not beyond[0].any() and beyond[1, 0].mean() > 0.5


def test_windows_of_pictures_without_energy():
    nothing = torch.zeros(2, 3, 64, 64)
    assert supports(nothing) == [None, None]
    something = nothing.clone()
    something[0, :, 0:5, 0:5] = 1
    assert windows([nothing])[0] == 32
    assert windows([something, nothing])[1] == windows([something])[1]  # a rule that is zero moves no window


def test_small_images_are_shown_whole():
    assert windows([torch.rand(3, 3, 20, 20)]) == (20, [(0, 0)] * 3)


def test_mean_correlation_is_numpys():
    pictures = np.random.RandomState(0).randn(5, 8, 8, 3)
    expected = np.corrcoef(pictures.reshape(5, -1))[np.triu_indices(5, 1)].mean()
    assert mean_correlation(pictures) == pytest.approx(expected, abs=1e-12)
    assert mean_correlation(np.stack([pictures[0]] * 3)) == pytest.approx(1)
    assert mean_correlation(np.zeros((9, 4, 4, 3))) is None
    assert mean_correlation(pictures[:1]) is None
