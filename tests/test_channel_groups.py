"""Correlations against numpy, choices against the definition, and receptive fields against gradients."""

import numpy as np
import pytest
import torch

from analysis.channel_groups import SIMILAR, dissimilar_channels, group_channels, peak_correlations
from analysis.receptive_field import receptive_field, units_inside
from network import STAGES


@pytest.fixture
def peaks():
    """Peaks of 12 channels in 50 images: three patterns with four noisy copies each, and a dead channel."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(50, 3, generator=generator)
    copies = patterns.repeat(1, 4) + 0.1 * torch.rand(50, 12, generator=generator)
    copies *= torch.linspace(1, 2, 12)
    copies[:, 5] = 0
    return copies


def test_correlations_are_numpys(peaks):
    alive = [channel for channel in range(12) if channel != 5]
    expected = np.corrcoef(peaks[:, alive].double().numpy().T)
    found = peak_correlations(peaks)
    assert np.allclose(found[alive][:, alive], expected, atol=1e-12)
    assert (found[5] == 0).all() and (found[:, 5] == 0).all()


def test_chosen_channels_are_not_similar_and_descend(peaks):
    chosen, highest = dissimilar_channels(peaks), peaks.amax(0)
    assert len(chosen) == 3 and {channel % 3 for channel in chosen} == {0, 1, 2}
    assert highest[chosen].tolist() == sorted(highest[chosen].tolist(), reverse=True)
    similar = peak_correlations(peaks)[:, chosen] > SIMILAR
    assert torch.equal(similar[chosen], torch.eye(3, dtype=torch.bool))
    for channel in set(range(12)) - {5, *chosen}:  # each one skipped is similar to a stronger one
        assert (similar[channel] & (highest[chosen] >= highest[channel])).any()


def test_similar_channels_fill_up_in_order_of_strength(peaks):
    chosen = dissimilar_channels(peaks, 7)
    skipped = [channel for channel in peaks.amax(0).argsort(descending=True).tolist() if channel not in chosen[:3]]
    assert chosen[:3] == dissimilar_channels(peaks) and chosen[3:] == skipped[:4]
    assert len(dissimilar_channels(peaks, 20)) == 11 and dissimilar_channels(peaks, 2) == chosen[:2]


def test_faint_channels_are_left_out_although_they_are_not_similar(peaks):
    peaks[:, 7] = 0
    peaks[3, 7] = 0.009 * peaks.max()
    assert 7 not in dissimilar_channels(peaks, 12) and len(dissimilar_channels(peaks, 12)) == 10
    peaks[3, 7] = 0.011 * peaks.max()
    assert 7 in dissimilar_channels(peaks)


def test_groups_are_a_partition_by_the_highest_correlation(peaks):
    groups = group_channels(peaks)
    assert sorted(channel for members in groups.members for channel in members) == list(range(12))
    correlations = peak_correlations(peaks)
    for representative, members in zip(groups.representatives, groups.members, strict=True):
        assert representative in members
        for channel in set(members) - {5}:
            others = correlations[channel, list(groups.representatives)]
            assert correlations[channel, representative] == others.max()


def test_no_activation_at_all():
    assert dissimilar_channels(torch.zeros(5, 4)) == []
    with pytest.raises(ValueError, match="no channel"):
        group_channels(torch.zeros(5, 4))


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
    inside = {stage: units_inside(random_network, stage, 224) for stage in STAGES}
    # by hand: conv1's unit i sees 2i - 3 to 2i + 3, conv2_x's 4i - 21 to 4i + 21, conv3_x's 8i - 49 to 8i + 49
    assert inside["conv1"] == slice(2, 111) and inside["conv2_x"] == slice(6, 51)
    assert inside["conv3_x"] == slice(7, 22)
    assert inside["conv4_x"] is None and inside["conv5_x"] is None
