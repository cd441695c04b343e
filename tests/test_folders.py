"""Image folders: PIL and torchvision's ImageFolder are the oracles; what is wrong with a folder is named."""

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
        (folder / "test").rename(folder / "val")
        assert len(sources.load(str(folder), "test")[0]) == 12

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".JPEG"])
    def test_formats(self, tmp_path, suffix):
        folder = write_folder(tmp_path / "data", train=2, test=1, suffix=suffix)
        assert sources.load(str(folder), "train")[0].shape == (6, 3, 32, 32)

    def test_unequal_pictures_are_resized_and_cropped_as_by_torchvisions_image_folder(self, folder):
        wide = np.random.RandomState(0).randint(0, 256, (30, 90, 3)).astype(np.uint8)
        Image.fromarray(wide).save(folder / "train" / "disk" / "0.png")
        images, labels, classes = sources.load(str(folder), "train", image_size=16)
        assert images.shape == (48, 3, 16, 16)
        theirs = torchvision.datasets.ImageFolder(folder / "train", v2.Compose([v2.Resize(16), v2.CenterCrop(16)]))
        files = [str(file) for file in sources.list_files(folder, "train")]
        assert list(classes) == theirs.classes and len(files) == len(theirs)
        for path, label in theirs.samples:
            n = files.index(path)
            expected = np.array(theirs.transform(theirs.loader(path))).transpose(2, 0, 1).astype(int)
            assert labels[n] == label and np.abs(images[n].numpy().astype(int) - expected).max() <= 1

    def test_equal_pictures_larger_than_the_image_size_are_resized(self, folder):
        for size, expected in {24: 24, 32: 32, 64: 32}.items():
            assert sources.load(str(folder), "train", image_size=size)[0].shape == (48, 3, expected, expected)

    def test_what_is_left_out_is_counted_in_one_line(self, folder, capsys):
        images = sources.load(str(folder), "train")[0]
        assert "left out" not in capsys.readouterr().out
        train = folder / "train"
        for name in ("disk/notes.txt", "disk/a.gif", "ring/b.GIF", "ring/README", "stray.png", "disk/.hidden.png"):
            (train / name).write_text("not an image of a class")
        for name in ("disk/nested", "ring/folder.jpg", ".cache", "disk/.cache"):
            (train / name).mkdir()
        assert torch.equal(sources.load(str(folder), "train")[0], images)
        (line,) = capsys.readouterr().out.splitlines()
        assert f"{train}: left out .gif (2), .png (1), .txt (1), folders (2), other files (1);" in line

    def test_names_of_classes_become_one_line(self, folder):
        for split in ("train", "test"):
            (folder / split / "ring").rename(folder / split / "r\ning")
        images, _, classes = sources.load(str(folder), "train")
        assert len(images) == 48 and classes == ("disk", "r ing", "stripes")


class TestReadImage:
    array = np.random.RandomState(0).randint(0, 256, (20, 20)).astype(np.uint8)

    def read(self, path, image, **options):
        image.save(path, **options)
        return folders.read_image(path, 20)

    def test_grey_transparent_and_turned_pictures_become_rgb(self, tmp_path):
        grey, path, expected = Image.fromarray(self.array), tmp_path / "a.png", torch.from_numpy(self.array)
        assert torch.equal(self.read(path, grey), expected.expand(3, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees, as phones save upright pictures
        assert torch.equal(self.read(path, grey, exif=exif)[0], expected.rot90(-1))
        see_through = grey.convert("RGBA")
        see_through.putalpha(Image.fromarray(np.where(np.arange(20) < 10, 255, 0).astype(np.uint8)[None].repeat(20, 0)))
        alpha = self.read(path, see_through)
        assert torch.equal(alpha[0, :, :10], expected[:, :10]) and (alpha[:, :, 10:] == 255).all()

    @pytest.mark.parametrize("bits", [12, 16])
    def test_deep_pictures(self, tmp_path, bits):
        deep = (self.array.astype(int) * (2**bits - 1) // 255).astype(np.uint16)
        image = self.read(tmp_path / "a.png", Image.fromarray(deep)).int()
        assert (image - torch.from_numpy(self.array).int()).abs().max() <= (bits == 12) and image.max() >= 254


@pytest.mark.parametrize(
    "change, split, words",
    [
        (lambda path: path.rename(path.parent / "elsewhere"), "train", "is not a folder.*cifar10, shapes"),
        (lambda path: (path / "test").rename(path / "other"), "test", "no folder test or val"),
        (lambda path: [(path / split / "empty").mkdir() for split in ("train", "test")], "train", "has no images"),
        (lambda path: [(path / "train" / name).rename(path / name) for name in ("disk", "ring")], "train",
         "has 1 class folders, at least two"),
        (lambda path: (path / "test" / "ring").rename(path / "test" / "moon"), "test", "moon, ring in only one"),
        (lambda path: (path / "train" / "ring" / "3.png").write_bytes(b"hello"), "train", "3.png cannot be read"),
        (lambda path: (path / "train" / "ring" / "gone.png").symlink_to(path / "nowhere.png"), "train", "gone.png"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_named(folder, change, split, words):
    change(folder)
    with pytest.raises((sources.DataError, OSError), match=words):
        sources.load(str(folder), split)
