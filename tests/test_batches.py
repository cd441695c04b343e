"""Batches against numpy's reflect padding, and randomness as a function of seed, epoch and step alone."""

import numpy as np
import pytest
import torch

from dataset.batches import COLUMNS, Augmentation, Batches, random_words
from dataset.placement import HostImages
from dataset.preprocess import Preprocess


def batches(images, seed=0, batch_size=None, **augmentation):
    labels = torch.arange(len(images))
    preprocess = Preprocess(images.shape[-1], [0.2, 0.4, 0.6], [0.25] * 3)
    return Batches(images, labels, preprocess, batch_size or len(images), seed, Augmentation(**augmentation))


def noise(count=40, size=(32, 32)):
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (count, 3, *size)).astype(np.uint8))


class TestRandomness:
    def test_an_epoch_has_each_image_once_and_drops_an_incomplete_batch(self):
        made = batches(noise(43), batch_size=10)
        rows = made.rows(2)
        assert len(made) == 4 and rows.shape == (4, 10, len(COLUMNS)) and rows.dtype == torch.int64
        assert len(rows[..., 0].unique()) == 40
        torch.manual_seed(99)
        np.random.seed(99)
        assert torch.equal(rows, made.rows(2))
        for other in (made.rows(3), batches(noise(43), seed=1, batch_size=10).rows(2)):
            assert not torch.equal(rows[..., 0], other[..., 0])

    @pytest.mark.parametrize("augmentation, columns", [({}, slice(1, 6)), ({"cutmix": 0.5}, slice(12, 16)),
                                                       ({"scale_crop": 0.2}, slice(1, 10))], ids=str)  # fmt: skip
    def test_augmentation_depends_on_the_seed_and_the_step_not_the_epoch(self, augmentation, columns):
        """With half as many iterations per epoch, the same step has the same crops and boxes.

        Boxes affect neither order nor crops.
        """

        def rows(count, *epochs, seed=0):
            made = batches(noise(count), seed, 10, **augmentation)
            return torch.cat([made.rows(epoch) for epoch in epochs])[..., columns]

        expected = rows(40, 0)
        assert torch.equal(expected, rows(20, 0, 1))
        assert not torch.equal(expected, rows(40, 0, seed=1))
        plain, more = batches(noise(40), batch_size=10), batches(noise(40), batch_size=10, **augmentation)
        assert torch.equal(more.rows(1)[..., : len(COLUMNS)], plain.rows(1))


def flips(count=1000, seed=0, batch_size=50, epoch=0, **augmentation):
    """Flip of each image in an epoch, in the order of the images: (count,) int64."""
    rows = batches(noise(count, (2, 2)), seed, batch_size, **augmentation).rows(epoch).flatten(0, 1)
    flip = torch.full((count,), -1)
    flip[rows[:, COLUMNS.index("image")]] = rows[:, COLUMNS.index("flip")]
    assert (flip >= 0).all()
    return flip


def test_the_three_flips():
    first, second, third = (flips(flip="alternate", epoch=epoch) for epoch in (0, 1, 2))
    assert torch.equal(second, 1 - first) and torch.equal(third, first)
    assert abs(int(first.sum()) - 500) < 5 * (1000 / 4) ** 0.5  # about half, within five standard deviations
    assert torch.equal(first, flips(flip="alternate", batch_size=8, shift=0, cutout=1))
    assert not torch.equal(first, flips(flip="alternate", seed=1))
    assert 0.4 < (flips() == flips(epoch=1)).float().mean() < 0.6  # drawn anew: six standard deviations around 1/2
    assert not flips(flip="none").any() and not flips(flip="none", epoch=1).any()


class TestCrop:
    @pytest.mark.parametrize("size", [(32, 32), (9, 14), (3, 3)])
    def test_result_is_a_crop_of_the_reflect_padded_image(self, size):
        images, shift = noise(size=size), min(4, *(side - 1 for side in size))
        made = batches(images, seed=1, shift=shift)
        rows = made.rows(2)[0]
        results, labels = made.crop(rows)
        assert results.dtype == torch.uint8 and torch.equal(labels, rows[:, 0])
        for (n, down, right, flip), result in zip(rows[:, :4].tolist(), results.numpy(), strict=True):
            padded = np.pad(images[n].numpy(), ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
            crop = padded[:, shift + down :, shift + right :][:, : size[0], : size[1]]
            assert np.array_equal(result, crop[..., ::-1] if flip else crop)
        assert len(rows[:, 1:4].unique(dim=0)) > 10

    def test_shifts_and_flips_are_uniform(self):
        ramp = torch.arange(32, dtype=torch.uint8).expand(4000, 3, 32, 32)  # a pixel's value is its column
        made = batches(ramp)
        counts = made.crop(made.rows(0)[0])[0][:, 0, 16, 16].long().bincount(minlength=32)
        assert set(counts.nonzero().flatten().tolist()) == set(range(11, 21))  # 16 +- 4, or 15 +- 4 when flipped
        expected = torch.tensor([1, *[2] * 8, 1]) / 18 * 4000
        assert ((counts[11:21] - expected).abs() < 5 * expected.sqrt()).all()

    @pytest.mark.parametrize("side", [1, 4, 7])
    def test_cutout_is_a_square_of_mean_color(self, side):
        made = batches(torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8), cutout=side)
        rows = made.rows(0)[0]
        expected = torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8)
        for image, (row, column) in zip(expected, (rows[:, 4:6] - side // 2).tolist(), strict=True):
            square = image[:, max(0, row) : row + side, max(0, column) : column + side]
            square[:] = torch.tensor([51, 102, 153])[:, None, None]
        assert torch.equal(made.crop(rows)[0], expected)
        assert all(set(centers.tolist()) == set(range(16)) for centers in rows[:, 4:6].T)


def papers_box(height, width, share, row, column):
    """rand_bbox of the paper's code: top, bottom, left, right."""
    ratio = np.sqrt(1.0 - share)
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    rows = [np.clip(row + sign * (cut_height // 2), 0, height) for sign in (-1, 1)]
    columns = [np.clip(column + sign * (cut_width // 2), 0, width) for sign in (-1, 1)]
    return *rows, *columns


class TestCutMix:
    @pytest.mark.parametrize("where", [torch.Tensor.clone, HostImages], ids=["device", "host"])
    def test_it_is_the_papers(self, where):
        """Share, centre and probability of a batch are the words of its step; the partner is the row before."""
        height, width, epoch = 20, 32, 1
        mixing, plain = (
            batches(images, seed=3, batch_size=10, cutout=5, cutmix=probability)
            for images, probability in ((where(noise(80, (height, width))), 0.6), (noise(80, (height, width)), 0.0))
        )
        rows, shares = mixing.rows(epoch), []
        for step, (row, stored) in enumerate(mixing.iterate(rows)):
            words = random_words(3, 8 * epoch + step, 1, 4, stream=4)[0]
            draw, share = words[:2] / 2.0**64
            center = [int(word) % size for word, size in zip(words[2:], (height, width), strict=True)]
            expected, labels = plain.crop(plain.rows(epoch)[step])
            partners, partner_labels = expected.roll(1, 0), labels.roll(1)
            expected, area = expected.clone(), 0
            if draw < 0.6:
                top, bottom, left, right = papers_box(height, width, share, *center)
                expected[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
                area = (bottom - top) * (right - left)
            inputs, own_labels, other_labels, own_share = mixing(row, stored)
            assert torch.equal(inputs, mixing.preprocess(expected))
            assert torch.equal(own_labels, labels) and torch.equal(other_labels, partner_labels)
            assert own_share == pytest.approx(1 - area / (height * width))
            shares.append(own_share.item())
        assert {share == 1 for share in shares} == {True, False}  # batches without a box and with one

    @pytest.mark.parametrize("where", [torch.Tensor.clone, HostImages], ids=["device", "host"])
    def test_the_shards_of_two_processes_make_up_the_batch(self, where):
        made = batches(where(noise(20)), batch_size=10, cutmix=1.0)
        rows = made.rows(0)
        for whole, *halves in zip(*(made.iterate(part) for part in (rows, rows[:, :5], rows[:, 5:])), strict=True):
            expected, parts = made(*whole), [made(*half) for half in halves]
            for n in range(3):
                assert torch.equal(expected[n], torch.cat([part[n] for part in parts]))
            assert parts[0][3] == parts[1][3] == expected[3] < 1
