"""The store of decoded images: a folder decoded directly is the oracle, and nothing but a complete store is used."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import folders, store
from dataset.preprocess import color_histogram


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def load(folder, root, split="train", image_size=224):
    return store.load_folder(folder, split, root, image_size)


def decoded(folder, split="train", side=32):
    """The images read one by one."""
    return torch.stack([folders.read_image(file, side) for file in folders.list_split(folder, split).paths])


def forbid(monkeypatch):
    """No image file is read from now on."""
    monkeypatch.setattr(store, "read_image", lambda *_: pytest.fail("it was decoded again"))
    monkeypatch.setattr(store, "_size_of", lambda *_: pytest.fail("it was decoded again"))


def stored(root):
    (folder,) = (root / "decoded").iterdir()
    return folder


class TestContents:
    def test_what_is_loaded_is_what_the_files_hold(self, folder, root, monkeypatch, capsys):
        monkeypatch.setattr(store, "BLOCK_IMAGES", 5)  # several threads, whose blocks must come in order
        for split in ("train", "test"):
            loaded = load(folder, root, split)
            assert torch.equal(loaded.images, decoded(folder, split))
            assert loaded.labels.tolist() == [n for n in range(3) for _ in range(len(loaded.labels) // 3)]
            assert torch.equal(loaded.histogram, color_histogram(decoded(folder, split)))
        said, _ = capsys.readouterr().out.splitlines()
        assert "48 train images" in said and "at 32x32, 0.1 MB" in said and str(stored(root) / "train.npy") in said

    def test_a_second_start_reads_no_image(self, folder, root, monkeypatch, capsys):
        first = load(folder, root)
        capsys.readouterr()
        forbid(monkeypatch)
        second = load(folder, root)
        assert torch.equal(first.images, second.images) and first.labels.equal(second.labels)
        assert torch.equal(second.histogram, color_histogram(decoded(folder))) and not capsys.readouterr().out
        monkeypatch.chdir(folder.parent)
        load(Path(folder.name), root)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_the_array_is_mapped_not_read(self, folder, root):
        images = load(folder, root).images
        assert len(images) and str(stored(root) / "train.npy") in Path("/proc/self/maps").read_text()

    def test_each_folder_and_size_has_its_own(self, folder, root):
        other = Path(shutil.copytree(folder, folder.parent / "other"))
        assert load(folder, root, image_size=24).images.shape == (48, 3, 24, 24)
        load(folder, root)
        load(other, root)
        assert len(list((root / "decoded").iterdir())) == 3

    def test_unequal_pictures_are_not_all_opened_for_their_size(self, folder, root, monkeypatch):
        Image.new("RGB", (40, 30)).save(folder / "train" / "disk" / "0.png")
        opened, size_of = [], store._size_of
        monkeypatch.setattr(store, "_size_of", lambda file: opened.append(file) or size_of(file))
        assert load(folder, root, image_size=16).images.shape == (48, 3, 16, 16) and len(opened) == 1


def rewrite(change, keep_time=False):
    """Changes the bytes of train.npy."""

    def damage(stored):
        file, other = stored / "train.npy", stored / "other.npy"
        other.write_bytes(change(file.read_bytes()))
        os.utime(other, ns=(0, file.stat().st_mtime_ns + (not keep_time)))
        other.replace(file)  # it is mapped

    return damage


def edit(key, value):
    """Changes an entry of facts.json."""

    def damage(stored):
        facts = json.loads((stored / "facts.json").read_text())
        facts["train"][key] = value
        (stored / "facts.json").write_text(json.dumps(facts))

    return damage


class TestChanges:
    """Whatever differs from what was decoded is decoded again."""

    @pytest.fixture(autouse=True)
    def first(self, folder, root):
        load(folder, root)
        load(folder, root, "test")

    def again(self, folder, root, capsys):
        """The split is decoded again, once, and right."""
        capsys.readouterr()
        assert torch.equal(load(folder, root).images, decoded(folder))
        assert capsys.readouterr().out.count("decoding once: ") == 1
        load(folder, root)
        assert not capsys.readouterr().out

    @pytest.mark.parametrize(
        "change",
        [
            lambda train: shutil.copy(train / "disk" / "0.png", train / "ring" / "99.png"),
            lambda train: (train / "ring" / "3.png").unlink(),
            lambda train: (train / "ring" / "3.png").rename(train / "ring" / "33.png"),
            lambda train: (train / "ring" / "3.png").rename(train / "disk" / "33.png"),
        ],
        ids=["added", "removed", "renamed", "moved to another class"],
    )
    def test_a_file_is(self, folder, root, capsys, monkeypatch, change):
        change(folder / "train")
        self.again(folder, root, capsys)
        forbid(monkeypatch)
        assert len(load(folder, root, "test").images) == 12  # the other split is not

    def test_another_picture_under_the_same_name_and_size(self, folder, root, capsys):
        file = folder / "train" / "ring" / "3.bmp"
        (folder / "train" / "ring" / "3.png").unlink()
        noise = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)
        Image.fromarray(noise[0]).save(file)
        load(folder, root)
        size = file.stat().st_size
        Image.fromarray(noise[1]).save(file)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # however coarse the file system's clock
        assert file.stat().st_size == size
        self.again(folder, root, capsys)

    @pytest.mark.parametrize(
        "damage",
        [
            *[rewrite(lambda content: content[:-1], keep_time) for keep_time in (False, True)],
            rewrite(lambda content: content[:-1] + bytes([content[-1] ^ 255])),
            edit("histogram", [[1] * 256] * 3),
            edit("shape", [48, 3, 16, 64]),
            *[lambda stored, text=text: (stored / "facts.json").write_bytes(text)
              for text in (b"", b"[]", b'{"train": 1}', b'{"train": {"sha256"', b"\xff")],
            *[lambda stored, name=name: (stored / name).unlink() for name in ("train.npy", "facts.json")],
        ],
    )  # fmt: skip
    def test_the_store_is_damaged(self, folder, root, capsys, damage):
        damage(stored(root))
        self.again(folder, root, capsys)

    def test_the_store_is_deleted(self, folder, root, capsys):
        images = load(folder, root).images
        shutil.rmtree(root)
        assert torch.equal(images, decoded(folder))  # a running process is not disturbed
        self.again(folder, root, capsys)
