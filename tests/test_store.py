"""The store of decoded images: a folder decoded directly is the oracle, and nothing but a complete store is used."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dataset import folders, store
from dataset.folders import DataError
from dataset.preprocess import color_histogram
from runtime import signals


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
    for name in ("read_image", "open_image"):
        monkeypatch.setattr(store, name, lambda *_: pytest.fail("it was decoded again"))


def stored(root):
    return next((root / "decoded").iterdir())


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

    def test_a_second_start_reads_no_image_and_maps_the_array(self, folder, root, monkeypatch, capsys):
        first = load(folder, root)
        capsys.readouterr()
        forbid(monkeypatch)
        monkeypatch.chdir(folder.parent)
        second = load(Path(folder.name), root)
        assert torch.equal(first.images, second.images) and first.labels.equal(second.labels)
        assert torch.equal(first.histogram, second.histogram) and not capsys.readouterr().out
        if sys.platform.startswith("linux"):
            assert str(stored(root) / "train.npy") in Path("/proc/self/maps").read_text()

    def test_each_folder_and_size_has_its_own(self, folder, root):
        other = Path(shutil.copytree(folder, folder.parent / "other"))
        assert load(folder, root, image_size=24).images.shape == (48, 3, 24, 24)
        load(folder, root)
        load(other, root)
        assert len(list((root / "decoded").iterdir())) == 3


def truncate(stored):
    """Cuts a byte off train.npy, and keeps the modification time; in another file, because it is mapped."""
    file, other = stored / "train.npy", stored / "other.npy"
    other.write_bytes(file.read_bytes()[:-1])
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    other.replace(file)


def edit_histogram(stored):
    text = (stored / "facts.json").read_text()
    (stored / "facts.json").write_text(text.replace('"histogram": [[', '"histogram": [[1'))


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

    @pytest.mark.parametrize("change", [
        lambda train: (train / "ring" / "3.png").rename(train / "disk" / "33.png"),
        lambda train: os.utime(train / "ring" / "3.png", ns=(0, 1)),
    ])  # fmt: skip
    def test_a_file_is_moved_or_written(self, folder, root, capsys, monkeypatch, change):
        change(folder / "train")
        self.again(folder, root, capsys)
        forbid(monkeypatch)
        assert len(load(folder, root, "test").images) == 12  # the other split is not

    @pytest.mark.parametrize(
        "damage",
        [
            truncate,
            edit_histogram,
            lambda stored: os.utime(stored / "train.npy", ns=(0, 1)),
            *[lambda stored, text=text: (stored / "facts.json").write_bytes(text)
              for text in (b"[]", b'{"train": 1}', b'{"train": {"sha256"', b"\xff")],
            *[lambda stored, name=name: (stored / name).unlink() for name in ("train.npy", "facts.json")],
        ],
    )  # fmt: skip
    def test_the_store_is_damaged(self, folder, root, capsys, damage):
        damage(stored(root))
        self.again(folder, root, capsys)

    def test_the_store_is_deleted_and_a_running_process_is_not_disturbed(self, folder, root):
        images = load(folder, root).images
        shutil.rmtree(root)
        assert torch.equal(images, decoded(folder)) and torch.equal(images, load(folder, root).images)


def test_a_disk_without_space_is_noticed_before_anything_is_decoded(folder, root, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    monkeypatch.setattr(store, "read_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"cannot be written to .*No space left.* another --root"):
        load(folder, root)


class TestSeveralProcesses:
    @pytest.mark.skipif(signals.fcntl is None, reason="files cannot be locked")
    def test_one_decodes_while_the_other_waits(self, folder, root, monkeypatch):
        """Two threads, each with a lock of its own, as two processes have."""
        read, read_image, printed, waits = [], folders.read_image, [], threading.Event()

        def read_later(file, size):
            read.append(file)
            assert waits.wait(timeout=60)
            return read_image(file, size)

        def note(text, **options):
            printed.append(text)
            if text.startswith("waiting for another process"):
                waits.set()

        monkeypatch.setattr(store, "read_image", read_later)
        monkeypatch.setattr(store, "print", note, raising=False)
        with ThreadPoolExecutor(2) as pool:
            loaded = list(pool.map(lambda _: load(folder, root).images, range(2)))
        assert len(read) == 48 and sorted(line.split()[0] for line in printed) == ["decoding", "waiting"]
        assert all(torch.equal(images, decoded(folder)) for images in loaded)

    def test_where_files_cannot_be_locked(self, folder, root, monkeypatch):
        monkeypatch.setattr(signals, "fcntl", None)
        load(folder, root)
        (folder / "train" / "ring" / "3.png").unlink()
        assert torch.equal(load(folder, root).images, decoded(folder))


SERVER = """
import itertools, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dataset import store

def mortal(function):
    def call(*args):
        if next(moments) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call

store.read_image, os.replace, os.fsync = map(mortal, (store.read_image, os.replace, lambda descriptor: None))
for line in sys.stdin:  # each decodes in a process of its own, without another start of Python
    (last, root), moments = line.split(maxsplit=1), itertools.count()
    last, child = int(last), os.fork()
    if not child:
        os.dup2(2, 1)
        store.load_folder(Path(sys.argv[2]), "train", Path(root.strip()), 224)
        os._exit(next(moments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
def test_killed_at_any_moment(folder, root, tmp_path):
    """Before an image is read, or a file flushed or renamed: the store is complete or unused, and made again."""
    expected, listing = decoded(folder), folders.list_split(folder, "train")
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent.parent), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:

        def decode(folder, last=-1):
            """Exit code of a process that is killed at this moment; without a kill, the number of moments."""
            server.stdin.write(f"{last} {folder}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        count = decode(tmp_path / "other")
        assert count >= 48 + 2 * 2  # images, and two files that are flushed and renamed
        for last in (0, 1, *random.Random(0).sample(range(2, 48), 2), *range(48, count)):
            assert decode(root, last) == -signal.SIGKILL
            if split := store._open(stored(root), "train", listing):
                assert torch.equal(split.images, expected)
                shutil.rmtree(root)
        assert decode(root) == count
        server.stdin.close()
    assert {file.name for file in stored(root).iterdir()} == {"train.npy", "facts.json", "lock"}
    assert torch.equal(load(folder, root).images, expected)
