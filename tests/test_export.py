"""A file to share against the runs it was made of."""

import pytest
import torch

import train
from benchmarks import reproduce
from figures import training_curves
from runtime import checkpoint
from training import export


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """A run at 32x32, and one at 40x40 that began with its weights."""
    out = tmp_path_factory.mktemp("second")
    flags = "--image-size 40 --epochs 1 --batch-size 12 --lr 0.001 --flip none --schedule cosine --device cpu".split()
    data = ["--data", str(small_run.parent / "pictures"), "--snapshots", "1"]
    train.main([*flags, *data, "--init", str(small_run / "model.pt"), "--out", str(out)])
    return [str(small_run / "model.pt"), str(out / "model.pt")]


@pytest.fixture
def shared(runs, tmp_path):
    export.main([*runs, "--out", str(tmp_path / "new" / "shared.pt")])
    return tmp_path / "new" / "shared.pt"


def test_it_is_the_last_runs_network_in_half_the_space(runs, shared):
    (network, info), (small, known) = checkpoint.load_network(runs[1]), checkpoint.load_network(shared)
    assert shared.stat().st_size < 0.52 * (shared.parent / runs[1]).stat().st_size
    for name, value in network.state_dict().items():
        found = small.state_dict()[name]
        assert found.dtype == value.dtype
        assert torch.equal(found, value.half().float() if value.ndim > 1 else value), name
    for name in ("classes", "mean", "std", "image_size"):
        assert getattr(known, name) == getattr(info, name)
    assert known.config["data"] == "cifar10"


def test_the_recipe_gives_the_settings_again(runs, shared):
    recipe = checkpoint.load(shared)["config"]["recipe"]
    for run, line in zip(runs, recipe, strict=True):
        config = checkpoint.load(run)["config"]
        again = vars(train.parse_args(line.split()[2:]))
        of_a_machine = export.OF_A_MACHINE | {"data", "init"}
        assert {name: again[name] for name in again.keys() - of_a_machine} == {
            name: config[name] for name in again.keys() - of_a_machine
        }
    assert "--data FOLDER" in recipe[0] and "--init" not in recipe[0] and "--init PREVIOUS" in recipe[1]


def test_no_path_of_the_machine_is_in_it(shared, small_run):
    state = checkpoint.load(shared)
    assert str(small_run.parent) not in str({name: value for name, value in state.items() if name != "model"})


def test_histories_follow_each_other(runs, shared):
    parts = [checkpoint.load(run) for run in runs]
    known = checkpoint.load(shared)
    history = known.history
    assert len(history) == sum(len(part["history"]) for part in parts)
    steps = [entry["step"] for entry in history]
    assert steps == sorted(steps) and steps[-1] == sum(part["result"]["step"] for part in parts)
    assert [entry["epoch"] for entry in history if entry["kind"] == "test"] == [1, 2, 3]
    assert {entry["image_size"] for entry in history if entry["epoch"] == 3} == {40}
    assert known.result["test_accuracy"] == history[-1]["accuracy"] == parts[1]["result"]["test_accuracy"]
    assert (known.result["epoch"], known.result["step"]) == (3, steps[-1])
    assert known.result["seconds"] == pytest.approx(sum(part["result"]["seconds"] for part in parts))
    texts = [text.get_text().strip() for text in training_curves.training_curves(history).get_axes()[0].texts]
    assert texts == ["32x32", "40x40"]
    places = [line.get_xdata()[0] for line in training_curves.training_curves(history).get_axes()[0].lines[2:]]
    assert set(places) == {0, parts[0]["result"]["step"]}


def test_a_file_is_not_replaced_unasked(runs, shared, capsys):
    before = shared.read_bytes()
    with pytest.raises(SystemExit):
        export.main([runs[0], "--out", str(shared)])
    assert "is there already" in capsys.readouterr().err and shared.read_bytes() == before
    export.main([runs[0], "--out", str(shared), "--overwrite"])
    assert shared.read_bytes() != before


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": ["a", "b", "c"]}, "other data"),
        ({"result": {}}, "no finished"),
        ({"result": None}, "has been changed"),
        ({"history": None}, "has been changed"),
        ({"history": [{"kind": "train", "step": 1, "loss": 1.0, "accuracy": 0.5}]}, "has been changed"),
        ({"config": {"hold_out": 5, "init": "x"}}, "--hold-out"),
        ({"config": {"recipe": [], "init": "x"}}, "no finished"),
        ({"config": {}}, "did not begin with the weights of another run"),
        ({"model": "too large"}, "fc.weight holds NaN or infinite"),
    ],
)
def test_what_cannot_be_shared(runs, tmp_path, capsys, change, words):
    state = checkpoint.load(runs[1])
    if change == {"model": "too large"}:  # for half precision
        change = {"model": state["model"] | {"fc.weight": state["model"]["fc.weight"] + 1e5}}
    torch.save(state | change, tmp_path / "changed.pt")
    with pytest.raises(SystemExit) as end:
        export.main([runs[0], str(tmp_path / "changed.pt"), "--out", str(tmp_path / "shared.pt")])
    assert end.value.code == 1 and words in capsys.readouterr().err
    assert not (tmp_path / "shared.pt").exists()


class TestReproduce:
    def test_the_accuracy_is_that_of_the_training(self, runs, small_run, capsys):
        for run in runs:
            reproduce.main(["--ckpt", run, "--data", str(small_run.parent / "pictures"), "--device", "cpu"])
            accuracy = checkpoint.load(run)["result"]["test_accuracy"]
            assert f"test accuracy {accuracy:.2%}, reported {accuracy:.2%}" in capsys.readouterr().out

    def test_another_accuracy_is_an_error(self, shared, small_run, capsys):
        state = checkpoint.load(shared)
        state["result"]["test_accuracy"] += 0.1
        torch.save(state, shared)
        with pytest.raises(SystemExit) as end:
            reproduce.main(["--ckpt", str(shared), "--data", str(small_run.parent / "pictures"), "--device", "cpu"])
        assert "differ by more than 0.002" in str(end.value.code)
        reproduce.main(
            [
                "--ckpt",
                str(shared),
                "--data",
                str(small_run.parent / "pictures"),
                "--tolerance",
                "0.2",
                "--device",
                "cpu",
            ]
        )

    def test_what_was_tested_on_training_images(self, shared, small_run, capsys):
        state = checkpoint.load(shared)
        state["config"]["hold_out"] = 5
        torch.save(state, shared)
        with pytest.raises(SystemExit):
            reproduce.main(["--ckpt", str(shared), "--data", str(small_run.parent / "pictures"), "--device", "cpu"])
        assert "--hold-out" in capsys.readouterr().err

    def test_other_classes(self, shared, capsys):
        with pytest.raises(SystemExit):
            reproduce.main(["--ckpt", str(shared), "--data", "shapes", "--device", "cpu"])
        assert "are not those the network was trained on" in capsys.readouterr().err
