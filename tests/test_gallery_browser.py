"""The gallery's page as a browser runs it: search, order, links, keys, and how it fits a phone.

Scripts of the tests run after the page's own; they leave JSON in the page's title.
"""

import html
import json
import re
import shutil
import subprocess

import pytest
from gallery_page import NAMES, card, page

from figures.gallery import sheet_size, sheet_windows
from network import STAGES

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]


def run(folder, tmp_path, query="", script=""):
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
    return title(folder / "scripted.html", query, tmp_path)


def title(file, query, tmp_path):
    """The content of the page's title, when the page has been loaded."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
               "--allow-file-access-from-files", "--window-size=1300,900", "--virtual-time-budget=3000",
               "--dump-dom", f"file://{file}{query}"]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]))


def test_search_by_number_and_activation(gallery, gallery_json, gallery_html, tmp_path):
    peaks = sorted(round(entry["peak"], 4) for stage in gallery_json["stages"].values() for entry in stage["channels"])
    least = peaks[-3] - 1e-3
    script = (
        "const results = [[shown(), count()]];"
        "set('words', '10'); results.push([shown(), count()]); set('words', '');"
        f"set('from', {least}); results.push([shown(), count()]); return results;"
    )
    (everything, counted), (found, few), (strong, _) = run(gallery, tmp_path, "", script)
    assert len(everything) == len(peaks) and counted == f"{len(peaks)} of {len(peaks)} channels"
    expected = [each["id"] for each in gallery_html.all("article") if each["data-channel"] == "10"]
    assert found == expected and few == f"{len(expected)} of {len(peaks)} channels"
    assert strong == [each["id"] for each in gallery_html.all("article") if float(each["data-peak"]) >= least]


def test_search_by_stage_and_class(tmp_path):
    best = {10: (1.0, 2.0, 3.0), 20: (1.0, 3.0, 2.0), 25: (3.0, 1.0, 2.0)}
    shown = [card(channel, ["x", "y"], means=means) for channel, means in best.items()]
    shown.append(card(30, [NAMES[2], "x"], means=best[20]))
    (tmp_path / "index.html").write_text(page(*shown))
    queries = {"ring": [10, 30], "&": [20, 30], "7": [25], "CONV1 ring": [10, 30], "conv2": []}
    script = f"return {json.dumps(list(queries))}.map(words => {{ set('words', words); return shown(); }});"
    found = run(tmp_path, tmp_path, "", script)
    assert found == [[f"conv1-{n}" for n in expected] for expected in queries.values()]


def test_the_order(gallery, gallery_json, tmp_path):
    script = (
        "const by = order => { set('sort', order); return shown(); };"
        "return ['selectivity', 'peak', 'unlike', ''].map(by);"
    )
    orders = run(gallery, tmp_path, "", script)
    stages = gallery_json["stages"]
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


def test_groups(tmp_path):
    """The filter has those with several cards, the largest first; so has the link on a card."""
    members = {30: [30, 31, 32], 3: [3, 8], 9: [9]}
    shown = [card(channel, ["x", "y"], representative=first) for first in members for channel in members[first]]
    (tmp_path / "index.html").write_text(page(*shown))
    script = (
        "const groups = [...document.querySelectorAll('#group option')].map(option => option.value);"
        "const results = groups.map(group => { set('group', group); return shown(); }); set('group', '');"
        "document.querySelector('#conv1-8 a.group').click(); results.push(shown());"
        "return [groups, results, document.querySelector('#conv1-9 a.group')];"
    )
    groups, (everything, *filtered), link = run(tmp_path, tmp_path, "", script)
    assert groups == ["", "conv1-30", "conv1-3"] and len(everything) == 6 and link is None
    assert filtered == [[f"conv1-{channel}" for channel in members[first]] for first in (30, 3, 3)]


def test_the_address_holds_the_search(gallery, gallery_html, tmp_path):
    script = "return [shown(), document.getElementById('sort').value];"
    found, order = run(gallery, tmp_path, "?words=10&sort=peak", script)
    assert found == [each["id"] for each in gallery_html.all("article") if each["data-channel"] == "10"]
    assert order == "peak"


def test_a_stage_without_living_channels_says_so(gallery, tmp_path):
    script = (
        "document.querySelectorAll('#conv1 ~ article').forEach(article => article.remove()); set('words', '');"
        "return [...document.querySelectorAll('section')].filter(section => !section.hidden).length;"
    )
    assert run(gallery, tmp_path, script=script) == 5


def test_the_keys(gallery, gallery_html, tmp_path):
    """They follow the order and the search, and can be switched off."""
    ids = [article["id"] for article in gallery_html.all("article")]
    expected = {"j": ids[0], "jjj": ids[2], "jjk": ids[0], "k": ids[0], "j/": "words", "/j": "words"}
    script = (
        "const type = keys => { document.activeElement.blur(); for (const key of keys) press(key);"
        " return document.activeElement.id; };"
        f"const on = {json.dumps(list(expected))}.map(type);"
        "document.getElementById('keys').click(); const off = type('j') + type('/');"
        "document.getElementById('keys').click(); set('sort', 'peak'); return [on, off, type('j'), shown()[0]];"
    )
    on, off, first, strongest = run(gallery, tmp_path, "", script)
    assert on == list(expected.values()) and off == "" and first == strongest


def test_a_link_leads_to_its_channel_even_if_the_search_hides_it(gallery, gallery_html, tmp_path):
    last = gallery_html.all("article")[-1]["id"]
    script = (
        "await new Promise(done => setTimeout(done, 1000));"
        f"const box = document.getElementById('{last}').getBoundingClientRect();"
        "return [scrollY, box.top, innerHeight, box.height];"
    )
    for query in (f"#{last}", f"?words=nothing#{last}"):
        scrolled, top, height, own = run(gallery, tmp_path, query, script)
        assert scrolled > 0 and 0 <= top < height and own > 0


def test_a_phone_does_not_scroll_sideways_and_windows_show_their_part(gallery, tmp_path):
    script = (
        "const box = each => each.getBoundingClientRect();"
        "const windows = [...document.querySelector('article').querySelectorAll('.window')].map(each => {"
        " const own = box(each), image = box(each.firstChild);"
        " return [own.left - image.left, own.top - image.top, own.width, own.height].map(x => x / image.width); });"
        "return [innerWidth, document.documentElement.scrollWidth, windows];"
    )
    run(gallery, tmp_path, "", script)  # writes scripted.html
    (gallery / "frame.html").write_text(  # a window of its own has at least 500 pixels
        "<title></title><iframe src=scripted.html style='width: 420px; height: 900px; border: 0'></iframe>"
        "<script>onload = () => setTimeout(() => document.title = frames[0].document.title, 100)</script>"
    )
    inner, used, windows = title(gallery / "frame.html", "", tmp_path)
    assert used <= inner == 420
    expected = sheet_windows(3, 2)
    for found, window in zip(windows, expected, strict=True):
        assert found == pytest.approx([pixels / sheet_size(expected)[0] for pixels in window], abs=3e-3)
