"""report.html against the checkpoint, the JSON files and the pictures it was made from."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import visualize
from gallery_page import BROWSER, Page, on_a_phone
from PIL import Image

import train
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.registry import SECTIONS, Outcome
from figures.report import PRINTED_INCHES, training_details, write_report
from runtime import checkpoint
from runtime.checkpoint import Metadata

DRAWN = ["training_curves", "filters", "confusion_matrix", "evolution"]
HOSTILE = "<em>&\"'$x<img>"


@pytest.fixture(scope="module")
def out(small_run, tmp_path_factory):
    """The folder of a run that drew some figures, one of which needs what the run lacks."""
    folder = tmp_path_factory.mktemp("report")
    visualize(small_run, folder, "--figures", *DRAWN)
    return folder


@pytest.fixture(scope="module")
def page(out):
    return Page((out / "report.html").read_text())


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


def make_pictures(folder, *names, size=(60, 30)):
    for file in (folder / name for name in names):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file, "png", dpi=(100, 100))
    return tuple(map(Path, names))


def report(folder, inspection, summary=None, **outcomes):
    """The page of these outcomes; all other figures were not asked for."""
    everything = dict.fromkeys(FIGURES, Outcome(reason="not asked for")) | outcomes
    file = write_report(folder, inspection, everything, summary, "python visualizer.py")
    return Page((folder / file).read_text(encoding="utf-8"))


def test_it_needs_nothing_but_the_files_beside_it_and_has_the_sections_of_a_course_report(out, page):
    text = (out / "report.html").read_text()
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not re.search(r"https?:|url\(|@import|file:", text)
    targets = [image["src"] for image in page.all("img")] + [link["href"] for link in page.all("a")]
    assert len(targets) > 15
    ids = {attributes.get("id") for _, attributes in page.elements}
    for target in targets:
        assert target[1:] in ids if target.startswith("#") else (out / unquote(target)).is_file(), target
    headings = re.findall(r"<h2 id=(\w+)>(\d)", text)
    assert headings == [(name, str(n)) for n, name in enumerate(("details", *SECTIONS), 1)]


def test_every_picture_has_a_number_a_title_and_the_registrys_sentence_and_what_is_missing_a_reason(page):
    colors = [f"conv1_filters_{color}.png" for color in ("red", "green", "blue")]
    names = ["conv1_filters.png", "confusion_matrix.png", "training_curves.png", "conv1_filters.png", *colors]
    assert [image["src"] for image in page.all("img")] == names
    assert re.findall(r"Figure ([\d.]+)\. ", page.text) == ["1", "2", "3.1", "3.2", "3.3", "3.4"]
    assert all(FIGURES[name].title in page.text and FIGURES[name].reading in page.text for name in DRAWN[:-1])
    missing = "".join(page.text.split("Not drawn:")[1:])
    assert all((f"({name})" in missing) == (name not in DRAWN[:-1]) for name in FIGURES)
    assert "Channels during training (evolution): it needs a run of train.py --snapshots" in missing


def test_the_numbers_are_the_checkpoints_and_those_of_the_json_files(out, page, small_run):
    result = checkpoint.load(small_run / "model.pt")["result"]
    summary = json.loads((out / "summary.json").read_text())
    assert all(f"{100 * share:.2f} %" in page.text for share in (result["train_accuracy"], summary["accuracy"]))
    assert f"{100 * result['test_accuracy']:.2f} % accuracy on test images, after the last epoch" in page.text
    assert f"{result['test_loss']:.3f}" in page.text and f"{result['train_loss']:.3f}" in page.text
    assert all(f"{name}{100 * share:.2f} %" in page.text for name, share in summary["accuracy_by_class"].items())
    assert "train images 48, test images 12" in page.text and "epochs 2, step 6" in page.text
    assert all(f"{stage} {len(dead)} of" in page.text for stage, dead in summary["dead_channels"].items())


def test_pictures_fit_a_page(tmp_path, inspection):
    sizes = {"wide.png": (2000, 100), "tall.png": (300, 3000), "small.png": (200, 100)}
    files = [make_pictures(tmp_path, name, size=size)[0] for name, size in sizes.items()]
    _, *shown = report(tmp_path, inspection, filters=Outcome(tuple(files))).all("img")
    for image, (width, height) in zip(shown, sizes.values(), strict=True):
        shown_width, shown_height = int(image["width"]), int(image["height"])
        assert shown_width <= 96 * PRINTED_INCHES[0] and shown_height <= 96 * PRINTED_INCHES[1]
        assert shown_width / shown_height == pytest.approx(width / height, rel=0.05)
    assert (shown[2]["width"], shown[2]["height"]) == ("192", "96")  # 2 x 1 inches


def test_single_channels_are_an_appendix_and_many_files_are_listed(tmp_path, inspection):
    names = [f"conv1_top9_channel_{n}.png" for n in range(30)] + [f"conv1_top9_page_{n}.png" for n in range(26)]
    shown = report(tmp_path, inspection, top9=Outcome(make_pictures(tmp_path, *names)))
    assert [image["src"] for image in shown.all("img")] == [names[30], *names[30:54], *names[:24]]
    assert {link["href"] for link in shown.all("a")} >= set(names)
    assert "Figure A24." in shown.text and "one channel of figure 1" in shown.text


def test_everything_from_outside_is_escaped(tmp_path, inspection):
    classes = (HOSTILE, "<script>alert(1)</script>", "disk")
    metadata = replace(inspection.metadata, classes=classes, config={"data": HOSTILE, "init": HOSTILE})
    changed = replace(inspection, metadata=metadata, source=HOSTILE, checkpoint=Path(HOSTILE))
    changed = replace(changed, pictures=(replace(inspection.pictures[0], title=HOSTILE),))
    summary = {"images_searched": 12, "accuracy": 0.5, "dead_channels": {}, "never_predicted": [HOSTILE]}
    summary["accuracy_by_class"] = dict(zip(classes, (0.25, None, 1.0), strict=True))
    files = make_pictures(tmp_path, "&'$x %41#;/input.png", "名前/input.png")
    shown = report(tmp_path, changed, summary, input=Outcome(files), why=Outcome(reason=HOSTILE))
    assert not shown.all("script") and not shown.all("em")
    assert shown.text.count(HOSTILE) >= 8 and "<script>alert(1)</script>" in shown.text
    assert {Path(unquote(image["src"])) for image in shown.all("img")} == set(files)
    assert {Path(unquote(link["href"])) for link in shown.all("a") if "#" not in link["href"]} == set(files)


def test_a_plain_state_dict_has_no_settings(tmp_path, inspection):
    text = report(tmp_path, replace(inspection, metadata=Metadata())).text
    assert "plain state dict" in text and "holds no result" in text and "Accuracy by class is not known" in text


@pytest.mark.parametrize("flags", ["@recipes/report-a", "@recipes/cpu", "--data my\\ folder --norm-decay "
                                   "--no-cuda-graph --sizes 32:1 224:1"])  # fmt: skip
def test_the_settings_and_the_command_that_has_them_all(monkeypatch, flags):
    monkeypatch.chdir(Path(__file__).parent.parent)
    config = vars(train.parse_args(shlex.split(flags)))
    rows = dict(training_details(Metadata(("a", "b"), (0.5,) * 3, (0.5,) * 3, 224, config)))
    for name in ("image_size", "batch_size", "momentum", "lr", "schedule", "seed"):
        assert f"{name.replace('_', ' ')} {config[name]}" in ", ".join(rows.values())
    assert ("nesterov yes" in rows["optimizer (SGD)"]) == config["nesterov"]
    assert rows["augmentation"] == "augment no" if not config["augment"] else "cutout" in rows["augmentation"]
    assert vars(train.parse_args(shlex.split(rows["command"])[2:])) == config
    chain = {"recipe": ["python train.py --epochs 2", "python train.py --epochs 3"]}
    assert [value for name, value in training_details(Metadata(config=chain)) if name == "command"] == chain["recipe"]


def test_of_many_classes_the_lowest_are_shown(tmp_path, inspection):
    summary = {"images_searched": 100, "accuracy": 0.5, "accuracy_by_class": {f"c{n}.": n / 100 for n in range(100)}}
    text = report(tmp_path, inspection, summary | {"dead_channels": {}, "never_predicted": []}).text
    assert "the 30 lowest of 100" in text and "c29." in text and "c30." not in text


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_on_a_phone_nothing_is_wider_than_the_page_and_every_picture_is_there(out, tmp_path):
    script = "return [...page.images].filter(image => image.naturalWidth).length"
    width, images = on_a_phone(out / "report.html", tmp_path, script)
    assert width <= 420 and images == 7
