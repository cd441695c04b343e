"""why.png from the command line: classes by name, own pictures, and a network that it cannot be drawn of."""

import json

import pytest
import torch
from conftest import ends, visualize

import visualizer
from analysis.settings import Settings
from runtime import checkpoint

SETTINGS = Settings()


@pytest.mark.parametrize(
    "classes, words",
    [(("disk", "cow"), "cow: the network's classes are disk, ring, stripes"), (("ring", "3"), "3: "),
     (("ring", "ring"), "two different"), (("1", "ring"), "two different")],
    ids=" ".join,
)  # fmt: skip
def test_wrong_classes_are_a_usage_error(small_run, tmp_path, capsys, classes, words):
    flags = ["--ckpt", small_run / "model.pt", "--device", "cpu", "--figures", "why", "--out", tmp_path / "plots"]
    ends(capsys, visualizer.main, [*flags, "--classes", *classes], 2, "--classes", words)
    assert not (tmp_path / "plots").exists()


def test_a_stage_without_activation_is_one_line(small_run, tmp_path, capsys):
    state = checkpoint.load(small_run / "model.pt")
    state["model"]["layer4.1.bn2.weight"][:] = 0
    state["model"]["layer4.1.bn2.bias"][:] = -1e6
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots", "--no-report", "--figures", "why")
    assert "why: left out, no channel has any activation at conv5_x\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["summary.json"]


class TestOnesOwnPictures:
    def draw(self, small_run, out, *flags):
        picture = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
        visualize(small_run, out, "--images", str(picture), *flags, "--stages", "conv5_x")
        return picture

    def test_asked_for_by_name(self, small_run, tmp_path):
        picture = self.draw(small_run, tmp_path, "--figures", "why", "--classes", "2", "disk")
        assert [path.name for path in (tmp_path / picture.stem).iterdir()] == ["why.png"]
        entry = json.loads((tmp_path / "why.json").read_text())[0]
        assert entry["image"] == picture.name and entry["classes"] == ["stripes", "disk"]

    def test_not_searched_unless_asked_for(self, small_run, tmp_path):
        picture = self.draw(small_run, tmp_path)
        names = {path.name for path in (tmp_path / picture.stem).iterdir()}
        assert "classes.png" in names and "why.png" not in names and not (tmp_path / "why.json").exists()

    def test_drawn_when_a_gallery_searches_anyway(self, small_run):
        picture = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
        flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--images", str(picture)]
        for more, drawn in (([], False), (["--gallery"], True)):
            args = visualizer.parse_args([*flags, *more])
            assert ("why" in visualizer.load_what_is_needed(args, SETTINGS)[1]) == drawn
