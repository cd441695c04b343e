"""A file to share against the run it was made from."""

from pathlib import Path

import pytest
import torch
from conftest import ends

import train
from benchmarks import reproduce
from runtime import checkpoint
from training import export
from training.resume import LOCAL_FLAGS


@pytest.fixture
def shared(small_run, tmp_path):
    export.main([str(small_run / "model.pt"), "--data", "cifar10", "--out", str(tmp_path / "new" / "shared.pt")])
    return tmp_path / "new" / "shared.pt"


def test_it_is_the_network_in_half_the_space(small_run, shared):
    (network, metadata), (small, known) = checkpoint.load_network(small_run), checkpoint.load_network(shared)
    assert shared.stat().st_size < 0.52 * (small_run / "model.pt").stat().st_size
    for name, value in network.state_dict().items():
        shipped = small.state_dict()[name]
        assert shipped.dtype == value.dtype
        assert torch.equal(shipped, value.half().float() if value.ndim > 1 else value), name
    for name in ("classes", "mean", "std", "image_size", "result", "history"):
        assert getattr(known, name) == getattr(metadata, name)
    assert known.config["data"] == "cifar10" and str(small_run.parent) not in str(vars(known))  # a path of this machine


@pytest.mark.parametrize(
    "flags", [[], ["@recipes/cpu"], ["@recipes/report-b"], ["--norm-decay", "--no-cuda-graph", "--sizes", "32:1"]]
)
def test_the_recipe_gives_the_settings_again(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    settings = vars(train.parse_args(flags))
    config = {name: settings[name] for name in settings.keys() - LOCAL_FLAGS - {"data"}}
    (tmp_path / "recipe").write_text("\n".join(export.recipe(config)))
    again = vars(train.parse_args([f"@{tmp_path / 'recipe'}"]))
    assert {name: again[name] for name in config} == config


def test_a_file_is_not_replaced_unasked(small_run, shared, capsys):
    before, flags = shared.read_bytes(), [str(small_run / "model.pt"), "--out", str(shared), "--data", "shapes"]
    ends(capsys, export.main, flags, 1, "exists: pass another --out")
    assert shared.read_bytes() == before
    export.main([*flags, "--overwrite"])
    assert shared.read_bytes() != before


def test_a_folder_needs_a_name_for_others(small_run, tmp_path, capsys):
    flags = [str(small_run / "model.pt"), "--out", str(tmp_path / "shared.pt")]
    ends(capsys, export.main, flags, 1, "was trained on a folder: pass --data")
    state = checkpoint.load(small_run)
    torch.save(state | {"config": state["config"] | {"data": "shapes"}}, tmp_path / "shapes.pt")
    assert export.exported(tmp_path / "shapes.pt")["config"]["data"] == "shapes"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"result": {}}, "not a finished run"),
        ({"config": {"hold_out": 5}}, "--hold-out"),
        ({"config": {"recipe": []}}, "not a finished run"),
        ({"model": "too large"}, "fc.weight holds NaN or infinite"),
    ],
)
def test_what_cannot_be_shared(small_run, tmp_path, capsys, change, words):
    state = checkpoint.load(small_run)
    if change == {"model": "too large"}:  # for half precision
        change = {"model": state["model"] | {"fc.weight": state["model"]["fc.weight"] + 1e5}}
    torch.save(state | change, tmp_path / "changed.pt")
    flags = [str(tmp_path / "changed.pt"), "--data", "cifar10", "--out", str(tmp_path / "shared.pt")]
    ends(capsys, export.main, flags, 1, words)
    assert not (tmp_path / "shared.pt").exists()


class TestReproduce:
    def flags(self, path, small_run, *more):
        return ["--ckpt", str(path), "--data", str(small_run.parent / "pictures"), "--device", "cpu", *more]

    def test_the_accuracy_is_that_of_the_training(self, small_run, capsys):
        reproduce.main(self.flags(small_run / "model.pt", small_run))
        accuracy = checkpoint.load(small_run)["result"]["test_accuracy"]
        assert f"test accuracy {accuracy:.2%}, reported {accuracy:.2%}" in capsys.readouterr().out

    def test_another_accuracy_or_one_of_training_images_is_an_error(self, shared, small_run, capsys):
        state, flags = checkpoint.load(shared), self.flags(shared, small_run)
        state["result"]["test_accuracy"] += 0.5
        torch.save(state, shared)
        with pytest.raises(SystemExit, match="lower by more than 0.002"):
            reproduce.main(flags)
        reproduce.main([*flags, "--tolerance", "1"])
        state["config"]["hold_out"] = 5
        torch.save(state, shared)
        ends(capsys, reproduce.main, flags, 1, "--hold-out")

    def test_other_classes(self, shared, capsys):
        flags = ["--ckpt", shared, "--data", "shapes", "--device", "cpu"]
        ends(capsys, reproduce.main, flags, 1, "are not those the network was trained on")
