"""The page is read as a parser and as a real browser read it."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint
import visualizer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CHANNELS = [str(n) for n in range(0, 64, 5)]


@pytest.fixture(scope="module")
def gallery(small_run, tmp_path_factory):
    """The gallery of some channels of two stages, one of them dead."""
    out = tmp_path_factory.mktemp("gallery")
    state = checkpoint.load(small_run / "model.pt")
    for name in ("weight", "bias"):
        state["model"][f"bn1.{name}"][5] = 0
    state["classes"] = ["disk", "ring", "stripes"]
    torch.save(state, out / "model.pt")
    flags = "--device cpu --figures top9 --stages conv1 conv2_x --gallery --channels".split()
    visualizer.main(["--ckpt", str(out / "model.pt"), "--out", str(out / "plots"), *flags, *CHANNELS])
    return out / "plots"


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and what is loaded from where."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(gallery):
    return Page((gallery / "index.html").read_text())


def test_every_channel_has_a_place_that_can_be_linked_to(page):
    expected = {f"{stage}-{n}" for stage in ("conv1", "conv2_x") for n in CHANNELS} - {"conv1-5"}
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
    assert sum(file.stat().st_size for file in (gallery / "gallery").iterdir()) / len(pictures) < 60e6 / 576


def test_nothing_comes_from_elsewhere(gallery):
    text = (gallery / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_the_dead_channel_is_named(gallery):
    assert "No image excites channel 5." in (gallery / "index.html").read_text()


def test_the_numbers_are_those_of_top9_json(gallery):
    text = (gallery / "index.html").read_text()
    entries = json.loads((gallery / "top9.json").read_text())
    assert len(entries) == 9 * len(Page(text).all("article"))
    for entry in entries[::20]:
        row = f"<td>{entry['activation']:.2f}<td>{entry['index']}<td>{entry['label']}<td>{entry['predicted']}"
        assert row in text


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
class TestInABrowser:
    def shown(self, gallery, tmp_path, query=""):
        """The articles that are not hidden, and what the counter says."""
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
                   "--dump-dom", f"file://{gallery}/index.html{query}"]  # fmt: skip
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

    def test_by_stage_and_class(self, gallery, page, tmp_path):
        articles, _ = self.shown(gallery, tmp_path, "?words=conv2_x+ring")
        expected = [
            article["id"]
            for article in page.all("article")
            if {"conv2_x", "ring"} <= set(article["data-words"].split())
        ]
        assert [article["id"] for article in articles] == expected and expected

    def test_by_activation(self, gallery, page, tmp_path):
        peaks = sorted(float(article["data-peak"]) for article in page.all("article"))
        articles, _ = self.shown(gallery, tmp_path, f"?from={peaks[-3]}")
        assert sorted(float(article["data-peak"]) for article in articles) == peaks[-3:]
