"""The gallery's page as a parser reads it, and atlas.json."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from gallery_page import CHANNELS, NAMES, Page, card, page
from PIL import Image

from analysis.channels import ChannelResult, TopImage, inspect_channels
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import atlas
from figures import gallery as gallery_module
from figures.style import format_percent, format_short
from network import STAGES

SETTINGS = Settings(stages=STAGES, channels=tuple(CHANNELS), top=2)


@pytest.fixture(scope="module")
def inspection(gallery):
    return inspect(gallery.parent / "model.pt", SETTINGS, "cpu", str(gallery.parent / "pictures"))


def test_every_living_channel_of_every_stage_can_be_linked_to_and_the_dead_are_named(gallery, gallery_html):
    dead = json.loads((gallery / "summary.json").read_text())["dead_channels"]
    expected = {f"{stage}-{n}" for stage in STAGES for n in CHANNELS if n not in dead[stage]}
    assert "conv1-5" not in expected
    assert {article["id"] for article in gallery_html.all("article")} == expected
    links = {link["href"] for link in gallery_html.all("a")}
    assert {f"#{name}" for name in expected} <= links and {f"#{stage}" for stage in STAGES} <= links
    named = re.findall("Zero at all units searched: channel (.*?)[.]", gallery_html.text)
    assert "5" in named[0].split(", ")


def test_pictures_are_there_lazy_and_described(gallery, gallery_html):
    pictures, cards = gallery_html.all("img"), gallery_html.all("article")
    assert len(pictures) == 4 * len(cards)  # patches, two rules and the strip
    assert len({picture["src"] for picture in pictures}) == len(cards)
    for picture in pictures:
        assert picture["loading"] == "lazy" and "channel" in picture["alt"]
        with Image.open(gallery / picture["src"]) as image:
            assert image.size == gallery_module.sheet_size(gallery_module.sheet_windows(3, 2))
    assert sum(file.stat().st_size for file in (gallery / "channels").iterdir()) / len(cards) < 50e6 / 1024


def test_it_suits_a_screen_reader_and_nothing_comes_from_elsewhere(gallery, gallery_html):
    text = (gallery / "index.html").read_text()
    assert gallery_html.all("html")[0]["lang"] == "en"
    assert all(article["aria-label"] for article in gallery_html.all("article"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in gallery_html.all("svg"))
    controls = len(gallery_html.all("input")) + len(gallery_html.all("select"))
    assert controls == len(re.findall(r"<label>[^<]*<(?:input|select)", text)) == 5
    assert text.index("<h1") < text.index("<h2") < text.index("<h3") < text.index("<h4")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_atlas_json_holds_the_numbers_of_the_analyses(inspection, gallery_json):
    assert gallery_json["images"] == 12 and gallery_json["classes"] == gallery_json["network_classes"] == NAMES
    assert list(gallery_json["stages"]) == list(STAGES)
    for stage, found in gallery_json["stages"].items():
        profile = atlas.profile_stage(inspection, stage)
        assert [entry["channel"] for entry in found["channels"]] == [n for n in CHANNELS if n in profile["channels"]]
        assert found["groups"] == profile["groups"] and found["dead"] == profile["dead"]
        for entry in found["channels"][:2]:
            (result,) = inspect_channels(inspection, SETTINGS, stage, [entry["channel"]])
            images, _ = atlas.strip(inspection, stage, entry["channel"], result.patches.shape[-1])
            top = [asdict(image) for image in result.images]
            expected = profile["channels"][entry["channel"]]
            expected = flatten(expected | {"correlation": result.correlation, "top": top, "strip": images})
            found = flatten(entry)
            assert found.keys() == expected.keys()
            for path, value in expected.items():
                # single precision, another batch: rounding may turn a ReLU, which changes a picture
                rounding = 0.02 if "scale" in path or path.startswith("/correlation") else 1e-3
                close = pytest.approx(value, rel=rounding, abs=1e-5) if isinstance(value, float) else value
                assert found[path] == close, path


def flatten(content, path=""):
    """Nested content as one dictionary of its leaves."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {name: leaf for key, part in pairs for name, leaf in flatten(part, f"{path}/{key}").items()}
    return {path: content}


def test_the_page_shows_the_numbers_of_atlas_json(gallery_html, gallery_json):
    entries = [entry for stage in gallery_json["stages"].values() for entry in stage["channels"]]
    images = [[(str(image["rank"]), image) for image in entry["top"] if image["activation"] > 0]
              + [(f"{image['percent']} %", image) for image in entry["strip"]] for entry in entries]  # fmt: skip
    rows = [row for row in gallery_html.rows if row]
    for row, (name, image) in zip(rows, sum(images, []), strict=True):
        assert row[:1] + row[2:] == [name, str(image["index"]), image["label"], image["predicted"]]
        assert float(row[1]) == pytest.approx(image["activation"], rel=0.05, abs=0.0051)
    expected = []
    for entry in entries:
        for values in (entry["class_means"], entry["class_weights"]):
            expected += zip(NAMES, values, strict=True) if values else ()
        expected += [(str(other["channel"]), other["correlation"]) for other in entry["neighbours"]]
    for text, (name, value) in zip(gallery_html.items, expected, strict=True):
        assert text.startswith(name) and float(text.split()[-1]) == pytest.approx(value, rel=0.05, abs=0.0051)


def test_a_file_holds_the_blocks_and_the_strip():
    windows = gallery_module.sheet_windows(2, 5)
    random = np.random.default_rng(0)
    patches, guided, strip = (torch.from_numpy(random.random((n, 3, 32, 32))).float() for n in (5, 5, 5))
    images = tuple(
        TopImage(n + 1, n, 1.0, 0, 0, "a", "a", True, None, False, (0, 0, 32, 32), {"guided": 2.0}) for n in range(5)
    )
    picture = gallery_module.compose(ChannelResult("conv1", 0, images, patches, {"guided": guided}, {}), strip, windows)
    assert picture.shape == (*gallery_module.sheet_size(windows)[::-1], 4)
    blocks = [patches, 0.5 + guided / 4, strip]
    for block, columns, (left, top, width, height) in zip(blocks, (3, 3, 5), windows, strict=True):
        window = picture[top : top + height, left : left + width]
        assert window.shape == (height, width, 4)
        for n, tile in enumerate(block):
            row, column = (132 * number for number in divmod(n, columns))
            shown = window[row : row + 128, column : column + 128]
            assert (shown[..., 3] == 255).all()
            pixels = (tile.movedim(0, -1).numpy().repeat(4, 0).repeat(4, 1) * 255).round()
            assert np.abs(shown[..., :3] - pixels).max() <= 1  # a rounding apart
    assert (picture[..., 3] == 255).sum() == 15 * 128**2  # transparent elsewhere


def test_images_that_do_not_excite_a_channel_are_not_listed_and_mistakes_are_red():
    for correct in (True, False):
        text = page(card(3, [NAMES[2], "bird"], correct=correct))
        assert [row[3] for row in Page(text).rows if row] == [NAMES[2]] and '<b>"' not in text  # it is escaped
        assert ("<tr class=wrong" in text) == (not correct)


def test_a_card_says_how_often_it_responds_and_links_its_group():
    members = {3: [3, 8], 30: [30, 31, 32], 9: [9]}
    text = page(*(card(n, ["x", "y"], representative=first) for first, group in members.items() for n in group))
    assert text.count("excited by 8 % of the images") == 6  # 1 of 12
    options = [option["value"] for option in Page(text).all("option") if option.get("value", "").startswith("conv1")]
    assert options == ["conv1-30", "conv1-3"]  # those with several cards, the largest first
    links = [link["href"] for link in Page(text).all("a") if link.get("class") == "group"]
    assert links == ["?group=conv1-3"] * 2 + ["?group=conv1-30"] * 3


def test_of_many_classes_those_with_the_largest_values_have_bars():
    rows = gallery_module.bars([str(n) for n in range(30)], [(-1) ** n * n for n in range(30)])
    assert [name for name, _, _ in rows] == [str(n) for n in range(29, 19, -1)]
    assert rows[1] == ("28", 28, 28 / 29) and rows[0][2] == -1


def test_numbers_have_two_digits_and_no_share_is_rounded_to_none_or_all():
    numbers = {1.234: "1.23", 0.0: "0.00", 0.0031: "0.0031", -0.5: "-0.50", None: "–"}
    assert [format_short(value) for value in numbers] == list(numbers.values())
    shares = {0: "0 %", 0.001: "<1 %", 0.734: "73 %", 0.998: ">99 %", 1: "100 %"}
    assert [format_percent(share) for share in shares] == list(shares.values())
    assert [format_percent(share, 2) for share in (0.00001, 0.8838, 0.99999)] == ["<0.01 %", "88.38 %", ">99.99 %"]
