"""The store of decoded images: a folder decoded directly is the oracle, and whatever has changed is decoded again."""

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
from dataset.preprocess import color_histogram, mean_and_std


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def load(folder, root, split="train", image_size=224):
    return store.load_folder(folder, split, root, image_size)


def decoded(folder, split="train", side=32):
    """The images read one by one."""
    return torch.stack([folders.read_image(file, side) for file in folders.list_files(folder, split)])


def forbid(monkeypatch):
    """No image file is read from now on."""
    monkeypatch.setattr(store, "read_image", lambda *_: pytest.fail("it was decoded again"))
    monkeypatch.setattr(store, "_size_of", lambda *_: pytest.fail("it was decoded again"))


def stored(root):
    (folder,) = (root / "decoded").iterdir()
    return folder


class TestContents:
    def test_what_is_loaded_is_what_the_files_hold(self, folder, root, capsys):
        for split in ("train", "test"):
            loaded = load(folder, root, split)
            assert torch.equal(loaded.images, decoded(folder, split))
            assert loaded.labels.tolist() == [n for n in range(3) for _ in range(len(loaded.labels) // 3)]
            assert loaded.mean_and_std() == mean_and_std(decoded(folder, split))
        said, _ = capsys.readouterr().out.splitlines()
        assert said == f"decoding once: 48 train images of {folder} at 32x32, 0.1 MB, to {stored(root) / 'train.npy'}"

    def test_the_files_are_numpys_and_json(self, folder, root):
        load(folder, root, "test")
        facts = json.loads((stored(root) / "facts.json").read_text())
        assert np.array_equal(np.load(stored(root) / "test.npy"), decoded(folder, "test").numpy())
        assert facts["folder"] == str(folder) and facts["test"]["classes"] == ["disk", "ring", "stripes"]
        assert facts["test"]["labels"] == [0] * 4 + [1] * 4 + [2] * 4
        status = (folder / "test" / "disk" / "2.png").stat()
        assert ["disk/2.png", status.st_size, status.st_mtime_ns] in facts["test"]["pictures"]

    def test_blocks_of_several_threads_arrive_in_order(self, folder, root, monkeypatch):
        monkeypatch.setattr(store, "BLOCK_IMAGES", 5)
        assert torch.equal(load(folder, root).images, decoded(folder))

    def test_a_second_start_reads_no_image(self, folder, root, monkeypatch, capsys):
        first = load(folder, root)
        capsys.readouterr()
        forbid(monkeypatch)
        second = load(folder, root)
        assert torch.equal(first.images, second.images) and first.labels.equal(second.labels)
        assert torch.equal(second.histogram, color_histogram(decoded(folder))) and not capsys.readouterr().out
        monkeypatch.chdir(folder.parent)
        load(Path(folder.name), root)

    def test_the_array_is_mapped_not_read(self, folder, root):
        images = load(folder, root).images
        if sys.platform.startswith("linux"):
            assert str(stored(root) / "train.npy") in Path("/proc/self/maps").read_text()
        assert images.dtype == torch.uint8 and images.shape == (48, 3, 32, 32)

    def test_each_folder_and_size_has_its_own(self, folder, root):
        other = Path(shutil.copytree(folder, folder.parent / "other"))
        assert load(folder, root, image_size=24).images.shape == (48, 3, 24, 24)
        load(folder, root)
        load(other, root)
        assert len(list((root / "decoded").iterdir())) == 3

    def test_unequal_pictures_are_not_all_opened_for_their_size(self, folder, root, monkeypatch):
        Image.new("RGB", (40, 30)).save(folder / "train" / "disk" / "0.png")
        opened = []
        monkeypatch.setattr(
            store, "_size_of", lambda file, size_of=store._size_of: opened.append(file) or size_of(file)
        )
        assert load(folder, root, image_size=16).images.shape == (48, 3, 16, 16) and len(opened) == 1


class TestChanges:
    """Whatever differs from what was decoded is decoded again."""

    @pytest.fixture(autouse=True)
    def first(self, folder, root):
        load(folder, root)
        load(folder, root, "test")

    def again(self, folder, root, capsys):
        """The split is decoded again, and right."""
        capsys.readouterr()
        assert torch.equal(load(folder, root).images, decoded(folder))
        assert capsys.readouterr().out.count("decoding once: ") == 1
        load(folder, root)
        load(folder, root, "test")
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
    def test_a_file_is(self, folder, root, capsys, change):
        change(folder / "train")
        self.again(folder, root, capsys)

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

    @pytest.mark.parametrize("keep_time", [False, True])
    def test_the_array_is_truncated(self, root, folder, capsys, keep_time):
        file = stored(root) / "train.npy"
        status = file.stat()
        shortened = file.read_bytes()[:-1]
        file.unlink()  # it is mapped
        file.write_bytes(shortened)
        if keep_time:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.again(folder, root, capsys)

    def test_another_array_of_the_same_size(self, root, folder, capsys):
        file, other = stored(root) / "train.npy", stored(root) / "other.npy"
        content = file.read_bytes()
        other.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
        os.utime(other, ns=(0, file.stat().st_mtime_ns + 1))
        other.replace(file)
        self.again(folder, root, capsys)

    @pytest.mark.parametrize(
        "key, value", [("histogram", [[1] * 256] * 3), ("labels", [0]), ("shape", [48, 3, 16, 64])]
    )
    def test_facts_are_edited(self, folder, root, capsys, key, value):
        file = stored(root) / "facts.json"
        facts = json.loads(file.read_text())
        facts["train"][key] = value
        file.write_text(json.dumps(facts))
        self.again(folder, root, capsys)

    @pytest.mark.parametrize("text", ["", "[]", '{"train": 1}', '{"train": {"sha256"', "\xff"])
    def test_facts_are_damaged(self, folder, root, capsys, text):
        (stored(root) / "facts.json").write_bytes(text.encode("latin-1"))
        assert torch.equal(load(folder, root).images, decoded(folder))
        assert capsys.readouterr().out.count("decoding once: ") == 1

    def test_files_are_deleted_by_hand(self, folder, root, capsys):
        images = load(folder, root).images
        shutil.rmtree(root)
        assert torch.equal(images, decoded(folder))  # a running process is not disturbed
        load(folder, root)
        (stored(root) / "train.npy").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))
        (stored(root) / "facts.json").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))

    def test_only_the_split_that_changed_is_decoded_again(self, folder, root, monkeypatch):
        (folder / "train" / "ring" / "3.png").unlink()
        load(folder, root)
        forbid(monkeypatch)
        assert load(folder, root, "test").images.shape[0] == 12
