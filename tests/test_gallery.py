"""The gallery's page as a parser reads it, and atlas.json, against brute force over all images and units."""

import json
import math
import re

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


@pytest.fixture(scope="module")
def features(inspection):
    """stage -> features of the images, of the units that are searched."""
    with torch.inference_mode():
        maps = inspection.network.trace(inspection.inputs(inspection.images)).features
    return maps | {"conv1": maps["conv1"][:, :, 2:15, 2:15]}  # at 32x32, deeper units all see the padding


def test_every_living_channel_of_every_stage_can_be_linked_to_and_the_dead_are_named(gallery, gallery_html):
    dead = json.loads((gallery / "summary.json").read_text())["dead_channels"]
    expected = {f"{stage}-{n}" for stage in STAGES for n in CHANNELS if n not in dead[stage]}
    assert "conv1-5" not in expected
    assert {article["id"] for article in gallery_html.all("article")} == expected
    links = {link["href"] for link in gallery_html.all("a")}
    assert {f"#{name}" for name in expected} <= links and {f"#{stage}" for stage in STAGES} <= links
    assert "5" in re.findall("Zero at all units searched: channel (.*?)[.]", gallery_html.text)[0].split(", ")


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
        shown = float(text.split()[-1].replace("\N{MINUS SIGN}", "-"))
        assert text.startswith(name) and shown == pytest.approx(value, rel=0.05, abs=0.0051)


@pytest.mark.parametrize("stage", STAGES)
def test_profiles_are_those_of_brute_force(inspection, features, gallery_json, stage):
    assert gallery_json["images"] == 12 and gallery_json["classes"] == gallery_json["network_classes"] == NAMES
    content = gallery_json["stages"][stage]
    peaks = features[stage].amax((2, 3)).double()
    alive = (peaks.amax(0) > 0).nonzero().flatten().tolist()
    assert sorted([*alive, *content["dead"]]) == list(range(peaks.shape[1]))
    assert sorted(sum((group["channels"] for group in content["groups"]), [])) == alive
    correlations = np.corrcoef(peaks.numpy()[:, alive].T)
    for entry, channel in zip(content["channels"], [n for n in CHANNELS if n in alive], strict=True):
        values = peaks[:, channel]
        assert (entry["stage"], entry["channel"]) == (stage, channel)
        assert entry["peak"] == pytest.approx(values.max().item(), rel=1e-4)
        assert entry["exciting"] == sum(entry["density"]) == (values > 0).sum()
        assert entry["density"][-1] >= 1 and len(entry["density"]) == 24
        means = [values[inspection.labels == number].mean().item() for number in range(3)]
        assert entry["class_means"] == pytest.approx(means, rel=1e-4, abs=1e-5)
        *others, best = sorted(means)
        assert entry["class_means"][entry["best_class"]] == max(entry["class_means"])
        selectivity = (best - np.mean(others)) / (best + np.mean(others))
        assert entry["selectivity"] == pytest.approx(selectivity, rel=1e-3, abs=1e-4)
        nearest = {other["channel"]: other["correlation"] for other in entry["neighbours"]}
        of_all = correlations[alive.index(channel)]
        assert list(nearest.values()) == pytest.approx(sorted(of_all)[-2:-7:-1], abs=1e-4)  # the last is its own
        assert list(nearest.values()) == pytest.approx([of_all[alive.index(other)] for other in nearest], abs=1e-4)
        (group,) = [group for group in content["groups"] if channel in group["channels"]]
        assert entry["representative"] == group["representative"] in group["channels"]
        weights = inspection.network.fc.weight[:, channel].tolist() if stage == "conv5_x" else None
        assert entry["class_weights"] == (pytest.approx(weights, rel=1e-5) if weights else None)


@pytest.mark.parametrize("stage", STAGES)
def test_images_are_those_of_brute_force(inspection, features, gallery_json, stage):
    first = 2 if stage == "conv1" else 0  # unit that is searched
    for entry in gallery_json["stages"][stage]["channels"]:
        maps = features[stage][:, entry["channel"]]
        peaks = sorted(maps.amax((1, 2)).tolist(), reverse=True)
        exciting = sorted(peak for peak in peaks if peak > 0)
        quantiles = [exciting[math.ceil(percent * len(exciting) / 100) - 1] for percent in atlas.STRIP_PERCENTS]
        assert [image["percent"] for image in entry["strip"]] == list(atlas.STRIP_PERCENTS)
        for image, expected in zip([*entry["top"], *entry["strip"]], [*peaks[:2], *quantiles], strict=True):
            assert image["activation"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
            unit = maps[image["index"], image["row"] - first, image["column"] - first].item()
            assert unit == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert image["label"] == NAMES[inspection.labels[image["index"]]]
            assert image["predicted"] == NAMES[inspection.search.logits[image["index"]].argmax()]
            assert image["correct"] == (image["label"] == image["predicted"])
            top, left, bottom, right = image["crop"]
            assert bottom - top == right - left and min(top, left) >= 0 and max(bottom, right) <= 32
        for rank, image in enumerate(entry["top"], 1):
            assert (image["rank"], image["file"]) == (rank, str(inspection.files[image["index"]]))
            assert image["border"] == (stage != "conv1") and image["scale"].keys() == {"deconvnet", "guided"}
    (result,) = inspect_channels(inspection, SETTINGS, stage, [entry["channel"]])
    # another batch: rounding may turn a ReLU, which changes a picture
    assert entry["correlation"] == pytest.approx(result.correlation, rel=0.02, abs=1e-5)


def test_a_strip_shows_what_its_units_see(inspection):
    """Of conv1: the pixels that the gradient reaches are in the middle of the patch, or as near as the image allows."""
    images, patches = atlas.strip(inspection, "conv1", 10, 11)
    for image, patch in zip(images, patches, strict=True):
        pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
        inspection.network.conv1(pixels)[0, :, image["row"], image["column"]].abs().sum().backward()
        top, left, bottom, right = image["crop"]
        for axis, (start, end) in enumerate(((top, bottom), (left, right))):
            seen = pixels.grad[0].abs().sum(0).sum(1 - axis).nonzero().flatten().tolist()
            assert start <= seen[0] and seen[-1] < end
            assert start in (0, 21) or seen[0] - start == end - 1 - seen[-1] == 2
        assert torch.allclose(patch, inspection.images[image["index"], :, top:bottom, left:right] / 255, atol=1e-6)


def test_selectivity_at_its_ends():
    ends = torch.tensor([[0.0, 2, 0], [3, 2, 0], [torch.nan, torch.nan, torch.nan], [0, 2, 0]])  # NaN: no image
    assert atlas.class_selectivity(ends).tolist() == [1, 0, 0]
    assert atlas.class_selectivity(ends[1:3]) is None


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_follow_the_definition_and_numpy(seed):
    peaks = torch.randint(-6, 12, (41,), generator=torch.Generator().manual_seed(seed)).clamp(min=0) / 8  # many equal
    values = peaks.tolist()
    exciting = sorted(value for value in values if value > 0)
    images = atlas.quantile_images(peaks, range(1, 101))
    for percent, image in enumerate(images, 1):
        reached = (value for n, value in enumerate(exciting, 1) if 100 * n >= percent * len(exciting))
        assert values[image] == next(reached)
    expected = np.quantile(exciting, (0.25, 0.5, 0.75, 1), method="inverted_cdf")  # which binary numbers hold
    assert [values[images[percent - 1]] for percent in (25, 50, 75, 100)] == expected.tolist()
    assert atlas.quantile_images(torch.zeros(3)) == []
    assert atlas.quantile_images(torch.tensor([0, 3.0, 0, 1, 2]), (99, 67, 66, 34, 33, 1)) == [1, 1, 4, 4, 3, 3]


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
    numbers = [format_short(value) for value in (1.234, 0.0, 0.0031, -0.5, None)]
    assert numbers == ["1.23", "0.00", "0.0031", "\N{MINUS SIGN}0.50", "–"]
    shares = [format_percent(share) for share in (0, 0.001, 0.734, 0.998, 1)]
    assert shares == ["0 %", "<1 %", "73 %", ">99 %", "100 %"]
    assert [format_percent(share, 2) for share in (0.00001, 0.8838, 0.99999)] == ["<0.01 %", "88.38 %", ">99.99 %"]
