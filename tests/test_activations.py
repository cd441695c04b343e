"""The search against brute force over all activations; which channels respond alike, against numpy and definitions."""

import numpy as np
import pytest
import torch

from analysis.activations import SIMILAR, dissimilar_channels, group_channels, peak_correlations, search
from network import CHANNELS, ResNet18


def images_of(count, side=32):
    return torch.randn(count, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("stage, inside", [("conv1", None), ("conv1", slice(2, 22)), ("conv5_x", None)])
def test_the_search_equals_brute_force(random_network, stage, inside, batch_size):
    """Of the units inside; positions are those in the whole map."""
    batches = images_of(40, 48).split(batch_size)
    found = search(random_network, batches, 40, [stage], inside={stage: inside})
    with torch.inference_mode():
        features = torch.cat([random_network.trace(part, stage).features[stage] for part in batches])
    searched = torch.full_like(features, -1)
    inside = inside or slice(None)
    searched[:, :, inside, inside] = features[:, :, inside, inside]
    peaks = searched.flatten(2).amax(2)
    expected, top = peaks.T.sort(dim=1, descending=True, stable=True), found.top[stage]
    assert top.scores.shape == (CHANNELS[stage], 9)
    assert torch.equal(top.scores, expected.values[:, :9]) and torch.equal(top.indices, expected.indices[:, :9])
    channels = torch.arange(CHANNELS[stage])[:, None]
    assert torch.equal(searched.flatten(2)[top.indices, channels, top.positions], top.scores)
    units = found.positions[stage].long()[:, :, None]
    assert torch.equal(found.peaks[stage], peaks)
    assert torch.equal(searched.flatten(2).gather(2, units)[:, :, 0], peaks)


def test_all_stages_in_one_pass(random_network):
    images = images_of(12)
    found = search(random_network, iter(images.split(5)), 12, CHANNELS, with_logits=True)  # iter: only once
    assert torch.allclose(found.logits, random_network(images))
    for stage, top in found.top.items():
        alone = search(random_network, images.split(5), 12, [stage])
        assert torch.equal(top.scores, alone.top[stage].scores) and alone.logits is None


def test_training_mode_is_refused():
    with pytest.raises(RuntimeError, match="evaluation mode"):
        search(ResNet18(), [torch.randn(2, 3, 32, 32)], 2, ["conv1"])


@pytest.mark.parametrize("images, columns", [(20, 9), (4, 4)])
def test_of_equal_scores_the_earlier_image_comes_first(random_network, images, columns):
    batches = images_of(1).expand(images, -1, -1, -1).split(1)
    top = search(random_network, batches, images, ["conv1"]).top["conv1"]
    assert torch.equal(top.indices, torch.arange(columns).expand(64, columns))


@pytest.fixture
def peaks():
    """Peaks of 12 channels in 50 images: three patterns with four noisy copies each, and a dead channel."""
    copies = torch.rand(50, 3).repeat(1, 4) + 0.1 * torch.rand(50, 12)
    copies *= torch.linspace(1, 2, 12)
    copies[:, 5] = 0
    return copies


def test_correlations_are_numpys(peaks):
    alive = [channel for channel in range(12) if channel != 5]
    found = peak_correlations(peaks)
    assert np.allclose(found[alive][:, alive], np.corrcoef(peaks[:, alive].double().numpy().T), atol=1e-12)
    assert (found[5] == 0).all() and (found[:, 5] == 0).all()


def test_chosen_channels_are_not_similar_and_descend_then_similar_ones_follow(peaks):
    chosen, highest = dissimilar_channels(peaks), peaks.amax(0)
    assert len(chosen) == 3 and {channel % 3 for channel in chosen} == {0, 1, 2}
    similar = peak_correlations(peaks)[:, chosen] > SIMILAR
    assert torch.equal(similar[chosen], torch.eye(3, dtype=torch.bool))
    for channel in set(range(12)) - {5, *chosen}:  # each one skipped is similar to a stronger one
        assert (similar[channel] & (highest[chosen] >= highest[channel])).any()
    order = [channel for channel in highest.argsort(descending=True).tolist() if channel != 5]
    assert chosen == [channel for channel in order if channel in chosen]
    expected = chosen + [channel for channel in order if channel not in chosen]
    assert [dissimilar_channels(peaks, count) for count in (2, 7, 20)] == [expected[:2], expected[:7], expected]


def test_faint_channels_are_left_out_although_they_are_not_similar(peaks):
    for share, is_chosen in {0.009: False, 0.011: True}.items():
        peaks[:, 7] = 0
        peaks[3, 7] = share * peaks.max()
        assert (7 in dissimilar_channels(peaks)) == (7 in dissimilar_channels(peaks, 12)) == is_chosen


def test_groups_are_a_partition_by_the_highest_correlation(peaks):
    groups, correlations = group_channels(peaks), peak_correlations(peaks)
    assert sorted(channel for members in groups.values() for channel in members) == list(range(12))
    for representative, members in groups.items():
        assert representative in members
        for channel in set(members) - {5}:
            assert correlations[channel, representative] == correlations[channel, list(groups)].max()
    assert group_channels(torch.ones(1, 3)) == {0: [0], 1: [1], 2: [2]}
    with pytest.raises(ValueError, match="no channel"):
        group_channels(torch.zeros(5, 4))
