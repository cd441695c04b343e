"""The gallery's page, as a parser and as a browser read it, and atlas.json."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image

import visualizer
from analysis import atlas
from analysis.channel_groups import ChannelGroups
from analysis.channels import ChannelResult, TopImage, inspect_channel
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import gallery as gallery_module
from figures.gallery_card import Card, StagePage, article, section, short
from network import STAGES
from runtime import checkpoint

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = ["7", "a & b", 'ring <b>"x"']  # of classes: a number, and what HTML gives a meaning
CHANNELS = [0, 5, 10, 20, 30, 40]
SETTINGS = Settings(stages=STAGES, channels=tuple(CHANNELS), top=2)


@pytest.fixture(scope="module")
def gallery(small_run, tmp_path_factory):
    """The gallery of some channels of all stages, one of them dead."""
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
    flags = "--device cpu --dpi 50 --figures filters --no-report --gallery --top 2 --channels".split()
    flags = ["--data", str(out / "pictures"), *flags]
    visualizer.main(["--ckpt", str(out / "model.pt"), "--out", str(out / "plots"), *flags, *map(str, CHANNELS)])
    return out / "plots"


@pytest.fixture(scope="module")
def inspection(gallery):
    return inspect(gallery.parent / "model.pt", SETTINGS, "cpu", str(gallery.parent / "pictures"))


@pytest.fixture(scope="module")
def content(gallery):
    return json.loads((gallery / "atlas.json").read_text())


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the texts of table rows and of list items."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.items, self.in_list = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")
            self.in_list = True

    def handle_endtag(self, tag):
        self.in_list &= tag != "ul"

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "td" and self.rows[-1]:
            self.rows[-1][-1] += data.strip()
        elif self.in_list:
            self.items[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(gallery):
    return Page((gallery / "index.html").read_text())


def test_every_living_channel_of_every_stage_has_a_place_that_can_be_linked_to(gallery, page):
    dead = json.loads((gallery / "summary.json").read_text())["dead_channels"]
    expected = {f"{stage}-{n}" for stage in STAGES for n in CHANNELS if n not in dead[stage]}
    assert "conv1-5" not in expected
    assert {article["id"] for article in page.all("article")} == expected
    links = {link["href"] for link in page.all("a")}
    assert {f"#{name}" for name in expected} <= links and {f"#{stage}" for stage in STAGES} <= links


def test_pictures_are_there_lazy_and_described(gallery, page):
    pictures, cards = page.all("img"), page.all("article")
    assert len(pictures) == 4 * len(cards)  # patches, two rules and the strip
    assert len({picture["src"] for picture in pictures}) == len(cards)
    for picture in pictures:
        assert picture["loading"] == "lazy" and "channel" in picture["alt"]
        with Image.open(gallery / picture["src"]) as image:
            assert image.size == gallery_module.Sheet(3, 2).size()
    assert sum(file.stat().st_size for file in (gallery / "channels").iterdir()) / len(cards) < 50e6 / 1024


def test_what_a_screen_reader_needs(gallery, page):
    text = (gallery / "index.html").read_text()
    assert page.all("html")[0]["lang"] == "en" and all(each["aria-label"] for each in page.all("article"))
    assert all(each["role"] == "img" and each["aria-label"] for each in page.all("svg"))
    controls = len(page.all("input")) + len(page.all("select"))
    assert controls == len(re.findall(r"<label>[^<]*<(?:input|select)", text)) == 5
    assert text.index("<h1") < text.index("<h2") < text.index("<h3") < text.index("<h4")


def test_nothing_comes_from_elsewhere(gallery):
    text = (gallery / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_the_dead_channel_is_named(gallery, content):
    dead = re.findall("No image excites channel (.*?)[.]", (gallery / "index.html").read_text())
    assert "5" in dead[0].split(", ") and 5 in content["stages"]["conv1"]["dead"]


def test_atlas_json_holds_the_numbers_of_the_analyses(inspection, content):
    assert content["images"] == 12 and content["classes"] == content["network_classes"] == NAMES
    assert list(content["stages"]) == list(STAGES)
    for stage, found in content["stages"].items():
        profile = atlas.profile_stage(inspection, stage)
        assert [entry["channel"] for entry in found["channels"]] == [n for n in CHANNELS if n in profile.channels]
        assert [group["channels"] for group in found["groups"]] == [list(each) for each in profile.groups.members]
        for entry in found["channels"][:2]:
            result = inspect_channel(inspection, SETTINGS, stage, entry["channel"])
            images, _ = atlas.strip(inspection, stage, entry["channel"], result.patches.shape[-1])
            expected = asdict(profile.channels[entry["channel"]]) | {
                "correlation": result.correlation,
                "top": [asdict(image) for image in result.images],
                "strip": [asdict(image) for image in images],
            }
            found, expected = flatten(entry), flatten(expected)
            assert found.keys() == expected.keys()
            for path, value in expected.items():
                close = pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
                assert found[path] == close, path


def flatten(content, path=""):
    """Nested content as one dictionary of its leaves."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {name: leaf for key, each in pairs for name, leaf in flatten(each, f"{path}/{key}").items()}
    return {path: content}


def test_the_page_shows_the_numbers_of_atlas_json(page, content):
    entries = [entry for stage in content["stages"].values() for entry in stage["channels"]]
    images = [[(str(image["rank"]), image) for image in entry["top"] if image["activation"] > 0]
              + [(f"{image['percent']} %", image) for image in entry["strip"]] for entry in entries]  # fmt: skip
    rows = [row for row in page.rows if row]
    for row, (name, image) in zip(rows, sum(images, []), strict=True):
        assert row[:1] + row[2:] == [name, str(image["index"]), image["label"], image["predicted"]]
        assert float(row[1]) == pytest.approx(image["activation"], rel=0.05, abs=0.0051)
    items = iter(page.items)
    for entry in entries:
        neighbours = [(str(each["channel"]), each["correlation"]) for each in entry["neighbours"]]
        means = list(zip(NAMES, entry["class_means"], strict=True))
        for name, value in [*means, *zip(NAMES, entry["class_weights"] or (), strict=False), *neighbours]:
            text = next(items)
            assert text.startswith(name)
            assert float(text.split()[-1]) == pytest.approx(value, rel=0.05, abs=0.0051)
    assert next(items, None) is None


def test_a_file_holds_the_blocks_and_the_strip():
    sheet = gallery_module.Sheet(2, 5)
    random = np.random.default_rng(0)
    patches, guided, strip = (torch.from_numpy(random.random((n, 3, 32, 32))).float() for n in (5, 5, 5))
    images = tuple(
        TopImage(n + 1, n, 1.0, 0, 0, "a", "a", True, None, False, (0, 0, 32, 32), {"guided": 2.0}) for n in range(5)
    )
    picture = gallery_module.compose(ChannelResult("conv1", 0, images, patches, {"guided": guided}, {}), strip, sheet)
    assert picture.shape == (*sheet.size()[::-1], 4)
    blocks = [patches, 0.5 + guided / 4, strip]
    for block, columns, (left, top, width, height) in zip(blocks, (3, 3, 5), sheet.windows(), strict=True):
        window = picture[top : top + height, left : left + width]
        assert window.shape == (height, width, 4)
        for n, tile in enumerate(block):
            row, column = (132 * place for place in divmod(n, columns))
            shown = window[row : row + 128, column : column + 128]
            assert (shown[..., 3] == 255).all()
            pixels = (tile.movedim(0, -1).numpy().repeat(4, 0).repeat(4, 1) * 255).round()
            assert np.abs(shown[..., :3] - pixels).max() <= 1  # a rounding apart
    assert (picture[..., 3] == 255).sum() == 15 * 128**2  # transparent elsewhere


def test_tiles_of_any_size():
    assert gallery_module.resize_tiles(np.zeros((2, 50, 50, 3))).shape == (2, 128, 128, 4)


def card(channel, labels, peak=1.5, correct=None, means=(1.0, 2.0, 3.0)):
    """A channel whose images have these labels, in descending order of activation; the last does not excite it."""
    images = tuple(
        TopImage(
            n + 1, n, peak if n + 1 < len(labels) else 0.0, 0, 0, label, "dog", correct, None, False, (0, 0, 8, 8), {}
        )
        for n, label in enumerate(labels)
    )
    result = ChannelResult("conv1", channel, images, torch.zeros(len(labels), 3, 8, 8), {}, {})
    best = max(range(3), key=lambda n: means[n])
    profile = atlas.ChannelProfile("conv1", channel, peak, 1, (0, 1), means, best, 0.5, None, (), channel)
    return Card(result, profile, (), "a.webp")


def cards(*shown):
    """The section of these cards."""
    channels = {each.profile.channel: each.profile for each in shown}
    groups = ChannelGroups(tuple(channels), tuple((channel,) for channel in channels))
    page = StagePage(atlas.StageProfile("conv1", channels, groups, ()), channels, NAMES, NAMES, 12)
    return section(page, [article(each, page) for each in shown])


def test_images_that_do_not_excite_a_channel_are_not_listed():
    text = cards(card(3, ["cat", "bird"]))
    assert "cat" in text and "bird" not in text and "wrong" not in text
    assert "wrong" in cards(card(3, ["cat", "bird"], correct=False))


def test_names_are_escaped():
    text = cards(card(3, [NAMES[2], "x"]))
    assert "<b>&quot;" not in text and '<b>"' not in text
    assert [row[3] for row in Page(text).rows if row] == [NAMES[2]]


def test_numbers_have_two_decimals_or_two_digits():
    assert [short(value) for value in (1.234, 0.0, 0.0031, -0.5, None)] == ["1.23", "0.00", "0.0031", "-0.50", "–"]


def test_the_header_says_how_good_the_network_is_on_these_images(gallery):
    accuracy = json.loads((gallery / "summary.json").read_text())["accuracy"]
    assert f"accuracy on these images {accuracy:.2%}" in (gallery / "index.html").read_text()
    assert "top 2 of 12 test images of each channel" in (gallery / "index.html").read_text()


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
class TestInABrowser:
    """Scripts of the tests' own run after the page's; they leave JSON in the page's title."""

    def run(self, folder, tmp_path, query="", script=""):
        """What the script returns. `shown()` are the ids of the articles that are not hidden."""
        text = (folder / "index.html").read_text()
        prelude = (
            "const shown = () => [...document.querySelectorAll('article:not([hidden])')].map(each => each.id);"
            "const set = (id, value) => { document.getElementById(id).value = value;"
            " document.querySelector('form').dispatchEvent(new Event('input')); };"
            "const count = () => document.querySelector('output').textContent;"
            "const press = key => document.activeElement.dispatchEvent("
            "new KeyboardEvent('keydown', {key, bubbles: true}));"
        )
        code = f"(async () => {{ {prelude} {script} }})().then(found => document.title = JSON.stringify(found))"
        (folder / "scripted.html").write_text(text.replace("</html>", f"<script>{code}</script></html>"))
        return self.title(folder / "scripted.html", query, tmp_path)

    def title(self, file, query, tmp_path):
        """The content of the page's title, when the page has been loaded."""
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
                   "--allow-file-access-from-files", "--window-size=1300,900", "--virtual-time-budget=3000",
                   "--dump-dom", f"file://{file}{query}"]  # fmt: skip
        text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]))

    def test_search_by_number_and_activation(self, gallery, content, page, tmp_path):
        peaks = sorted(round(entry["peak"], 4) for stage in content["stages"].values() for entry in stage["channels"])
        script = (
            "const results = [[shown(), count()]];"
            "set('words', '10'); results.push([shown(), count()]); set('words', '');"
            f"set('from', {peaks[-3] - 1e-3}); results.push([shown(), count()]); return results;"
        )
        (everything, counted), (found, few), (strong, _) = self.run(gallery, tmp_path, "", script)
        assert len(everything) == len(peaks) and counted == f"{len(peaks)} of {len(peaks)} channels"
        expected = [each["id"] for each in page.all("article") if each["data-channel"] == "10"]
        assert found == expected and few == f"{len(expected)} of {len(peaks)} channels"
        assert len(strong) >= 3

    def test_search_by_stage_and_class(self, gallery, tmp_path):
        """Of a page whose labels the test chose, in the place of the network's."""
        best = {10: (1.0, 2.0, 3.0), 20: (1.0, 3.0, 2.0), 25: (3.0, 1.0, 2.0)}
        shown = [card(channel, ["x", "y"], means=means) for channel, means in best.items()]
        shown.append(card(30, [NAMES[2], "x"], means=best[20]))
        main = f"<main id=main>{cards(*shown)}</main>"
        text = re.sub("<main.*</main>", lambda found: main, (gallery / "index.html").read_text(), flags=re.DOTALL)
        (tmp_path / "index.html").write_text(text)
        queries = {"ring": [10, 30], "&": [20, 30], "7": [25], "CONV1 ring": [10, 30], "conv2": []}
        script = f"return {json.dumps(list(queries))}.map(words => {{ set('words', words); return shown(); }});"
        found = self.run(tmp_path, tmp_path, "", script)
        assert found == [[f"conv1-{n}" for n in expected] for expected in queries.values()]

    def test_order_and_groups(self, gallery, content, tmp_path):
        script = (
            "const by = order => { set('sort', order); return shown(); };"
            "const results = ['selectivity', 'peak', 'unlike', ''].map(by);"
            "const group = [...document.querySelectorAll('#group option')].at(-1)?.value || '';"
            "set('group', group); return [results, group, shown()];"
        )
        orders, group, members = self.run(gallery, tmp_path, "", script)
        stages = content["stages"]
        entries = {f"{stage}-{entry['channel']}": entry for stage in stages for entry in stages[stage]["channels"]}
        keys = [
            lambda entry: -entry["selectivity"],
            lambda entry: -entry["peak"],
            lambda entry: entry["neighbours"][0]["correlation"],
            lambda entry: entry["channel"],
        ]
        for found, key in zip(orders, keys, strict=True):
            assert sorted(found) == sorted(entries)
            for a, b in zip(found, found[1:], strict=False):
                order = STAGES.index(a.split("-")[0]), key(entries[a])
                assert order[0] < STAGES.index(b.split("-")[0]) or order[1] <= key(entries[b]) + 1e-4
        assert group and len(members) > 1
        stage, representative = group.split("-")
        expected = {name for name in entries if name.startswith(stage)
                    and entries[name]["representative"] == int(representative)}  # fmt: skip
        assert set(members) == expected

    def test_the_address_holds_the_search(self, gallery, page, tmp_path):
        script = "return [shown(), document.getElementById('sort').value];"
        found, order = self.run(gallery, tmp_path, "?words=10&sort=peak", script)
        assert found == [each["id"] for each in page.all("article") if each["data-channel"] == "10"]
        assert order == "peak"

    def test_a_stage_without_living_channels_says_so(self, gallery, tmp_path):
        script = (
            "document.querySelectorAll('#conv1 ~ article').forEach(article => article.remove()); set('words', '');"
            "return [...document.querySelectorAll('section')].filter(section => !section.hidden).length;"
        )
        assert self.run(gallery, tmp_path, script=script) == 5

    def test_the_keys(self, gallery, page, tmp_path):
        """They follow the order and the search, and can be switched off."""
        ids = [article["id"] for article in page.all("article")]
        expected = {"j": ids[0], "jjj": ids[2], "jjk": ids[0], "k": ids[0], "j/": "words", "/j": "words"}
        script = (
            "const type = keys => { document.activeElement.blur(); for (const key of keys) press(key);"
            " return document.activeElement.id; };"
            f"const on = {json.dumps(list(expected))}.map(type);"
            "document.getElementById('keys').click(); const off = type('j') + type('/');"
            "document.getElementById('keys').click(); set('sort', 'peak'); return [on, off, type('j'), shown()[0]];"
        )
        on, off, first, strongest = self.run(gallery, tmp_path, "", script)
        assert on == list(expected.values()) and off == "" and first == strongest

    def test_a_link_leads_to_its_channel_even_if_the_search_hides_it(self, gallery, page, tmp_path):
        last = page.all("article")[-1]["id"]
        script = (
            "await new Promise(done => setTimeout(done, 1000));"
            f"const box = document.getElementById('{last}').getBoundingClientRect();"
            "return [scrollY, box.top, innerHeight, box.height];"
        )
        for query in (f"#{last}", f"?words=nothing#{last}"):
            scrolled, top, height, own = self.run(gallery, tmp_path, query, script)
            assert scrolled > 0 and 0 <= top < height and own > 0

    def test_a_phone_does_not_scroll_sideways_and_windows_show_their_part(self, gallery, tmp_path):
        script = (
            "const box = each => each.getBoundingClientRect();"
            "const windows = [...document.querySelector('article').querySelectorAll('.window')].map(each => {"
            " const own = box(each), image = box(each.firstChild);"
            " return [own.left - image.left, own.top - image.top, own.width, own.height].map(x => x / image.width); });"
            "return [innerWidth, document.documentElement.scrollWidth, windows];"
        )
        self.run(gallery, tmp_path, "", script)  # writes scripted.html
        (gallery / "frame.html").write_text(  # a window of its own has at least 500 pixels
            "<title></title><iframe src=scripted.html style='width: 420px; height: 900px; border: 0'></iframe>"
            "<script>onload = () => setTimeout(() => document.title = frames[0].document.title, 100)</script>"
        )
        inner, used, windows = self.title(gallery / "frame.html", "", tmp_path)
        assert used <= inner == 420
        sheet = gallery_module.Sheet(3, 2)
        for found, expected in zip(windows, sheet.windows(), strict=True):
            assert found == pytest.approx([pixels / sheet.size()[0] for pixels in expected], abs=3e-3)
