"""What can go wrong with the store of decoded images: nothing but a complete store is ever used."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_store import decoded, forbid, load, stored

from dataset import folders, store
from dataset.folders import DataError
from runtime import signals

ROOT = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_too_small_a_disk_is_noticed_before_anything_is_decoded(folder, root, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    monkeypatch.setattr(store, "read_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"48 train images of .* 0\.1 MB: 0\.1 MB are free .* another --root"):
        load(folder, root)


def test_a_disk_that_fills_up(folder, root, monkeypatch):
    def fill(stream, *_):
        stream.write(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write", fill)
    with pytest.raises(DataError, match="does not fit: .* another --root"):
        load(folder, root)
    assert {file.name for file in stored(root).iterdir()} <= {"lock"}


def test_a_folder_that_changes_meanwhile(folder, root, monkeypatch):
    def change(file, size):
        (folder / "train" / "ring" / "3.png").unlink(missing_ok=True)
        return torch.zeros(3, size, size, dtype=torch.uint8)

    monkeypatch.setattr(store, "read_image", change)
    with pytest.raises(DataError, match="changed while it was decoded"):
        load(folder, root)
    monkeypatch.undo()
    assert torch.equal(load(folder, root).images, decoded(folder))


def test_a_store_that_another_process_changes_meanwhile(folder, root, monkeypatch):
    monkeypatch.setattr(store, "_write_facts", lambda *_: None)
    with pytest.raises(DataError, match="changed by another process"):
        load(folder, root)


class TestReadOnly:
    @pytest.fixture(autouse=True)
    def read_only(self, root, tmp_path, monkeypatch):
        """No folder can be made in the root, not even by the superuser; the cache is elsewhere."""
        refused, mkdir = [root], Path.mkdir

        def guarded(self, *args, **options):
            if any(folder in self.parents for folder in refused):
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


def test_the_cache_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert store.cache_folder() == Path("/x/resnet18-mirror")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_folder() == Path.home() / ".cache" / "resnet18-mirror"


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
        loaded = []
        threads = [threading.Thread(target=lambda: loaded.append(load(folder, root).images)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read) == 48 and sorted(line.split()[0] for line in printed) == ["decoding", "waiting"]
        assert len(loaded) == 2 and all(torch.equal(images, decoded(folder)) for images in loaded)

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
    command = [sys.executable, "-c", SERVER, str(ROOT), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:

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
