"""Blocks of an image, their order and their removal, and bootstrap intervals: against their definitions."""

import numpy as np
import pytest
import torch

from analysis.blocks import block_means, block_side, estimate, importance_ranks, remove_blocks
from dataset.preprocess import Preprocess


class TestBlocks:
    def test_a_block_has_8_pixels_at_224(self):
        assert [block_side(size) for size in (224, 32, 64, 96, 7, 448)] == [8, 1, 2, 3, 1, 16]

    def test_means_of_whole_and_of_partial_blocks(self):
        maps = torch.rand(2, 7, 8)
        expected = [
            [picture[top : top + 3, left : left + 3].mean() for top in (0, 3, 6) for left in (0, 3, 6)]
            for picture in maps.numpy()
        ]
        assert np.allclose(block_means(maps, 3), expected, atol=1e-6)

    def test_ranks_count_what_is_more_important(self):
        values = torch.randn(3, 4, 50)
        ranks = importance_ranks(values)
        assert torch.equal(ranks, (values[..., None, :] > values[..., None]).sum(-1))

    def test_equals_come_in_a_fixed_order_unlike_the_blocks_own(self):
        values = torch.tensor([1.0] * 40 + [2.0] * 40)
        ranks = importance_ranks(values)
        assert set(ranks[40:].tolist()) == set(range(40)) and set(ranks[:40].tolist()) == set(range(40, 80))
        assert torch.equal(ranks, importance_ranks(values))
        assert abs(np.corrcoef(ranks[40:], np.arange(40))[0, 1]) < 0.5

    def test_removed_blocks_have_the_mean_color_and_all_else_stays(self):
        preprocess = Preprocess(8, [0.2, 0.5, 0.7], [0.1, 0.2, 0.3])
        inputs = preprocess(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
        removed = torch.rand(2, 9) < 0.5  # blocks of 3x3 pixels; those at the border are smaller
        found = remove_blocks(inputs, removed, 3)
        for n, row, column in np.ndindex(2, 8, 8):
            pixel = found[n, :, row, column]
            if removed[n, row // 3 * 3 + column // 3]:
                color = 255 * torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 8, 8)
                assert torch.allclose(pixel, preprocess(color[None])[0, :, 0, 0], atol=1e-6)
            else:
                assert torch.equal(pixel, inputs[n, :, row, column])


class TestEstimate:
    def test_the_interval_is_that_of_many_resamples(self):
        values = torch.rand(40, generator=torch.Generator().manual_seed(1)) ** 3
        found = estimate(values)
        assert found.mean == pytest.approx(values.mean().item())
        random = np.random.RandomState(5)
        means = [random.choice(values.numpy(), 40).mean() for _ in range(4000)]
        expected = np.quantile(means, [0.025, 0.975])
        assert [found.low, found.high] == pytest.approx(expected.tolist(), abs=0.05 * np.ptp(expected))

    def test_equal_values_have_no_interval(self):
        assert (found := estimate(torch.full((7,), 0.3))).low == found.high == pytest.approx(0.3)
