"""A checkpoint appears whole or not at all, and nothing in it is run."""

import contextlib
import errno
import os
import pickle

import pytest
import torch

from network import ResNet18
from runtime import checkpoint, signals
from runtime.checkpoint import CheckpointError


class Payload:
    """What a malicious file would hold: unpickling it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def raising(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


class TestSave:
    def test_what_is_saved_comes_back(self, tmp_path):
        state = {"tensor": torch.randn(3), "text": "a", "list": [1, 2.5, None, True], "dict": {"x": (1, 2)}}
        for path in ("last.pt", "last.prev.pt"):
            checkpoint.save(state | {"n": path}, tmp_path / "last.pt", keep_previous=True)
        loaded = checkpoint.load(tmp_path / "last.pt")
        assert torch.equal(loaded.pop("tensor"), state.pop("tensor")) and loaded == state | {"n": "last.prev.pt"}
        assert checkpoint.load(tmp_path / "last.prev.pt")["n"] == "last.pt"
        assert sorted(os.listdir(tmp_path)) == ["last.prev.pt", "last.pt"]

    @pytest.mark.parametrize("moment", ["writing", "flushing"])
    def test_a_full_disk_leaves_both_old_files(self, tmp_path, monkeypatch, moment):
        def fill(state, file):
            file.write(b"half")
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch reports it

        path = tmp_path / "last.pt"
        for n in range(2):
            checkpoint.save({"n": n}, path, keep_previous=True)
        monkeypatch.setattr(*{"writing": (torch, "save", fill), "flushing": (os, "fsync", raising(errno.EIO))}[moment])
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save({"n": 2}, path, keep_previous=True)
        assert checkpoint.load(path) == {"n": 1} and checkpoint.load(tmp_path / "last.prev.pt") == {"n": 0}
        assert sorted(os.listdir(tmp_path)) == ["last.prev.pt", "last.pt"]

    def test_windows_is_given_time(self, tmp_path, monkeypatch):
        """There, a file cannot be replaced while another process reads it."""
        attempts, replace = [], os.replace

        def busy_twice(source, target):
            attempts.append(target)
            if len(attempts) < 3:
                raise PermissionError("in use")
            replace(source, target)

        monkeypatch.setattr(os, "replace", busy_twice)
        monkeypatch.setattr(checkpoint, "IS_WINDOWS", True)
        checkpoint.save({"a": 1}, tmp_path / "a.pt")
        assert len(attempts) == 3 and checkpoint.load(tmp_path / "a.pt") == {"a": 1}

    @pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened")
    @pytest.mark.parametrize("call, number", [("fsync", errno.EINVAL), ("fsync", errno.ENOSYS), ("open", errno.EACCES)])
    def test_a_file_system_that_cannot_synchronise(self, tmp_path, monkeypatch, call, number):
        monkeypatch.setattr(os, call, raising(number))
        checkpoint.save({"n": 1}, tmp_path / "a.pt")
        assert checkpoint.load(tmp_path / "a.pt") == {"n": 1}


class TestBadFiles:
    def refuses(self, path, *words):
        for load in (checkpoint.load, checkpoint.load_network):
            with pytest.raises(CheckpointError) as caught:
                load(path)
            assert all(word in str(caught.value) for word in (str(path), *words)), caught.value

    def test_missing_or_a_folder(self, tmp_path):
        self.refuses(tmp_path / "a.pt", "no checkpoint at")
        self.refuses(tmp_path, "no checkpoint at")

    @pytest.mark.parametrize(
        "content", [b"", b"hello", b"\x80\x02garbage", b"PK\x03\x04garbage", bytes(1000), 0.5, 0.99999]
    )
    def test_no_checkpoint_or_cut_short(self, tmp_path, content):
        path = tmp_path / "a.pt"
        if isinstance(content, float):
            checkpoint.save({"model": torch.randn(100_000)}, path)
            content = path.read_bytes()[: int(path.stat().st_size * content)]
        path.write_bytes(content)
        self.refuses(path, "not a checkpoint")

    def test_a_tensor_alone(self, tmp_path):
        torch.save(torch.zeros(3), tmp_path / "a.pt")
        self.refuses(tmp_path / "a.pt", "holds a Tensor")

    @pytest.mark.parametrize("protocol", [None, 2, 5])
    def test_code_is_not_run(self, tmp_path, protocol):
        """In a file of torch.save, and in plain pickles of the protocols that it can and cannot read."""
        state, marker = {"model": Payload(tmp_path / "marker")}, tmp_path / "marker"
        if protocol is None:
            torch.save(state, tmp_path / "a.pt")
        else:
            (tmp_path / "a.pt").write_bytes(pickle.dumps(state, protocol))
        self.refuses(tmp_path / "a.pt", "were not executed" if protocol != 5 else "not a checkpoint")
        assert not marker.exists()
        with contextlib.suppress(RuntimeError):
            torch.load(tmp_path / "a.pt", weights_only=False)
        assert marker.exists(), "the file is not as malicious as this test needs"

    def test_a_whole_module_is_not_run(self, tmp_path):
        torch.save(ResNet18(), tmp_path / "a.pt")
        self.refuses(tmp_path / "a.pt", "were not executed")


@pytest.mark.skipif(signals.fcntl is None, reason="folders cannot be locked")
class TestLock:
    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
    def test_a_folder_that_cannot_be_locked_is_a_note(self, tmp_path, monkeypatch, capsys, number):
        monkeypatch.setattr(signals.fcntl, "flock", raising(number))
        with signals.exclusive_lock(tmp_path):
            said = capsys.readouterr().out
        assert said.startswith(f"note: {tmp_path} cannot be locked") and said.count("\n") == 1

    def test_a_second_run_in_the_folder_is_refused(self, tmp_path):
        with (
            signals.exclusive_lock(tmp_path),
            pytest.raises(CheckpointError, match="another run is writing"),
            signals.exclusive_lock(tmp_path),
        ):
            pytest.fail("it was let in")
