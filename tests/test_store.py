"""The store of decoded images: a folder decoded directly is the oracle; nothing but a complete store is ever used."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import folders, sources, store
from dataset.preprocess import color_histogram, mean_and_std

ROOT = Path(__file__).parent.parent


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


def place(root):
    (found,) = (root / "decoded").iterdir()
    return found


class TestContents:
    def test_what_is_loaded_is_what_the_files_hold(self, folder, root, capsys):
        for split in ("train", "test"):
            loaded = load(folder, root, split)
            assert torch.equal(loaded.images, decoded(folder, split))
            assert loaded.labels.tolist() == [n for n in range(3) for _ in range(len(loaded.labels) // 3)]
            assert loaded.mean_and_std() == mean_and_std(decoded(folder, split))
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 2 and said[0].startswith(
            f"decoding once: 48 train images of {folder} at 32x32, 0.1 MB, to "
        )
        assert str(place(root) / "train.npy") in said[0]

    def test_the_files_are_numpys_and_json(self, folder, root):
        for split in ("train", "test"):
            load(folder, root, split)
        facts = json.loads((place(root) / "facts.json").read_text())
        array = np.load(place(root) / "test.npy")
        assert array.dtype == np.uint8 and np.array_equal(array, decoded(folder, "test").numpy())
        assert (
            facts["test"]["classes"] == ["disk", "ring", "stripes"]
            and facts["test"]["labels"] == [0] * 4 + [1] * 4 + [2] * 4
        )
        mean, std = mean_and_std(decoded(folder))
        assert (facts["train"]["mean"], facts["train"]["std"]) == (mean, std) and facts["folder"] == str(folder)
        status = (folder / "train" / "disk" / "2.png").stat()
        assert ["disk/2.png", status.st_size, status.st_mtime_ns] in facts["train"]["pictures"]

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

    def test_the_array_is_mapped_not_read(self, folder, root):
        images = load(folder, root).images
        if sys.platform.startswith("linux"):
            assert str(place(root) / "train.npy") in Path("/proc/self/maps").read_text()
        assert images.dtype == torch.uint8 and images.shape == (48, 3, 32, 32)

    def test_each_folder_and_size_has_its_own(self, folder, root):
        other = Path(shutil.copytree(folder, folder.parent / "other"))
        assert load(folder, root, image_size=24).images.shape == (48, 3, 24, 24)
        load(folder, root)
        load(other, root)
        assert len(list((root / "decoded").iterdir())) == 3

    def test_a_relative_path_means_the_same_folder(self, folder, root, monkeypatch):
        load(folder, root)
        forbid(monkeypatch)
        monkeypatch.chdir(folder.parent)
        load(Path(folder.name), root)

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

    def test_a_file_is_added(self, folder, root, capsys):
        shutil.copy(folder / "train" / "disk" / "0.png", folder / "train" / "ring" / "99.png")
        self.again(folder, root, capsys)

    def test_a_file_is_removed(self, folder, root, capsys):
        (folder / "train" / "ring" / "3.png").unlink()
        self.again(folder, root, capsys)

    def test_a_file_is_renamed(self, folder, root, capsys):
        (folder / "train" / "ring" / "3.png").rename(folder / "train" / "ring" / "33.png")
        self.again(folder, root, capsys)

    def test_a_file_is_moved_to_another_class(self, folder, root, capsys):
        (folder / "train" / "ring" / "3.png").rename(folder / "train" / "disk" / "33.png")
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
        file = place(root) / "train.npy"
        status = file.stat()
        shortened = file.read_bytes()[:-1]
        file.unlink()  # it is mapped
        file.write_bytes(shortened)
        if keep_time:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.again(folder, root, capsys)

    def test_another_array_of_the_same_size(self, root, folder, capsys):
        file, other = place(root) / "train.npy", place(root) / "other.npy"
        content = file.read_bytes()
        other.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
        os.utime(other, ns=(0, file.stat().st_mtime_ns + 1))
        other.replace(file)
        self.again(folder, root, capsys)

    @pytest.mark.parametrize("key, value", [("mean", [0.5] * 3), ("labels", [0] * 48), ("shape", [48, 3, 16, 64])])
    def test_facts_are_edited(self, folder, root, capsys, key, value):
        file = place(root) / "facts.json"
        facts = json.loads(file.read_text())
        facts["train"][key] = value
        file.write_text(json.dumps(facts))
        self.again(folder, root, capsys)

    @pytest.mark.parametrize("text", ["", "[]", "null", '{"train": 1}', '{"train": {}}', '{"train": {"sha256"', "\xff"])
    def test_facts_are_damaged(self, folder, root, capsys, text):
        (place(root) / "facts.json").write_bytes(text.encode("latin-1"))
        assert torch.equal(load(folder, root).images, decoded(folder))
        assert capsys.readouterr().out.count("decoding once: ") == 1

    def test_files_are_deleted_by_hand(self, folder, root, capsys):
        images = load(folder, root).images
        shutil.rmtree(root)
        assert torch.equal(images, decoded(folder))  # a running process is not disturbed
        load(folder, root)
        (place(root) / "train.npy").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))
        (place(root) / "facts.json").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))

    def test_only_the_split_that_changed_is_decoded_again(self, folder, root, monkeypatch):
        (folder / "train" / "ring" / "3.png").unlink()
        load(folder, root)
        forbid(monkeypatch)
        assert load(folder, root, "test").images.shape[0] == 12


class TestFailures:
    def leaves_nothing(self, root):
        names = [file.name for file in (root / "decoded").rglob("*") if file.is_file()]
        assert set(names) <= {"lock"}

    def test_an_unreadable_image_is_named_and_nothing_is_left(self, folder, root):
        file = folder / "train" / "ring" / "3.png"
        content = file.read_bytes()
        file.write_bytes(content[:200])
        with pytest.raises(sources.DataError, match="3.png cannot be read as an image"):
            load(folder, root)
        self.leaves_nothing(root)
        file.write_bytes(content)
        assert torch.equal(load(folder, root).images, decoded(folder))

    def test_a_link_to_nothing_is_named(self, folder, root):
        (folder / "train" / "ring" / "gone.png").symlink_to(folder / "nowhere.png")
        with pytest.raises(sources.DataError, match="gone.png cannot be read as an image"):
            load(folder, root)

    def test_too_small_a_disk_is_noticed_before_anything_is_decoded(self, folder, root, monkeypatch):
        monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
        monkeypatch.setattr(store, "read_image", lambda *_: pytest.fail("it was decoded"))
        with pytest.raises(
            sources.DataError, match=r"48 train images of .* 0\.1 MB: 0\.1 MB are free .* another --root"
        ):
            load(folder, root)

    def test_a_disk_that_fills_up(self, folder, root, monkeypatch):
        def fill(stream, *_):
            stream.write(b"some of it")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store, "_write", fill)
        with pytest.raises(sources.DataError, match="does not fit: .* are free on the disk of .* another --root"):
            load(folder, root)
        self.leaves_nothing(root)

    def test_an_interrupt_leaves_nothing(self, folder, root, monkeypatch):
        def interrupt(file, size):
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "read_image", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(folder, root)
        self.leaves_nothing(root)

    def test_a_folder_that_changes_meanwhile(self, folder, root, monkeypatch):
        def change(file, size):
            (folder / "train" / "ring" / "3.png").unlink(missing_ok=True)
            return torch.zeros(3, size, size, dtype=torch.uint8)

        monkeypatch.setattr(store, "read_image", change)
        with pytest.raises(sources.DataError, match="changed while it was decoded"):
            load(folder, root)
        monkeypatch.undo()
        assert torch.equal(load(folder, root).images, decoded(folder))

    def test_without_facts_an_array_is_not_used(self, folder, root, monkeypatch):
        """As after a kill between the two files."""
        monkeypatch.setattr(store, "_write_facts", lambda *_: None)
        with pytest.raises(sources.DataError, match="changed by another process"):
            load(folder, root)
        assert (place(root) / "train.npy").exists()
        monkeypatch.undo()
        assert torch.equal(load(folder, root).images, decoded(folder))


class TestReadOnly:
    @pytest.fixture(autouse=True)
    def read_only(self, root, tmp_path, monkeypatch):
        """No folder can be made in the root, not even by the superuser; the cache is elsewhere."""
        refused, mkdir = [root], Path.mkdir

        def guarded(self, *args, **options):
            if any(each in self.parents for each in refused):
                raise OSError(errno.EROFS, "Read-only file system")
            mkdir(self, *args, **options)

        monkeypatch.setattr(Path, "mkdir", guarded)
        monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / "cache")
        return refused

    def test_the_systems_cache_is_used_and_a_line_says_so(self, folder, root, tmp_path, monkeypatch, capsys):
        assert torch.equal(load(folder, root).images, decoded(folder))
        first, second = capsys.readouterr().out.splitlines()
        assert "cannot be written (Read-only file system)" in first and str(tmp_path / "cache") in first
        assert second.startswith("decoding once: ") and str(tmp_path / "cache") in second
        forbid(monkeypatch)
        load(folder, root)
        assert not capsys.readouterr().out

    def test_without_a_cache_it_is_an_error(self, folder, root, tmp_path, read_only):
        read_only.append(tmp_path / "cache")
        with pytest.raises(OSError, match="Read-only file system"):
            load(folder, root)


@pytest.mark.parametrize(
    "platform, variables, expected",
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/resnet18-mirror"),
        ("linux", {}, "/home/a/.cache/resnet18-mirror"),
        ("darwin", {}, "/home/a/Library/Caches/resnet18-mirror"),
        ("win32", {"LOCALAPPDATA": "/y"}, "/y/resnet18-mirror"),
    ],
)
def test_the_systems_cache(monkeypatch, platform, variables, expected):
    monkeypatch.setattr(store.sys, "platform", platform)
    monkeypatch.setattr(store.os.path, "expanduser", lambda path: "/home/a")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store.cache_folder() == Path(expected)


class TestSeveralProcesses:
    @pytest.mark.skipif(store.fcntl is None, reason="files cannot be locked")
    def test_one_decodes_while_the_other_waits(self, folder, root, monkeypatch, capsys):
        """Two threads, each with a lock of its own, as two processes have."""
        read, read_image = [], folders.read_image

        def slowly(file, size):
            read.append(file)
            time.sleep(0.002)
            return read_image(file, size)

        monkeypatch.setattr(store, "read_image", slowly)
        loaded = []
        threads = [threading.Thread(target=lambda: loaded.append(load(folder, root).images)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read) == 48 and capsys.readouterr().out.count("waiting for another process") == 1
        assert len(loaded) == 2 and all(torch.equal(images, decoded(folder)) for images in loaded)

    def test_where_files_cannot_be_locked(self, folder, root, monkeypatch):
        monkeypatch.setattr(store, "fcntl", None)
        load(folder, root)
        (folder / "train" / "ring" / "3.png").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))


SERVER = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from dataset import store
store.read_image, read_image = (lambda *args: time.sleep(0.003) or read_image(*args)), store.read_image
os.fsync = lambda descriptor: None
for line in sys.stdin:  # each decodes in a process of its own, without another start of Python
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        store.load_folder(Path(sys.argv[2]), "train", Path(sys.argv[3]), 224)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
def test_killed_at_random_moments(folder, root):
    """Five times; after each the store is missing or complete, and the next start decodes again."""
    expected, delays, killed = decoded(folder), random.Random(0), 0
    listing = folders.list_split(folder, "train")
    command = [sys.executable, "-c", SERVER, str(ROOT), str(folder), str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:

        def start():
            server.stdin.write("\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        for _ in range(5):
            child = start()
            time.sleep(delays.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(int(server.stdout.readline()))
            for stored in (root / "decoded").glob("*"):
                found = store._open(stored, "train", listing)
                assert found is None or torch.equal(found.images, expected)
        assert killed >= 3
        start()
        assert server.stdout.readline() == "0\n"
        server.stdin.close()
    assert {file.name for file in place(root).iterdir()} == {"train.npy", "facts.json", "lock"}
    assert torch.equal(load(folder, root).images, expected)
