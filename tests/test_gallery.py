"""The gallery's page, as a parser and as a browser read it."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image

import visualizer
from analysis.channels import ChannelResult, TopImage
from figures import gallery as gallery_module
from runtime import checkpoint

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = ["7", "a & b", 'ring <b>"x"']  # of classes: a number, and what HTML gives a meaning
CHANNELS = [str(n) for n in range(0, 64, 5)]


@pytest.fixture(scope="module")
def gallery(small_run, tmp_path_factory):
    """The gallery of some channels of two stages, one of them dead."""
    out = tmp_path_factory.mktemp("gallery")
    state = checkpoint.load(small_run / "model.pt")
    for name in ("weight", "bias"):
        state["model"][f"bn1.{name}"][5] = 0
    state["classes"] = NAMES
    write_folder(out / "pictures")
    for split in ("train", "test"):
        for name, folder in zip(("disk", "ring", "stripes"), NAMES, strict=True):
            (out / "pictures" / split / name).rename(out / "pictures" / split / folder)
    torch.save(state, out / "model.pt")
    flags = "--device cpu --dpi 50 --figures top9 --stages conv1 conv2_x --gallery --top 2 --channels".split()
    flags = ["--data", str(out / "pictures"), *flags]
    visualizer.main(["--ckpt", str(out / "model.pt"), "--out", str(out / "plots"), *flags, *CHANNELS])
    return out / "plots"


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and what is loaded from where."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "td" and self.rows[-1]:
            self.rows[-1][-1] += data.strip()

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(gallery):
    return Page((gallery / "index.html").read_text())


def test_every_living_channel_has_a_place_that_can_be_linked_to(gallery, page):
    dead = json.loads((gallery / "summary.json").read_text())["dead_channels"]
    expected = {f"{stage}-{n}" for stage in ("conv1", "conv2_x") for n in CHANNELS if int(n) not in dead[stage]}
    assert "conv1-5" not in expected
    assert {article["id"] for article in page.all("article")} == expected
    links = {link["href"] for link in page.all("a")}
    assert {f"#{name}" for name in expected} <= links and {"#conv1", "#conv2_x"} <= links


def test_pictures_are_there_lazy_and_described(gallery, page):
    pictures = page.all("img")
    assert len(pictures) == len(page.all("article"))
    for picture in pictures:
        assert picture["loading"] == "lazy" and "channel" in picture["alt"]
        with Image.open(gallery / picture["src"]) as image:
            assert image.size == (int(picture["width"]), int(picture["height"]))
            assert np.asarray(image).std() > 5
    assert sum(file.stat().st_size for file in (gallery / "channels").iterdir()) / len(pictures) < 60e6 / 576


def test_nothing_comes_from_elsewhere(gallery):
    text = (gallery / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_the_dead_channel_is_named(gallery):
    dead = re.findall("No image excites channel (.*?)[.]", (gallery / "index.html").read_text())
    assert "5" in dead[0].split(", ")


def test_the_numbers_are_those_of_top9_json(gallery):
    text = (gallery / "index.html").read_text()
    entries = json.loads((gallery / "top9.json").read_text())
    assert len(entries) == 2 * len(Page(text).all("article"))
    rows = Page(text).rows
    for entry in entries:
        numbers = [f"{entry['activation']:.2f}", str(entry["index"]), entry["label"], entry["predicted"]]
        if entry["activation"] > 0:
            assert [str(entry["rank"]), *numbers] in rows


def test_small_tiles_keep_their_pixels_square():
    tiles = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3)) / 255
    large = gallery_module.resize_tiles(tiles)
    assert np.allclose(large, tiles.repeat(3, 1).repeat(3, 2))
    assert gallery_module.resize_tiles(np.zeros((2, 64, 64, 3))).shape == large.shape


def result(channel, labels, peak=1.5, correct=None):
    """A channel whose images have these labels, in descending order of activation; the last does not excite it."""
    images = tuple(
        TopImage(
            n + 1, n, peak if n + 1 < len(labels) else 0.0, 0, 0, label, "dog", correct, None, False, (0, 0, 8, 8), {}
        )
        for n, label in enumerate(labels)
    )
    return ChannelResult("conv1", channel, images, torch.zeros(len(labels), 3, 8, 8), {}, {})


def test_images_that_do_not_excite_a_channel_are_not_listed():
    text = gallery_module.article(result(3, ["cat", "bird"]), "a.jpg", (8, 8, 3))
    assert "cat" in text and "bird" not in text and "wrong" not in text
    assert "wrong" in gallery_module.article(result(3, ["cat", "bird"], correct=False), "a.jpg", (8, 8, 3))


def test_names_are_escaped():
    text = gallery_module.article(result(3, [NAMES[2], "x"]), "a.jpg", (8, 8, 3))
    assert "<b>" not in text and [row[3] for row in Page(text).rows if row] == [NAMES[2]]


def test_the_header_says_how_good_the_network_is_on_these_images(gallery):
    accuracy = json.loads((gallery / "summary.json").read_text())["accuracy"]
    assert f"accuracy on these images {accuracy:.2%}" in (gallery / "index.html").read_text()
    assert "top 2 of 12 test images of each channel" in (gallery / "index.html").read_text()


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
class TestInABrowser:
    def shown(self, gallery, tmp_path, query="", script=""):
        """The articles that are not hidden, and what the counter says, after a script of the test's own."""
        page = gallery / "index.html"
        if script:
            page = gallery / "scripted.html"
            page.write_text(
                (gallery / "index.html").read_text().replace("</html>", f"<script>{script}</script></html>")
            )
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
                   "--dump-dom", f"file://{page}{query}"]  # fmt: skip
        text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        articles = [article for article in Page(text).all("article") if "hidden" not in article]
        return articles, re.search(r"<output[^>]*>([^<]*)", text)[1]

    def test_all_are_shown(self, gallery, page, tmp_path):
        articles, count = self.shown(gallery, tmp_path)
        everything = len(page.all("article"))
        assert len(articles) == everything and count == f"{everything} of {everything} channels"

    def test_a_channel_is_found_by_its_number(self, gallery, tmp_path):
        articles, count = self.shown(gallery, tmp_path, "?words=10")
        assert [article["id"] for article in articles] == ["conv1-10", "conv2_x-10"] and count.startswith("2 of")

    def test_by_stage_and_class(self, gallery, tmp_path):
        """Of a page whose labels the test chose, in the place of the network's."""
        labels = {10: NAMES[2], 20: NAMES[1], 25: NAMES[0], 30: NAMES[2]}
        articles = [gallery_module.article(result(n, [name, "x"]), "a.jpg", (8, 8, 3)) for n, name in labels.items()]
        main = f"<main>{gallery_module.section('conv1', articles, [])}</main>"
        text = re.sub("<main>.*</main>", lambda found: main, (gallery / "index.html").read_text(), flags=re.DOTALL)
        (tmp_path / "index.html").write_text(text)
        for words, expected in (
            ("ring", [10, 30]),
            ("%26", [20]),
            ("7", [25]),
            ("CONV1+ring", [10, 30]),
            ("conv2", []),
        ):
            found, _ = self.shown(tmp_path, tmp_path, f"?words={words}")
            assert [article["id"] for article in found] == [f"conv1-{n}" for n in expected], words

    def test_a_stage_without_living_channels_says_so(self, gallery, tmp_path):
        script = (
            "document.querySelectorAll('#conv1 ~ article').forEach(article => article.remove());"
            "document.querySelector('form').dispatchEvent(new Event('input'));"
            "const shown = [...document.querySelectorAll('section')].filter(section => !section.hidden).length;"
            "document.querySelector('output').textContent = shown;"
        )
        assert self.shown(gallery, tmp_path, script=script)[1] == "2"

    def test_the_keys(self, gallery, page, tmp_path):
        event = "new KeyboardEvent('keydown', {key, bubbles: true})"
        press = f"const press = key => document.activeElement.dispatchEvent({event});"
        tell = "document.querySelector('output').textContent = document.activeElement.id;"
        ids = [article["id"] for article in page.all("article")]
        for keys, expected in (
            ("j", ids[0]),
            ("jjj", ids[2]),
            ("jjk", ids[0]),
            ("k", ids[0]),
            ("j/", "words"),
            ("/j", "words"),
        ):
            script = press + "".join(f"press('{key}');" for key in keys) + tell
            assert self.shown(gallery, tmp_path, script=script)[1] == expected, keys

    def test_a_link_to_a_channel_leads_there(self, gallery, page, tmp_path):
        last = page.all("article")[-1]["id"]
        script = (
            f"const top = document.getElementById('{last}').getBoundingClientRect().top;"
            "document.querySelector('output').textContent = `${scrollY} ${top} ${innerHeight}`;"
        )
        scrolled, top, height = map(float, self.shown(gallery, tmp_path, f"#{last}", f"{{ {script} }}")[1].split())
        assert scrolled > 0 and 0 <= top < height

    def test_by_activation(self, gallery, page, tmp_path):
        peaks = sorted(float(article["data-peak"]) for article in page.all("article"))
        articles, _ = self.shown(gallery, tmp_path, f"?from={peaks[-3]}")
        assert sorted(float(article["data-peak"]) for article in articles) == peaks[-3:]
