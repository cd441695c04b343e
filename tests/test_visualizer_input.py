"""What the script makes of networks and pictures that are unusual: own files, dead channels, no data, no history."""

import json

import numpy as np
import pytest
import torch
from conftest import ends, visualize
from PIL import Image

import visualizer
from analysis.inspection import add_preprocessing, load_inspection, pictures_asked_for
from analysis.pictures import read_pictures
from figures.hierarchy import hierarchy_figure
from runtime import checkpoint


@pytest.fixture
def state(small_run):
    """The content of the small run's model.pt, to be changed."""
    return checkpoint.load(small_run / "model.pt")


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 90, 3)).astype(np.uint8)).save(folder / name)
    return [str(folder / name) for name in names]


def test_a_plain_state_dict_needs_data_for_its_names_and_statistics_but_not_for_filters(small_run, state, tmp_path):
    torch.save(state["model"], tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots", "--figures", "filters", "--root", str(tmp_path / "nothing"))
    assert len(list((tmp_path / "plots").glob("conv1_filters*.png"))) == 4
    loaded = load_inspection(tmp_path / "model.pt", "cpu", source=str(small_run.parent / "pictures"))
    metadata = add_preprocessing(loaded).metadata
    assert metadata.classes == tuple(state["classes"])
    assert (*metadata.mean, *metadata.std) == pytest.approx((*state["mean"], *state["std"]))


def test_reconstructions_that_are_not_finite(state, tmp_path, capsys):
    state["model"]["bn1.running_var"][:] = 0
    state["model"]["bn1.weight"] *= 1e36  # the signal on its way back becomes too large, after the search's maps
    torch.save(state, tmp_path / "model.pt")
    flags = ["--ckpt", tmp_path / "model.pt", "--out", tmp_path / "plots", "--device", "cpu", "--figures", "top9"]
    ends(capsys, visualizer.main, flags, 1, "are not finite")


@pytest.mark.slow
def test_ones_own_pictures(small_run, tmp_path, capsys):
    files = write_pictures(tmp_path, "cat-2.png", "a/cat.png", "b/cat.png", "dog.v2.jpg")
    out, folders = tmp_path / "plots", {"cat-2", "cat", "cat-3", "dog.v2"}
    visualize(small_run, out, "--data", str(tmp_path / "no_data_needed"), "--stages", "conv1", "--images", *files)
    assert {path.name for path in out.iterdir() if path.is_dir()} == folders
    text = (out / "report.html").read_text()
    for folder in folders:
        names = {path.stem for path in (out / folder).iterdir()}
        assert names == {"input", "conv1_feature_maps", "conv1_reconstructions", "classes", "attributions"}
        assert f'src="{folder}/classes.png"' in text
    assert not (out / "top9.json").exists() and (out / "conv1_filters.png").exists()
    assert "Images that excite a channel most (top9)" in text and "dog.v2.jpg, resized" in text
    assert "the same command with --figures why" in capsys.readouterr().out


def test_what_needs_no_images_is_drawn_without_them(state, tmp_path, capsys):
    state["config"] = state["config"] | {"data": str(tmp_path / "gone")}
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots")
    drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
    filters = {f"conv1_filters{color}" for color in ("", "_red", "_green", "_blue")}
    assert drawn == {"training_curves", "report", "summary"} | filters
    assert "the test images are missing; --data" in (tmp_path / "plots" / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "need the test images: input, feature_maps" in printed and "gone is not a folder" in printed


def test_files_of_odd_names_and_of_almost_one_name_have_folders_of_their_own(small_run, tmp_path):
    folders = ["image", "名前", "cost_$5_^$x"]
    files = write_pictures(tmp_path, "名前.png", "cost_$5_^$x.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "...png", "png")
    visualize(small_run, tmp_path / "plots", "--images", str(tmp_path / "...png"), *files, "--figures", "input")
    assert all((tmp_path / "plots" / folder / "input.png").exists() for folder in folders)
    # on a system that takes small for capital letters, or accents for composed ones
    files = write_pictures(tmp_path, "Cat.png", "cat.jpg", "\u00e9.png", "e\u0301.png", "SS.png", "\u00df.png")
    folders = ["Cat", "cat-2", "\u00e9", "e\u0301-2", "SS", "\u00df-2"]
    assert [picture.folder for picture in read_pictures(files, 32)] == folders


def test_dead_channels_are_named_and_not_drawn_and_many_have_several_pages(state, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("figures.top9.CHANNELS_PER_PAGE", 1)
    for channel, value in ((5, 0), (9, 3.0), (11, 2.0)):
        state["model"]["bn1.weight"][channel], state["model"]["bn1.bias"][channel] = 0, value
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path, *"--figures top9 --stages conv1 --channels 5 9 11 --rules guided --top 1".split())
    assert "conv1: these channels are zero at all units searched: 5" in capsys.readouterr().out
    names = {path.stem.removeprefix("conv1_top9_") for path in tmp_path.glob("*.png")}
    assert names == {"page_1", "page_2", "channel_9", "channel_11"}
    dead = json.loads((tmp_path / "summary.json").read_text())["dead_channels"]["conv1"]
    assert 5 in dead and 9 not in dead


def test_a_stage_without_any_living_channel(state, tmp_path, capsys):
    state["model"]["layer4.1.bn2.weight"][:], state["model"]["layer4.1.bn2.bias"][:] = 0, -1e4
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path, *"--figures top9 rules why feature_maps --stages conv5_x".split())
    printed = capsys.readouterr().out
    for line in ("conv5_x: all channels are zero at all units", "top9: left out", "rules: left out", "why: left out"):
        assert line in printed
    assert [path.stem for path in tmp_path.glob("*.png")] == ["conv5_x_feature_maps"]
    assert "conv5_x 512 of 512" in (tmp_path / "report.html").read_text()
    (axes, *_) = hierarchy_figure({"conv5_x": {}}, "a title").get_axes()
    assert "all channels are zero\nat all units searched" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("image, names, expected", [(None, [], 0), (3, [], 1), (None, ["a.png"], 1)])
def test_pictures_asked_for(small_run, tmp_path, image, names, expected):
    """Where the user names none, a figure may choose its own."""
    flags = ["--image", str(image)] if image else ["--images", *write_pictures(tmp_path, *names)] if names else []
    args = visualizer.parse_args(["--ckpt", str(small_run), "--device", "cpu", "--figures", "attributions", *flags])
    settings = visualizer.settings_from(args)
    inspection, *_ = visualizer.load_what_is_needed(args, settings)
    pictures = pictures_asked_for(inspection, settings)
    assert pictures == list(inspection.pictures)[:expected] and len(inspection.pictures) == 1
    assert image is None or pictures[0].origin == image
