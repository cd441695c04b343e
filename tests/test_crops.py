"""Crops by the energy they must hold, correlations against numpy, receptive fields against gradients."""

import numpy as np
import pytest
import torch

from analysis.crops import bounding_boxes, crop, crop_boxes, mean_correlation
from analysis.receptive_field import receptive_field, units_inside
from network import STAGES


def energy(pictures):
    return pictures.square().sum((1, 2, 3))


@pytest.mark.parametrize("width", [1.0, 4.0, 12.0])
def test_the_bounding_box_holds_95_percent_of_the_energy_and_little_more_than_it_must(width):
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    blob = torch.exp(-((y - 20) ** 2 + (x - 50) ** 2) / (2 * width**2)) * torch.randn(1, 3, 64, 80)
    [(top, left, bottom, right)] = bounding_boxes(blob)
    assert energy(blob[:, :, top:bottom, left:right]) >= 0.95 * energy(blob)
    assert max(bottom - top, right - left) < 6 * width + 3


def test_crops_share_their_size_and_hold_the_energy_of_every_rule():
    pictures = [torch.zeros(4, 3, 100, 100) for _ in range(2)]
    for n in range(4):
        pictures[0][n, :, 10 * n : 10 * n + 20, 40:60] = 1
        pictures[1][n, :, 10 * n + 30 : 10 * n + 40, 45:50] = -1
    side, corners = crop_boxes(pictures)
    assert 30 <= side <= 40
    assert all((energy(crop(rule, side, corners)) >= 0.95 * energy(rule)).all() for rule in pictures)


def test_a_small_bounding_box_is_centred_and_shifted_into_the_image():
    picture = torch.zeros(2, 3, 64, 64)
    picture[0, :, 30:37, 40:47] = 1
    picture[1, :, 0:7, 57:64] = 1
    side, corners = crop_boxes([picture])
    assert side == 11 and corners == [(28, 38), (0, 53)]
    assert crop_boxes([picture], least=1)[0] == 7
    tiles = crop(picture, side, corners)
    assert torch.equal(tiles[0], picture[0, :, 28:39, 38:49]) and torch.equal(tiles[1], picture[1, :, :11, 53:])


def test_crops_of_pictures_without_energy_and_of_small_images():
    nothing = torch.zeros(2, 3, 64, 64)
    assert bounding_boxes(nothing) == [None, None] and crop_boxes([nothing])[0] == 11
    something = nothing.clone()
    something[0, :, 0:5, 0:5] = 1
    assert crop_boxes([something, nothing])[1] == crop_boxes([something])[1]  # an all-zero picture moves no crop
    assert crop_boxes([torch.rand(3, 3, 10, 10)]) == (10, [(0, 0)] * 3)


def test_mean_correlation_is_numpys():
    pictures = np.random.RandomState(0).randn(5, 8, 8, 3)
    expected = np.corrcoef(pictures.reshape(5, -1))[np.triu_indices(5, 1)].mean()
    with_constant = np.concatenate([pictures, np.full((1, 8, 8, 3), 0.1)])  # whose mean is rounded
    assert mean_correlation(pictures) == pytest.approx(expected, abs=1e-12) == mean_correlation(with_constant)
    assert mean_correlation(np.zeros((9, 4, 4, 3))) is None and mean_correlation(pictures[:1]) is None


@pytest.mark.parametrize("stage", STAGES)
def test_the_receptive_field_is_where_the_gradient_can_be(random_network, stage):
    """The gradient of a unit far from the border is not zero at the ends of its field, and zero beyond them."""
    field = receptive_field(random_network, stage)
    images = torch.randn(1, 3, 512 if stage == "conv5_x" else 256, 16, dtype=torch.float64, requires_grad=True)
    features = random_network.trace(images, stage).features[stage]
    row = features.shape[2] // 2
    features[0, :, row].sum().backward()
    first = row * field.stride - field.offset
    rows = images.grad[0].abs().sum((0, 2)).nonzero().flatten()
    assert max(first, 0) <= rows.min() and rows.max() <= first + field.size - 1
    if stage in STAGES[:3]:  # deeper, a gradient at the very end of the field needs one path through all ReLUs
        assert (rows.min(), rows.max()) == (first, first + field.size - 1)


def test_units_inside_at_224(random_network):
    # by hand: conv1's unit i sees 2i - 3 to 2i + 3, conv2_x's 4i - 21 to 4i + 21, conv3_x's 8i - 49 to 8i + 49
    inside = [slice(2, 111), slice(6, 51), slice(7, 22), None, None]
    assert [units_inside(random_network, stage, 224) for stage in STAGES] == inside
