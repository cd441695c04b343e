"""What each batch is made of: numpy's padding, counts, and independence of everything but seed, epoch and step."""

import numpy as np
import pytest
import torch

from dataset.batches import COLUMNS, Augmentation, Batches, epoch_order, random_words
from dataset.preprocess import Preprocess


def batches(images, seed=0, batch_size=None, **augmentation):
    labels = torch.arange(len(images))
    preprocess = Preprocess(images.shape[-1], [0.2, 0.4, 0.6], [0.25] * 3)
    return Batches(images, labels, preprocess, batch_size or len(images), seed, Augmentation(**augmentation))


def noise(count=40, size=(32, 32)):
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (count, 3, *size)).astype(np.uint8))


class TestRandomness:
    def test_an_epochs_order_is_a_permutation_that_follows_seed_and_epoch(self):
        order = epoch_order(1000, seed=3, epoch=7)
        assert np.array_equal(np.sort(order), np.arange(1000))
        assert np.array_equal(order, epoch_order(1000, seed=3, epoch=7))
        assert not np.array_equal(order, epoch_order(1000, seed=3, epoch=8))
        assert not np.array_equal(order, epoch_order(1000, seed=4, epoch=7))

    def test_an_iterations_numbers_follow_seed_and_step_alone(self):
        together = random_words(5, step=0, steps=9, each=7)
        for step in range(9):
            assert np.array_equal(together[step], random_words(5, step, 1, 7)[0])
        assert len(np.unique(together)) == together.size
        assert not np.array_equal(together, random_words(6, 0, 9, 7))

    def test_each_image_once_an_epoch_and_an_incomplete_batch_left_out(self):
        made = batches(noise(43), batch_size=10)
        plan = made.plan(2)
        assert len(made) == 4 and plan.shape == (4, 10, len(COLUMNS)) and plan.dtype == torch.int64
        assert len(plan[..., 0].unique()) == 40
        torch.manual_seed(99)
        np.random.seed(99)
        assert torch.equal(plan, made.plan(2)) and not torch.equal(plan, made.plan(3))
        assert not torch.equal(plan, batches(noise(43), seed=1, batch_size=10).plan(2))

    def test_augmentation_follows_the_step_and_not_the_epoch(self):
        """With other data of half as many iterations an epoch, the same step has the same crops."""
        many, few = batches(noise(40), batch_size=10).plan(0), batches(noise(20), batch_size=10)
        crops = torch.cat([few.plan(0), few.plan(1)])[..., 1:]
        assert torch.equal(many[..., 1:], crops)


class TestCut:
    @pytest.mark.parametrize("size", [(32, 32), (9, 14), (3, 3)])
    def test_a_crop_of_the_mirrored_border(self, size):
        """Every result is found among all crops of numpy's reflect padding, flipped or not."""
        images = noise(size=size)
        shift = min(4, *(side - 1 for side in size))
        made = batches(images, seed=1, shift=shift)
        results, labels = made.cut(made.plan(2)[0])
        assert results.shape == images.shape and results.dtype == torch.uint8
        found = set()
        for image, result in zip(images[labels].numpy(), results.numpy(), strict=True):
            padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
            candidates = {
                (top, left, flip): padded[:, top : top + size[0], left : left + size[1]][..., :: -1 if flip else 1]
                for top in range(2 * shift + 1)
                for left in range(2 * shift + 1)
                for flip in (False, True)
            }
            matches = [key for key, crop in candidates.items() if np.array_equal(crop, result)]
            assert matches, "a result that is no crop of its image"
            found.add(matches[0])
        assert len({flip for *_, flip in found}) == 2 and len(found) > 10

    def test_nothing_happens_unless_asked_for(self):
        images = noise()
        made = batches(images, shift=0, flip="none")
        results, labels = made.cut(made.plan(0)[0])
        assert torch.equal(results, images[labels])

    def test_shifts_and_flips_are_uniform(self):
        ramp = torch.arange(32, dtype=torch.uint8).expand(4000, 3, 32, 32)  # a pixel tells its column
        made = batches(ramp)
        counts = made.cut(made.plan(0)[0])[0][:, 0, 16, 16].long().bincount(minlength=32)
        assert set(counts.nonzero().flatten().tolist()) == set(range(11, 21))  # 16 +- 4, or 15 +- 4 when flipped
        expected = torch.tensor([1, *[2] * 8, 1]) / 18 * 4000
        assert ((counts[11:21] - expected).abs() < 5 * expected.sqrt()).all()

    @pytest.mark.parametrize("side", [1, 4, 7])
    def test_a_cutout_is_a_square_of_mean_colour(self, side):
        images = torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8)
        made = batches(images, shift=0, flip="none", cutout=side)
        plan = made.plan(0)[0]
        results, _ = made.cut(plan)
        hidden = (results != 255).all(1)
        assert torch.equal(results[:, :, 8, 8][hidden[:, 8, 8]][0], torch.tensor([51, 102, 153], dtype=torch.uint8))
        middle = hidden[(plan[:, 4] == 8) & (plan[:, 5] == 8)][0]  # one whose square lies inside
        assert middle.sum() == side**2 and middle[8 - side // 2 : 8 - side // 2 + side].any(1).all()
        assert torch.equal(middle, middle.T)
        # a pixel far from the border is hidden in side^2 of 16^2 images
        share = side**2 / 16**2
        assert abs(hidden[:, 8, 8].float().mean() - share) < 5 * (share / 2000) ** 0.5
        assert hidden[:, 0, 0].any() and hidden.flatten(1).sum(1).min() < side**2 or side == 1

    def test_inputs_are_preprocessed_and_labels_go_with_their_images(self):
        images = noise(20)
        made = batches(images, batch_size=5, shift=0, flip="none")
        inputs, labels = made(made.plan(0)[1])
        assert torch.equal(inputs, made.preprocess(images[labels])) and len(labels) == 5
