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
    """What a malicious file would hold: unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class TestSaveAndLoad:
    def test_what_is_saved_comes_back(self, tmp_path):
        state = {"tensor": torch.randn(3), "text": "a", "list": [1, 2.5, None, True], "dict": {"x": (1, 2)}}
        checkpoint.save(state, tmp_path / "a.pt")
        loaded = checkpoint.load(tmp_path / "a.pt")
        assert torch.equal(loaded.pop("tensor"), state.pop("tensor")) and loaded == state
        assert os.listdir(tmp_path) == ["a.pt"]

    def test_the_one_before_is_kept(self, tmp_path):
        for n in range(3):
            checkpoint.save({"n": n}, tmp_path / "last.pt", keep_previous=True)
        assert checkpoint.load(tmp_path / "last.pt") == {"n": 2}
        assert checkpoint.load(tmp_path / "last.prev.pt") == {"n": 1}

    def test_a_full_disk_while_writing_leaves_the_old_file(self, tmp_path, monkeypatch):
        checkpoint.save({"n": 1}, tmp_path / "a.pt")

        def fill(state, file):
            file.write(b"half")
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch reports it

        monkeypatch.setattr(torch, "save", fill)
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save({"n": 2}, tmp_path / "a.pt", keep_previous=True)
        assert os.listdir(tmp_path) == ["a.pt"] and checkpoint.load(tmp_path / "a.pt") == {"n": 1}

    def test_a_full_disk_at_the_last_moment_leaves_both_old_files(self, tmp_path, monkeypatch):
        path = tmp_path / "last.pt"
        for n in range(2):
            checkpoint.save({"n": n}, path, keep_previous=True)

        def disk_full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", disk_full)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save({"n": 2}, path, keep_previous=True)
        assert checkpoint.load(path) == {"n": 1} and checkpoint.load(tmp_path / "last.prev.pt") == {"n": 0}
        assert sorted(os.listdir(tmp_path)) == ["last.prev.pt", "last.pt"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save({}, tmp_path / "nowhere" / "a.pt")


class TestBadFiles:
    def refuses(self, path, *words):
        for load in (checkpoint.load, checkpoint.load_network):
            with pytest.raises(CheckpointError) as caught:
                load(path)
            assert str(path) in str(caught.value)
            for word in words:
                assert word in str(caught.value)

    def test_missing_or_a_folder_or_empty(self, tmp_path):
        self.refuses(tmp_path / "a.pt", "no checkpoint at", "train.py")
        self.refuses(tmp_path, "no checkpoint at")
        (tmp_path / "a.pt").touch()
        self.refuses(tmp_path / "a.pt", "damaged or not a checkpoint")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.99999])
    def test_cut_short(self, tmp_path, share):
        path = tmp_path / "a.pt"
        checkpoint.save({"model": torch.randn(100_000)}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        self.refuses(path, "checkpoint")

    @pytest.mark.parametrize("content", [b"hello", b"\x80\x02garbage", b"PK\x03\x04garbage", bytes(1000)])
    def test_no_checkpoint(self, tmp_path, content):
        (tmp_path / "a.pt").write_bytes(content)
        self.refuses(tmp_path / "a.pt", "checkpoint")

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


class TestReplace:
    def test_windows_is_given_time(self, tmp_path, monkeypatch):
        """There, a file cannot be replaced while another process reads it."""
        attempts, replace = [], checkpoint.os.replace

        def busy_twice(source, target):
            attempts.append(target)
            if len(attempts) < 3:
                raise PermissionError("in use")
            replace(source, target)

        monkeypatch.setattr(checkpoint.os, "replace", busy_twice)
        monkeypatch.setattr(checkpoint, "IS_WINDOWS", True)
        checkpoint.save({"a": 1}, tmp_path / "a.pt")
        assert len(attempts) == 3 and checkpoint.load(tmp_path / "a.pt") == {"a": 1}


def raising(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


class TestOddFileSystems:
    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_what_cannot_be_synchronised_is_written(self, tmp_path, monkeypatch, number):
        monkeypatch.setattr(os, "fsync", raising(number))
        checkpoint.save({"n": 1}, tmp_path / "a.pt")
        assert checkpoint.load(tmp_path / "a.pt") == {"n": 1}

    @pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened")
    def test_a_folder_that_cannot_be_opened(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoint.os, "open", raising(errno.EACCES))
        checkpoint.save({"n": 1}, tmp_path / "a.pt")
        assert checkpoint.load(tmp_path / "a.pt") == {"n": 1}

    def test_a_real_error_is_not_tolerated(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", raising(errno.EIO))
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save({"n": 1}, tmp_path / "a.pt")

    @pytest.mark.skipif(signals.fcntl is None, reason="folders cannot be locked")
    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF])
    def test_a_folder_that_cannot_be_locked_is_a_note(self, tmp_path, monkeypatch, capsys, number):
        monkeypatch.setattr(signals.fcntl, "flock", raising(number))
        with signals.exclusive_lock(tmp_path):
            said = capsys.readouterr().out
        assert said.startswith(f"note: {tmp_path} cannot be locked") and said.count("\n") == 1

    @pytest.mark.skipif(signals.fcntl is None, reason="folders cannot be locked")
    def test_a_second_run_in_the_folder_is_refused(self, tmp_path):
        with (
            signals.exclusive_lock(tmp_path),
            pytest.raises(CheckpointError, match="another run is writing"),
            signals.exclusive_lock(tmp_path),
        ):
            pytest.fail("it was let in")
