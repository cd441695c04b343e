"""Preprocessing against PIL and torchvision's transforms; the named data sets; held-out images."""

import hashlib

import numpy as np
import pytest
import torch
import torchvision
from conftest import drawn_shapes
from PIL import Image
from torchvision.transforms import v2

from dataset import shapes, sources
from dataset.preprocess import Preprocess, color_histogram, mean_and_std, resize


@pytest.fixture
def images():
    """Half noise, half drawn: edges and flat areas."""
    noise = np.random.RandomState(0).randint(0, 256, (3, 3, 32, 32)).astype(np.uint8)
    return torch.from_numpy(np.concatenate([noise, drawn_shapes("test")[0][:3]]))


class TestResizeAndNormalise:
    @pytest.mark.parametrize("size", [224, 64, 33, 32, 20, 8])
    def test_resize_is_within_one_grey_level_of_pil(self, images, size):
        ours = resize(images, size)
        assert ours.shape == (6, 3, size, size) and ours.dtype == torch.float32
        for image, result in zip(images, ours, strict=True):
            pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1) / 255
            assert (result - expected).abs().max() <= 1 / 255 + 1e-6

    @pytest.mark.parametrize("size", [224, 48, 20])
    def test_the_whole_way_is_torchvisions(self, images, size):
        mean, std = [0.49, 0.48, 0.44], [0.25, 0.24, 0.26]
        transform = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Resize([size, size], antialias=True), v2.Normalize(mean, std)]
        )
        ours = Preprocess(size, mean, std)(images)
        assert torch.allclose(ours, transform(images), atol=1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)

    def test_statistics_are_those_of_all_pixels(self, images):
        mean, std = mean_and_std(color_histogram(images))
        pixels = images.permute(1, 0, 2, 3).flatten(1).double() / 255
        assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
        assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)

    def test_a_constant_channel_can_be_normalised(self):
        images = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
        assert Preprocess(8, *mean_and_std(color_histogram(images)))(images).isfinite().all()


def test_held_out_images_are_always_the_same_and_the_rest_is_kept():
    kept, held = sources.hold_out(40, 7)
    assert len(held) == 7 and sorted([*kept.tolist(), *held.tolist()]) == list(range(40))
    assert kept.tolist() == sorted(kept.tolist()) and held.tolist() == sorted(held.tolist())
    np.random.seed(5)
    assert torch.equal(held, sources.hold_out(40, 7)[1])


class TestShapes:
    def test_the_same_images_on_every_machine(self):
        """The digest is not an oracle: it is the promise that the data set never changes."""
        digest = hashlib.sha256()
        for split in ("train", "test"):
            for array in drawn_shapes(split):
                digest.update(np.ascontiguousarray(array).tobytes())
        assert digest.hexdigest() == DIGEST

    def test_sizes_and_classes(self):
        images, labels, classes = sources.load("shapes", "train")
        assert images.shape == (5000, 3, 32, 32) and images.dtype == torch.uint8
        assert labels.bincount().tolist() == [500] * 10 and classes == shapes.CLASSES


DIGEST = "b1f3d8cb09773cb0be384ed6fb9322dce878609a5a971806097a4f316be69390"


class TestCifar10:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_the_files_of_cifar10_become_tensors(self, fake_cifar10, split):
        root, arrays = fake_cifar10
        images, labels, classes = sources.load("cifar10", split, root)
        names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
        expected = np.concatenate([arrays[name] for name in names]).reshape(-1, 3, 32, 32)
        assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), expected)
        assert labels.dtype == torch.int64 and len(labels) == len(images)
        assert classes[3] == "cat" and len(classes) == 10

    def test_without_a_network_a_damaged_copy_is_not_used(self, fake_cifar10, monkeypatch):
        root, _ = fake_cifar10
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut short")
        with pytest.raises(sources.DataError, match=r"could not be downloaded.*--data FOLDER.*--data shapes"):
            sources.load("cifar10", "train", root)


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        sources.load("shapes", "valid")
