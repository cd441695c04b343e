"""A file to share against the run it was made from."""

import pytest
import torch
from conftest import ends

from benchmarks import reproduce
from runtime import checkpoint
from training import export


@pytest.fixture
def shared(small_run, tmp_path):
    state = checkpoint.load(small_run)
    torch.save(state | {"config": state["config"] | {"init": str(small_run / "first.pt")}}, tmp_path / "model.pt")
    export.main([str(tmp_path / "model.pt"), "--data", "cifar10", "--out", str(tmp_path / "new" / "shared.pt")])
    return tmp_path / "new" / "shared.pt"


def test_it_is_the_network_in_half_the_space(small_run, shared):
    (network, metadata), (small, known) = checkpoint.load_network(small_run), checkpoint.load_network(shared)
    assert shared.stat().st_size < 0.52 * (small_run / "model.pt").stat().st_size
    for name, value in network.state_dict().items():
        assert torch.equal(small.state_dict()[name], value.half().float() if value.ndim > 1 else value), name
    assert all(getattr(known, name) == getattr(metadata, name) for name in vars(metadata) if name != "config")
    assert known.config["data"] == "cifar10" and "--init first.pt" in known.config["recipe"]
    assert str(small_run.parent) not in str(vars(known))  # a path of this machine


def test_a_file_is_not_replaced_unasked_and_a_folder_needs_a_name(small_run, shared, capsys):
    before, flags = shared.read_bytes(), [str(small_run / "model.pt"), "--out", str(shared), "--data", "shapes"]
    ends(capsys, export.main, flags, 1, "exists: pass another --out")
    assert shared.read_bytes() == before
    export.main([*flags, "--overwrite"])
    assert shared.read_bytes() != before
    ends(capsys, export.main, [*flags[:3], "--overwrite"], 1, "was trained on a folder: pass --data")


@pytest.mark.parametrize("change, words", [
    ({"result": {}}, "not a finished run"), ({"model": "too large"}, "fc.weight holds NaN or infinite"),
    ({"config": {"hold_out": 5}}, "--hold-out"), ({"config": {"recipe": []}}, "not a finished run"),
])  # fmt: skip
def test_what_cannot_be_shared(small_run, tmp_path, capsys, change, words):
    state = checkpoint.load(small_run)
    if change == {"model": "too large"}:  # for half precision
        change = {"model": state["model"] | {"fc.weight": state["model"]["fc.weight"] + 1e5}}
    torch.save(state | change, tmp_path / "changed.pt")
    flags = [str(tmp_path / "changed.pt"), "--data", "cifar10", "--out", str(tmp_path / "shared.pt")]
    ends(capsys, export.main, flags, 1, words)
    assert not (tmp_path / "shared.pt").exists()


def test_reproduce_tells_whether_the_accuracy_is_the_reported_one(small_run, shared, capsys):
    flags = ["--ckpt", str(shared), "--device", "cpu", "--data", str(small_run.parent / "pictures")]
    reproduce.main(flags)
    state = checkpoint.load(shared)
    accuracy = state["result"]["test_accuracy"]
    assert f"test accuracy {accuracy:.2%}, reported {accuracy:.2%}" in capsys.readouterr().out
    ends(capsys, reproduce.main, [*flags, "--data", "shapes"], 1, "are not those the network was trained on")
    torch.save(state | {"result": state["result"] | {"test_accuracy": accuracy + 0.5}}, shared)
    with pytest.raises(SystemExit, match="lower by more than 0.002"):
        reproduce.main(flags)
