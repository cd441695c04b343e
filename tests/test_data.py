"""PIL and torchvision's transforms judge the pixels; what is random is checked as a function of integers."""

import hashlib
import os

import numpy as np
import pytest
import torch
import torchvision
from conftest import drawn_shapes, write_folder
from PIL import Image
from torchvision.transforms import v2

from dataset import folders, shapes, sources
from dataset.preprocess import Preprocess, mean_and_std, resize


def pictures(count=6, size=32, seed=0):
    """Half noise, half drawn: edges and flat areas."""
    noise = np.random.RandomState(seed).randint(0, 256, (count // 2, 3, 32, 32)).astype(np.uint8)
    drawn = drawn_shapes("test")[0][: count - len(noise)]
    images = torch.from_numpy(np.concatenate([noise, drawn]))
    return v2.functional.resize(images, [size, size], antialias=True)


class TestResizeAndNormalise:
    @pytest.mark.parametrize("size", [224, 64, 33, 32, 20, 8])
    def test_resize_is_within_one_grey_level_of_pil(self, size):
        images = pictures()
        ours = resize(images, size)
        assert ours.shape == (6, 3, size, size) and ours.dtype == torch.float32
        for image, result in zip(images, ours, strict=True):
            pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1) / 255
            assert (result - expected).abs().max() <= 1 / 255 + 1e-6

    @pytest.mark.parametrize("size", [224, 48, 20])
    def test_the_whole_way_is_torchvisions(self, size):
        mean, std = [0.49, 0.48, 0.44], [0.25, 0.24, 0.26]
        images = pictures()
        transform = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Resize([size, size], antialias=True), v2.Normalize(mean, std)]
        )
        ours = Preprocess(size, mean, std)(images)
        assert torch.allclose(ours, transform(images), atol=1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)

    def test_statistics_are_those_of_all_pixels(self):
        images = pictures()
        mean, std = mean_and_std(images)
        pixels = images.permute(1, 0, 2, 3).flatten(1).double() / 255
        assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
        assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)

    def test_a_constant_channel_can_be_divided_by_its_deviation(self):
        images = pictures()
        images[:, 2] = 7
        mean, std = mean_and_std(images)
        assert Preprocess(32, mean, std)(images).isfinite().all()

    def test_preprocessed_training_images_have_mean_0_and_deviation_1(self):
        images = pictures()
        inputs = Preprocess(32, *mean_and_std(images))(images)
        assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
        assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


class TestHoldOut:
    def test_every_image_is_in_one_of_the_two(self):
        images, labels = pictures(40), torch.arange(40)
        (kept, kept_labels), (held, held_labels) = sources.hold_out(images, labels, 7)
        assert len(held) == 7 and sorted([*kept_labels.tolist(), *held_labels.tolist()]) == list(range(40))
        assert torch.equal(kept, images[kept_labels]) and torch.equal(held, images[held_labels])

    def test_they_are_always_the_same(self):
        images, labels = pictures(40), torch.arange(40)
        first = sources.hold_out(images, labels, 7)[1][1]
        np.random.seed(5)
        assert torch.equal(first, sources.hold_out(images, labels, 7)[1][1])


class TestShapes:
    def test_the_same_images_on_every_machine(self):
        """The digest is not an oracle: it is the promise that the data set never changes."""
        digest = hashlib.sha256()
        for split in ("train", "test"):
            for array in drawn_shapes(split):
                digest.update(np.ascontiguousarray(array).tobytes())
        assert digest.hexdigest() == DIGEST

    def test_sizes_classes_and_masks(self):
        images, labels, classes = sources.load("shapes", "train")
        assert images.shape == (5000, 3, 32, 32) and images.dtype == torch.uint8
        assert labels.bincount().tolist() == [500] * 10 and classes == shapes.CLASSES
        images, labels, masks = drawn_shapes("test")
        assert images.shape == (1000, 3, 32, 32) and masks.shape == (1000, 32, 32) and masks.dtype == bool
        assert 0.05 < masks.mean((1, 2)).min() and masks.mean((1, 2)).max() < 0.8

    def test_a_mask_separates_the_shape_from_its_background(self):
        """Within a solid shape, colours vary only by noise; across its border they jump."""
        images, labels, masks = drawn_shapes("test")
        for image, mask in zip(images[labels == 0], masks[labels == 0], strict=True):  # disks
            inside = image[:, mask].astype(float)
            outside = image[:, ~mask].astype(float)
            assert inside.std(1).max() < 20
            assert np.abs(inside.mean(1) - outside.mean(1)).max() > 30

    def test_train_and_test_share_no_image(self):
        train, test = (drawn_shapes(split)[0] for split in ("train", "test"))
        assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


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

    def test_without_a_network_it_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        with pytest.raises(sources.DataError, match=r"could not be downloaded.*--data FOLDER.*--data shapes"):
            sources.load("cifar10", "train", tmp_path)

    def test_a_damaged_copy_is_not_used(self, fake_cifar10, monkeypatch):
        root, _ = fake_cifar10
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut short")
        with pytest.raises(sources.DataError, match="CIFAR-10 could not be downloaded"):
            sources.load("cifar10", "train", root)


class TestFolder:
    def test_pictures_come_as_they_are_in_the_order_of_their_names(self, folder):
        images, labels, classes = sources.load(str(folder), "train")
        assert classes == ("disk", "ring", "stripes") and labels.bincount().tolist() == [16, 16, 16]
        drawn, drawn_labels, _ = drawn_shapes("train")
        expected = np.concatenate([drawn[drawn_labels == n][:16] for n in (0, 3, 7)])
        assert np.array_equal(images.numpy(), expected)  # 2.png before 10.png
        files = sources.list_files(folder, "train")
        assert [file.name for file in files[:3]] == ["0.png", "1.png", "2.png"] and len(files) == 48

    def test_the_order_agrees_with_torchvisions_image_folder(self, folder):
        theirs = torchvision.datasets.ImageFolder(folder / "test")
        _, labels, classes = sources.load(str(folder), "test")
        assert list(classes) == theirs.classes and labels.tolist() == theirs.targets
        assert {str(file) for file in sources.list_files(folder, "test")} == {path for path, _ in theirs.samples}

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".JPEG"])
    def test_formats(self, tmp_path, suffix):
        folder = write_folder(tmp_path / "data", train=2, test=1, suffix=suffix)
        assert sources.load(str(folder), "train")[0].shape == (6, 3, 32, 32)

    def test_val_is_accepted_for_test(self, folder):
        (folder / "test").rename(folder / "val")
        assert len(sources.load(str(folder), "test")[0]) == 12

    def test_unequal_pictures_are_resized_and_cropped_at_the_centre(self, folder):
        wide = np.zeros((30, 90, 3), np.uint8)
        wide[:, 30:60, 1] = 200  # the middle third is green
        Image.fromarray(wide).save(folder / "train" / "disk" / "0.png")
        images, labels, _ = sources.load(str(folder), "train", image_size=16)
        assert images.shape == (48, 3, 16, 16)
        assert (images[0, 1, :, 1:-1] == 200).all() and not images[0, [0, 2]].any()
        theirs = torchvision.datasets.ImageFolder(folder / "train", v2.Compose([v2.Resize(16), v2.CenterCrop(16)]))
        files = [str(file) for file in sources.list_files(folder, "train")]
        for path, label in theirs.samples:
            n = files.index(path)
            expected = np.array(theirs.transform(theirs.loader(path))).transpose(2, 0, 1).astype(int)
            assert labels[n] == label and np.abs(images[n].numpy().astype(int) - expected).max() <= 1

    def test_equal_pictures_larger_than_the_image_size_are_resized(self, folder):
        assert sources.load(str(folder), "train", image_size=24)[0].shape == (48, 3, 24, 24)
        assert sources.load(str(folder), "train", image_size=32)[0].shape == (48, 3, 32, 32)
        assert sources.load(str(folder), "train", image_size=64)[0].shape == (48, 3, 32, 32)

    def test_grey_transparent_and_turned_pictures_become_rgb(self, tmp_path):
        array = np.random.RandomState(0).randint(0, 256, (20, 20)).astype(np.uint8)
        grey = Image.fromarray(array)
        grey.save(tmp_path / "grey.png")
        image = folders.read_image(tmp_path / "grey.png", 20)
        assert torch.equal(image, torch.from_numpy(array).expand(3, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees, as phones save upright pictures
        grey.save(tmp_path / "turned.png", exif=exif)
        assert torch.equal(folders.read_image(tmp_path / "turned.png", 20), image.rot90(-1, (1, 2)))
        deep = Image.fromarray(array.astype(np.uint16) * 257)
        deep.save(tmp_path / "deep.png")  # 16 bits
        assert torch.equal(folders.read_image(tmp_path / "deep.png", 20), image)
        see_through = grey.convert("RGBA")
        see_through.putalpha(Image.fromarray(np.where(np.arange(20) < 10, 255, 0).astype(np.uint8)[None].repeat(20, 0)))
        see_through.save(tmp_path / "alpha.png")
        alpha = folders.read_image(tmp_path / "alpha.png", 20)
        assert torch.equal(alpha[:, :, :10], image[:, :, :10]) and (alpha[:, :, 10:] == 255).all()

    def test_other_files_are_passed_over(self, folder):
        (folder / "train" / "disk" / "notes.txt").write_text("not a picture")
        (folder / "train" / "disk" / ".hidden.png").write_bytes(b"nor this")
        (folder / "train" / ".cache").mkdir()
        assert len(sources.load(str(folder), "train")[0]) == 48


class TestBadFolder:
    def refuses(self, folder, *words, split="train"):
        with pytest.raises(sources.DataError) as caught:
            sources.load(str(folder), split)
        for word in words:
            assert word in str(caught.value)

    def test_missing(self, tmp_path):
        self.refuses(tmp_path / "nowhere", "nowhere is not a folder", "cifar10, shapes")

    def test_empty(self, tmp_path):
        self.refuses(tmp_path, "no folder train", "train/<class>/*")

    def test_without_test_split(self, folder):
        os.rename(folder / "test", folder / "other")
        self.refuses(folder, "no folder test or val", split="test")

    def test_a_class_without_images(self, folder):
        (folder / "train" / "empty").mkdir()
        (folder / "test" / "empty").mkdir()
        self.refuses(folder, os.path.join("train", "empty"), "has no images")

    def test_one_class_only(self, tmp_path):
        self.refuses(write_folder(tmp_path / "one", classes=["disk"]), "has 1 class folders, at least two")

    def test_different_classes_in_train_and_test(self, folder):
        (folder / "test" / "ring").rename(folder / "test" / "moon")
        self.refuses(folder, "different classes", "moon, ring")
        self.refuses(folder, "different classes", "moon, ring", split="test")

    def test_a_broken_picture_is_named(self, folder):
        path = folder / "train" / "ring" / "3.png"
        path.write_bytes(path.read_bytes()[:200])
        self.refuses(folder, str(path), "cannot be read", "replace or remove")

    def test_a_picture_that_is_none_is_named(self, folder):
        path = folder / "train" / "ring" / "3.png"
        path.write_text("hello")
        self.refuses(folder, str(path), "cannot be read")

    def test_what_does_not_fit_is_refused_before_it_is_read(self, folder, monkeypatch):
        monkeypatch.setattr(folders, "available_memory", lambda: 100_000)
        monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("it was read"))
        self.refuses(folder, "48 images of 32x32 need 0.0 GiB", "0.0 GiB are free")

    def test_both_figures_of_what_does_not_fit(self, folder, monkeypatch):
        monkeypatch.setattr(folders, "available_memory", lambda: 3 * 2**30)
        with pytest.raises(sources.DataError, match=r"need 4\.5 GiB of memory, 3\.0 GiB are free"):
            folders._check_memory(int(4.5 * 2**30), "all of them")
        folders._check_memory(2 * 2**30, "half of them")

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="unknown split 'valid'"):
            sources.load("shapes", "valid")


def test_available_memory_is_less_than_the_machine_has():
    available = folders.available_memory()
    if available is None:
        pytest.skip("this system does not tell")
    assert 2**20 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
