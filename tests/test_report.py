"""report.html against the checkpoint, the JSON files and the pictures it was made from."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import train
import visualizer
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.registry import SECTIONS, Outcome
from figures.report import PRINTED_INCHES, write_report
from figures.report_details import training_details
from figures.top9 import correlations_in_words
from figures.why import decisions_in_words
from runtime import checkpoint
from runtime.checkpoint import Metadata

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRAWN = ["training_curves", "filters", "confusion_matrix", "evolution"]
HOSTILE = "<em>&\"'$x<img>"


class Page(HTMLParser):
    """The tags with their attributes, the text, and the headings of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(small_run, tmp_path_factory):
    """The folder of a run that drew some figures, one of which needs what the run lacks."""
    folder = tmp_path_factory.mktemp("report")
    flags = ["--ckpt", str(small_run / "model.pt"), "--out", str(folder), "--device", "cpu", "--dpi", "50"]
    visualizer.main([*flags, "--figures", *DRAWN])
    return folder


@pytest.fixture(scope="module")
def page(out):
    return Page(out / "report.html")


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


def make_pictures(folder, *names, size=(60, 30)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / name, "png", dpi=(100, 100))
    return tuple(map(Path, names))


def report(folder, inspection, summary=None, **outcomes):
    """The page of these outcomes; all other figures were not asked for."""
    everything = dict.fromkeys(FIGURES, Outcome(reason="not asked for")) | outcomes
    return Page(write_report(folder, inspection, everything, summary, "python visualizer.py"))


class TestPage:
    def test_it_needs_nothing_but_the_files_beside_it(self, out, page):
        assert not page.all("script") and not page.all("link") and not page.all("iframe")
        text = (out / "report.html").read_text()
        assert not re.search(r"https?:|url\(|@import|file:", text)
        targets = [each["src"] for each in page.all("img")] + [each["href"] for each in page.all("a")]
        assert len(targets) > 15
        ids = {attributes.get("id") for _, attributes in page.tags}
        for target in targets:
            assert target[1:] in ids if target.startswith("#") else (out / unquote(target)).is_file(), target

    def test_every_picture_has_a_number_a_title_and_the_registrys_sentence(self, out, page):
        sources = [each["src"] for each in page.all("img")]
        assert sources == ["conv1_filters.png", "confusion_matrix.png", "training_curves.png", "conv1_filters.png"] + [
            f"conv1_filters_{color}.png" for color in ("red", "green", "blue")
        ]
        numbers = re.findall(r"Figure ([\d.]+)\. ", page.text)
        assert numbers == ["1", "2", "3.1", "3.2", "3.3", "3.4"]
        for name in DRAWN[:-1]:
            assert FIGURES[name].title in page.text and FIGURES[name].reading in page.text

    def test_what_is_missing_is_named_with_the_reason(self, page):
        missing = "".join(page.text.split("Not drawn:")[1:])
        assert all(f"({name})" in missing for name in FIGURES if name not in DRAWN[:-1])
        assert "Channels during training (evolution): it needs a run of train.py --snapshots" in page.text
        assert "(top9)" in page.text and "not asked for" in page.text

    def test_the_numbers_are_the_checkpoints_and_those_of_the_json_files(self, out, page, small_run):
        result = checkpoint.load(small_run / "model.pt")["result"]
        summary = json.loads((out / "summary.json").read_text())
        for share in (result["test_accuracy"], result["train_accuracy"], summary["accuracy"]):
            assert f"{100 * share:.2f} %" in page.text
        assert f"{result['test_loss']:.3f}" in page.text and f"{result['train_loss']:.3f}" in page.text
        for name, share in summary["accuracy_by_class"].items():
            assert f"{name}{100 * share:.2f} %" in page.text
        assert "48 training, 12 test" in page.text and "2 epochs, 6 iterations" in page.text
        for stage, dead in summary["dead_channels"].items():
            assert f"{stage} {len(dead)} of" in page.text
        assert "zero at all units searched" in page.text  # a channel may respond at the border, which is not searched

    def test_the_sections_are_those_of_a_course_report(self, out):
        headings = re.findall(r"<h2 id=(\w+)>(\d)", (out / "report.html").read_text())
        assert headings == [(name, str(n)) for n, name in enumerate(("details", *SECTIONS), 1)]

    def test_pictures_fit_a_page(self, tmp_path, inspection):
        sizes = {"wide.png": (2000, 100), "tall.png": (300, 3000), "small.png": (200, 100)}
        files = [make_pictures(tmp_path, name, size=size)[0] for name, size in sizes.items()]
        _, *shown = report(tmp_path, inspection, filters=Outcome(tuple(files))).all("img")
        for image, (width, height) in zip(shown, sizes.values(), strict=True):
            shown_width, shown_height = int(image["width"]), int(image["height"])
            assert shown_width <= 96 * PRINTED_INCHES[0] and shown_height <= 96 * PRINTED_INCHES[1]
            assert shown_width / shown_height == pytest.approx(width / height, rel=0.05)
        assert (shown[2]["width"], shown[2]["height"]) == ("192", "96")  # 2 x 1 inches

    def test_single_channels_are_an_appendix_and_many_files_are_listed(self, tmp_path, inspection):
        names = [f"conv1_top9_channel_{n}.png" for n in range(30)] + [f"conv1_top9_page_{n}.png" for n in range(26)]
        shown = report(tmp_path, inspection, top9=Outcome(make_pictures(tmp_path, *names)))
        assert [each["src"] for each in shown.all("img")] == [names[30], *names[30:54], *names[:24]]
        assert {each["href"] for each in shown.all("a")} >= set(names)
        assert "Figure A24." in shown.text and "one channel of figure 1" in shown.text


class TestNames:
    def test_everything_from_outside_is_escaped(self, tmp_path, inspection):
        classes = (HOSTILE, "<script>alert(1)</script>", "disk")
        metadata = replace(inspection.metadata, classes=classes, config={"data": HOSTILE, "init": HOSTILE})
        changed = replace(inspection, metadata=metadata, source=HOSTILE, checkpoint=Path(HOSTILE))
        changed = replace(changed, pictures=(replace(inspection.pictures[0], title=HOSTILE),))
        summary = {"images_searched": 12, "accuracy": 0.5, "dead_channels": {}, "never_predicted": [HOSTILE]}
        summary["accuracy_by_class"] = dict(zip(classes, (0.25, None, 1.0), strict=True))
        why = [{"image": HOSTILE, "classes": classes[:2], "logits": [2.0, 1.0], "bias": 0.5, "groups": []}]
        files = make_pictures(tmp_path, "&'$x %41#;/input.png", "名前/input.png")
        shown = report(
            tmp_path, changed, summary, input=Outcome(files), why=Outcome(files, why), rules=Outcome(reason=HOSTILE)
        )
        assert not shown.all("script") and not shown.all("em")
        assert shown.text.count(HOSTILE) >= 8 and "<script>alert(1)</script>" in shown.text
        assert {Path(unquote(each["src"])) for each in shown.all("img")} == set(files)
        assert {Path(unquote(each["href"])) for each in shown.all("a") if "#" not in each["href"]} == set(files)

    def test_a_plain_state_dict_has_no_settings(self, tmp_path, inspection):
        text = report(tmp_path, replace(inspection, metadata=Metadata())).text
        assert "plain state dict" in text and "holds no result" in text and "Accuracy by class is not known" in text


class TestDetails:
    @pytest.mark.parametrize(
        "flags, words",
        [
            ("@recipes/report-a", ["SGD, momentum 0.9", "times 0.1 every 20 epochs", "none", "32 images"]),
            ("@recipes/report-b", ["0.1 at its peak", "schedule exponential, times 0.965611 per epoch", "64 images"]),
            ("@recipes/cpu", ["Nesterov momentum", "label smoothing 0.1", "warm-up over 7", "cutout of 12x12"]),
            ("--data my\\ folder --snapshots 1 2 --ema-decay 0.99 --no-norm-decay", ["not on biases", "average"]),
            ("--shift 0 --weight-decay 0 --seed 0 --epochs 3", ["no weight decay", "3 epochs planned"]),
        ],
        ids=["report-a", "report-b", "cpu", "others", "zeros"],
    )
    def test_the_settings_in_words_and_as_a_command(self, monkeypatch, flags, words):
        monkeypatch.chdir(Path(__file__).parent.parent)
        config = vars(train.parse_args(shlex.split(flags)))
        rows = dict(training_details(Metadata(("a", "b"), (0.5,) * 3, (0.5,) * 3, 224, config)))
        text = "\n".join(rows.values())
        assert all(word in text for word in words), text
        again = vars(train.parse_args(shlex.split(rows["command"])[2:]))
        assert again == config

    def test_growing_image_sizes_and_a_chain_of_commands(self):
        history = [{"kind": "test", "image_size": size} for size in (64, 64, 128, 224, 224)]
        config = {"recipe": ["python train.py --epochs 2", "python train.py --epochs 3"]}
        rows = list(training_details(Metadata(image_size=224, config=config, history=history)))
        assert ("image size", "224x224; trained at 64 (2 epochs), 128 (1 epoch), 224 (2 epochs)") in rows
        assert [value for name, value in rows if name == "command"] == config["recipe"]

    def test_of_many_classes_the_lowest_are_shown(self, tmp_path, inspection):
        summary = {"images_searched": 100, "accuracy_by_class": {f"c{n}.": n / 100 for n in range(100)}}
        text = report(tmp_path, inspection, summary | {"dead_channels": {}, "never_predicted": []}).text
        assert "the 30 lowest of 100" in text and "c29." in text and "c30." not in text


def test_correlations_in_words():
    entries = [
        {"stage": stage, "rank": rank, "correlation": {"guided": value}}
        for stage, value in (("conv1", 0.5), ("conv1", 0.25), ("conv5_x", None))
        for rank in (1, 2)
    ]
    assert correlations_in_words(entries).endswith("conv1 0.38 (guided); conv5_x – (guided).")
    assert correlations_in_words([]) == ""


def test_decisions_in_words():
    groups = [{"contribution": value} for value in (3.0, -1.0, 0.25)]
    entry = {"image": 7, "classes": ["cat", "dog"], "logits": [5.0, 2.25], "bias": 0.5, "groups": groups}
    text = decisions_in_words([entry], largest=2)
    assert [float(number) for number in re.findall(r"[+-]\d\.\d+", text)] == [2.75, 0.5, 2.25, 2.0]


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_on_a_phone_nothing_is_wider_than_the_page_and_every_picture_is_there(out, tmp_path):
    frame = tmp_path / "frame.html"
    script = (
        "<script>const shown = document.querySelector('iframe'); shown.onload = () => {"
        "const page = shown.contentDocument; document.title ="
        "`${page.documentElement.scrollWidth} ${[...page.images].filter(image => image.naturalWidth).length}`};"
        f"shown.src = 'file://{out}/report.html'</script>"
    )
    frame.write_text(f"<!doctype html><iframe width=420 height=900 style='border:0'></iframe>{script}")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'chrome'}", "--dump-dom",
               f"file://{frame}"]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    width, images = map(int, re.search("<title>(.*?) (.*?)</title>", text).groups())
    assert width <= 420 and images == 7
