"""--scale-crop against torchvision: the boxes' distribution, and their pixels; and the same boxes after a resume."""

import numpy as np
import pytest
import torch
from conftest import drawn_shapes
from run_checks import assert_same_run, kill, run_on
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

import train
from dataset import boxes
from dataset.batches import Augmentation, Batches, random_words
from dataset.placement import HostImages
from dataset.preprocess import Preprocess
from runtime import checkpoint

DRAWS = 10_000


def draw(least, height, width, count=DRAWS, seed=0):
    words = random_words(seed, 0, count, boxes.WORDS, stream=3)
    return boxes.draw_boxes(words, height, width, least)


def theirs(least, height, width):
    """Top, left, height and width of torchvision's boxes, (DRAWS, 4)."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    return np.array([RandomResizedCrop.get_params(image, (least, 1.0), boxes.ASPECTS) for _ in range(DRAWS)])


def distance(first, second):
    """The Kolmogorov-Smirnov statistic: the largest difference of two empirical distribution functions."""
    values = np.unique(np.concatenate([first, second]))
    functions = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return np.abs(functions[0] - functions[1]).max()


class TestBoxes:
    @pytest.mark.parametrize("least, height, width", [(0.08, 64, 64), (0.5, 224, 224), (0.9, 50, 80), (0.3, 20, 90)])
    def test_their_distribution_is_torchvisions(self, least, height, width):
        """Of every coordinate, the area, the aspect ratio, and the margins left on the other side."""

        def statistics(boxes):
            top, left, h, w = boxes.T
            return {"top": top, "left": left, "height": h, "width": w, "bottom": top + h, "right": left + w,
                    "area": h * w, "aspect": w / h}  # fmt: skip

        ours, reference = draw(least, height, width), statistics(theirs(least, height, width))
        limit = 1.95 * (2 / DRAWS) ** 0.5  # exceeded by chance once in a thousand times
        for name, values in statistics(ours).items():
            assert distance(values, reference[name]) < limit, name
        # so small a change would be noticed
        changed = ours + np.array([0, 0, 0, max(1, width // 30)])
        assert distance(statistics(changed)["aspect"], reference["aspect"]) > limit

    @pytest.mark.parametrize("least", [0.01, 0.35, 1.0])
    @pytest.mark.parametrize("height, width", [(32, 32), (7, 7), (1, 1), (9, 40)])
    def test_they_lie_inside_the_image(self, least, height, width):
        top, left, h, w = draw(least, height, width, 2000).T
        assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) >= 1
        assert (top + h).max() <= height and (left + w).max() <= width

    @pytest.mark.parametrize("height, width, expected", [
        (40, 40, (0, 0, 40, 40)), (20, 80, (0, 26, 20, 27)), (90, 30, (25, 0, 40, 30))])  # fmt: skip
    def test_where_none_fits_it_is_torchvisions_central_one(self, monkeypatch, height, width, expected):
        words = np.full((1, boxes.WORDS), 2**64 - 1, np.uint64)  # the whole area, with the largest aspect ratio
        (ours,) = boxes.draw_boxes(words, height, width, 1.0)
        assert tuple(ours) == expected
        image = torch.empty(3, height, width)
        assert RandomResizedCrop.get_params(image, (50.0, 60.0), boxes.ASPECTS) == expected


def pictures(count=12):
    return torch.from_numpy(drawn_shapes("test")[0][:count])


def batches(images, image_size, where=lambda images: images, least=0.1, **augmentation):
    preprocess = Preprocess(image_size, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    augmentation = Augmentation(**{"shift": 0, "scale_crop": least} | augmentation)
    return Batches(where(images), torch.arange(len(images)), preprocess, len(images), 0, augmentation)


class TestPixels:
    @pytest.mark.parametrize("image_size", [48, 32, 20, 7])
    @pytest.mark.parametrize("where, width", [(Tensor.clone, 32), (Tensor.clone, 20), (HostImages, 32)],
                             ids=["device", "not square", "host"])  # fmt: skip
    def test_a_box_is_torchvisions_resized_crop(self, image_size, where, width):
        images = pictures()[..., :width]
        made = batches(images, image_size, where)
        rows = made.rows(0)
        ((inputs, labels),) = [made(*batch) for batch in made.iterate(rows)]
        assert inputs.shape == (12, 3, image_size, image_size) and inputs.dtype == torch.float32
        assert inputs.is_contiguous(memory_format=torch.channels_last) and len(rows[0, :, 3].unique()) == 2
        for n, (image, _, _, flip, _, _, *box) in enumerate(rows[0].tolist()):
            expected = resized_crop(made.preprocess.normalize(images[image]), *box, [image_size] * 2, antialias=True)
            assert labels[n] == image
            assert torch.allclose(inputs[n], hflip(expected) if flip else expected, atol=1e-4)

    def test_a_full_box_of_the_images_size_changes_no_bit(self):
        made = batches(pictures(), 32, least=1.0, flip="none")
        inputs, labels = made(made.rows(0)[0])
        assert torch.equal(inputs, made.preprocess(pictures())[labels])

    @pytest.mark.parametrize("image_size", [64, 32, 16])
    def test_the_cutout_is_as_large_as_without_it(self, image_size):
        """Of an otherwise white image; in pixels of the result."""
        images = torch.full((12, 3, 32, 32), 255, dtype=torch.uint8)
        made = batches(images, image_size, cutout=8)
        inputs, _ = made(made.rows(0)[0])
        hidden = (inputs == 0).all(1)
        for n, (row, column) in enumerate(made.rows(0)[0, :, 4:6].tolist()):
            square = torch.zeros(1, 1, 32, 32)
            square[..., max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 1
            expected = torch.nn.functional.interpolate(square, (image_size, image_size), mode="nearest-exact")
            assert torch.equal(hidden[n], expected[0, 0] == 1)


@pytest.mark.usefixtures("narrow")
def test_a_run_that_is_killed_and_resumed_ends_as_if_it_had_not_been(narrow_run, tmp_path):
    """In the fifth iteration, after a save in the third; and it is not the run without boxes."""
    pictures, flags = narrow_run.parent / "pictures", ["--epochs", "2", "--scale-crop", "0.3", "--save-every", "3"]
    run_on(pictures, tmp_path / "whole", *flags)
    kill(lambda: run_on(pictures, tmp_path / "killed", *flags), 5)
    assert checkpoint.load(tmp_path / "killed" / "last.pt")["step"] == 3
    run_on(pictures, tmp_path / "killed", *flags, "--images-on", "host", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    with pytest.raises(AssertionError):
        assert_same_run(narrow_run, tmp_path / "whole")


def test_it_is_off_by_default_and_replaces_the_shift():
    def augmentation(flags):
        return train.make_settings(train.parse_args(flags.split()), torch.device("cpu")).augmentation

    assert augmentation("") == Augmentation(4, "random", 0, None)
    assert augmentation("--scale-crop 0.08 --cutout 5") == Augmentation(0, "random", 5, 0.08)
    assert augmentation("--cutmix 0.5 --flip alternate") == Augmentation(4, "alternate", 0, None, 0.5)
    assert augmentation("--scale-crop 0.5 --cutout 5 --no-augment") == Augmentation(0, "none")
