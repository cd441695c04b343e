"""What the script makes of networks and pictures that are unusual: own files, dead channels, no data, no history."""

import json

import numpy as np
import pytest
import torch
from conftest import visualize
from PIL import Image

from analysis.inspection import (
    add_pictures,
    add_preprocessing,
    add_test_images,
    load_inspection,
    pictures_asked_for,
    read_pictures,
)
from analysis.settings import Settings
from figures.hierarchy import hierarchy_figure
from network import ResNet18
from runtime import checkpoint


def test_filters_of_a_plain_state_dict_need_no_data(small_run, tmp_path):
    torch.save(checkpoint.load(small_run / "model.pt")["model"], tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots", "--figures", "filters", "--root", str(tmp_path / "nothing"))
    assert len(list((tmp_path / "plots").glob("conv1_filters*.png"))) == 4


def test_reconstructions_that_are_not_finite(small_run, tmp_path, capsys):
    state = checkpoint.load(small_run / "model.pt")
    state["model"]["bn1.running_var"][:] = 0
    state["model"]["bn1.weight"] *= 1e36  # the signal on its way back becomes too large, after the search's maps
    torch.save(state, tmp_path / "model.pt")
    for flags in (["--figures", "top9"], ["--figures", "reconstructions"]):
        with pytest.raises(SystemExit) as end:
            visualize(tmp_path, tmp_path / "plots", *flags)
        assert end.value.code == 1 and "are not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_ones_own_pictures(small_run, tmp_path, capsys):
    random = np.random.RandomState(0)
    for name, size in (
        ("cat-2.png", (40, 40)),
        ("a/cat.png", (50, 80)),
        ("b/cat.png", (32, 32)),
        ("dog.v2.jpg", (300, 200)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("cat-2.png", "a/cat.png", "b/cat.png", "dog.v2.jpg")]
    out = tmp_path / "plots"
    visualize(small_run, out, "--data", str(tmp_path / "no_data_needed"), "--stages", "conv1", "--images", *files)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"cat-2", "cat", "cat-3", "dog.v2"}
    for folder in ("cat-2", "cat", "cat-3", "dog.v2"):
        names = {path.stem for path in (out / folder).iterdir()}
        assert names == {"input", "conv1_feature_maps", "conv1_reconstructions", "classes", "attributions"}
    assert not (out / "top9.json").exists() and (out / "conv1_filters.png").exists()
    text = (out / "report.html").read_text()
    assert all(f'src="{folder}/classes.png"' in text for folder in ("cat-2", "cat", "cat-3", "dog.v2"))
    assert "Images that excite a channel most (top9)" in text and "dog.v2.jpg, resized" in text
    assert "the same command with --figures why" in capsys.readouterr().out


def test_what_needs_no_images_is_drawn_without_them(small_run, tmp_path, capsys):
    state = checkpoint.load(small_run / "model.pt")
    state["config"] = state["config"] | {"data": str(tmp_path / "gone")}
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots")
    drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
    filters = {f"conv1_filters{color}" for color in ("", "_red", "_green", "_blue")}
    assert drawn == {"training_curves", "report", "summary"} | filters
    assert "the test images are missing; --data" in (tmp_path / "plots" / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "left out, they need the test images: input, feature_maps" in printed
    assert "gone is not a folder" in printed


@pytest.mark.parametrize(
    "name, folder", [("...png", "image"), ("名前.png", "名前"), ("cost_$5_^$x.png", "cost_$5_^$x")]
)
def test_odd_file_names(small_run, tmp_path, name, folder):
    Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(tmp_path / name, "png")
    visualize(small_run, tmp_path / "plots", "--images", str(tmp_path / name), "--figures", "input")
    assert (tmp_path / "plots" / folder / "input.png").exists()


def test_files_of_almost_one_name_have_folders_of_their_own_on_any_system(tmp_path):
    names = ["Cat.png", "cat.jpg", "\u00e9.png", "e\u0301.png", "STRASSE.png", "stra\u00dfe.png"]
    for name in names:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    folders = [picture.folder for picture in read_pictures([str(tmp_path / name) for name in names], 32)]
    assert folders == ["Cat", "cat-2", "\u00e9", "e\u0301-2", "STRASSE", "stra\u00dfe-2"]


def test_dead_channels_are_named_and_not_drawn(small_run, tmp_path, capsys):
    state = checkpoint.load(small_run / "model.pt")
    for channel, value in ((5, 0), (9, 3.0)):
        state["model"]["bn1.weight"][channel], state["model"]["bn1.bias"][channel] = 0, value
    torch.save(state, tmp_path / "model.pt")
    visualize(tmp_path, tmp_path / "plots", *"--figures top9 --stages conv1 --channels 5 9".split())
    assert "conv1: these channels are zero at all units searched: 5" in capsys.readouterr().out
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {"conv1_top9", "conv1_top9_deconvnet", "conv1_top9_channel_9"}
    summary = json.loads((tmp_path / "plots" / "summary.json").read_text())
    assert 5 in summary["dead_channels"]["conv1"] and 9 not in summary["dead_channels"]["conv1"]


def test_a_stage_without_any_living_channel(small_run, tmp_path, capsys):
    state = checkpoint.load(small_run / "model.pt")
    state["model"]["layer4.1.bn2.weight"][:], state["model"]["layer4.1.bn2.bias"][:] = 0, -1e4
    torch.save(state, tmp_path / "model.pt")
    figures = ["top9", "rules", "why", "feature_maps"]
    visualize(tmp_path, tmp_path / "plots", "--stages", "conv5_x", "--figures", *figures)
    printed = capsys.readouterr().out
    assert "conv5_x: all channels are zero at all units searched" in printed
    assert all(f"{name}: left out, " in printed for name in ("top9", "rules", "why"))
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {"conv5_x_feature_maps"}
    assert "conv5_x 512 of 512" in (tmp_path / "plots" / "report.html").read_text()
    (axes, *_) = hierarchy_figure({"conv5_x": {}}, "a title").get_axes()
    assert "all channels are zero\nat all units searched" in [text.get_text() for text in axes.texts]


def test_imagenets_thousand_classes(tmp_path, small_run):
    torch.manual_seed(0)
    torch.save(ResNet18(1000).state_dict(), tmp_path / "model.pt")
    picture = next((small_run.parent / "pictures" / "test" / "disk").iterdir())
    flags = "--figures training_curves input reconstructions --stages conv1 --rules guided --images".split()
    visualize(tmp_path, tmp_path / "plots", *flags, str(picture))
    names = {path.name for path in (tmp_path / "plots" / picture.stem).iterdir()}
    assert names == {"input.png", "conv1_reconstructions.png"}
    assert not (tmp_path / "plots" / "training_curves.png").exists()  # it has no history


@pytest.mark.parametrize("image, own, expected", [(None, False, 0), (3, False, 1), (None, True, 1)])
def test_pictures_asked_for(small_run, image, own, expected):
    """Where the user names none, a figure may choose its own."""
    settings = Settings(image=image)
    loaded = add_test_images(add_preprocessing(load_inspection(small_run / "model.pt", "cpu")))
    files = [str(next((small_run.parent / "pictures" / "test").glob("*/*.png")))] if own else None
    pictures = pictures_asked_for(inspection := add_pictures(loaded, settings, files), settings)
    assert pictures == list(inspection.pictures)[:expected] and len(inspection.pictures) == 1
    assert image is None or pictures[0].origin == image
