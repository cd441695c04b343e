"""Image folders: PIL and torchvision's ImageFolder are the oracles; what is wrong with a folder is named."""

import os

import numpy as np
import pytest
import torch
import torchvision
from conftest import drawn_shapes, write_folder
from PIL import Image
from torchvision.transforms import v2

from dataset import folders, sources


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
        twelve_bits = (array.astype(int) * 4095 // 255).astype(np.uint16)
        Image.fromarray(twelve_bits).save(tmp_path / "deep.png")
        deep = folders.read_image(tmp_path / "deep.png", 20).int()
        assert (deep - image.int()).abs().max() <= 1 and deep.max() >= 254
        see_through = grey.convert("RGBA")
        see_through.putalpha(Image.fromarray(np.where(np.arange(20) < 10, 255, 0).astype(np.uint8)[None].repeat(20, 0)))
        see_through.save(tmp_path / "alpha.png")
        alpha = folders.read_image(tmp_path / "alpha.png", 20)
        assert torch.equal(alpha[:, :, :10], image[:, :, :10]) and (alpha[:, :, 10:] == 255).all()

    def test_what_is_left_out_is_counted_in_one_line(self, folder, capsys):
        images = sources.load(str(folder), "train")[0]
        assert "left out" not in capsys.readouterr().out
        train = folder / "train"
        for name in ("disk/notes.txt", "disk/a.gif", "ring/b.GIF", "ring/c.heic", "ring/README", "stray.png"):
            (train / name).write_text("not an image of a class")
        for name in ("disk/nested", "ring/folder.jpg", ".cache", "disk/.cache"):
            (train / name).mkdir()
        (train / "disk" / ".hidden.png").write_bytes(b"nor this")
        if hasattr(os, "mkfifo"):
            os.mkfifo(train / "ring" / "pipe.tif")
        assert torch.equal(sources.load(str(folder), "train")[0], images)
        (line,) = capsys.readouterr().out.splitlines()
        tif = ", .tif (1)" if hasattr(os, "mkfifo") else ""
        counts = f".gif (2), .heic (1), .png (1){tif}, .txt (1), folders (2), other files (1)"
        assert line.startswith(f"note: {train}: left out {counts}; images are .bmp, .jpeg")

    def test_names_of_classes_become_one_line(self, folder):
        for split in ("train", "test"):
            (folder / split / "ring").rename(folder / split / "r\ning")
        images, _, classes = sources.load(str(folder), "train")
        assert len(images) == 48 and classes == ("disk", "r ing", "stripes")
        for split in ("train", "test"):
            (folder / split / "disk").rename(folder / split / "r ing")
        with pytest.raises(sources.DataError, match="two folders that read 'r ing': rename one"):
            sources.load(str(folder), "train")


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

    def test_a_picture_that_is_broken_or_none_is_named(self, folder):
        path = folder / "train" / "ring" / "3.png"
        for content in (path.read_bytes()[:200], b"hello"):
            path.write_bytes(content)
            self.refuses(folder, str(path), "cannot be read", "replace or remove")

    def test_floating_point_pixels(self, tmp_path):
        Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(sources.DataError, match=r"a.tif cannot be read .* .floating-point pixels: save it with 8"):
            folders.read_image(tmp_path / "a.tif", 8)
