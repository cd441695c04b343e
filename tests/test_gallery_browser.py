"""The gallery's page as a browser runs it: search, order, links, keys, and how it fits a phone.

Scripts of the tests run after the page's own; they leave JSON in the page's title.
"""

import json

import pytest
from gallery_page import BROWSER, NAMES, card, on_a_phone, page, title_in_browser

from figures.gallery import sheet_size, sheet_windows
from network import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]


def run(folder, tmp_path, script, query=""):
    """What the script returns. `shown()` are the ids of the articles that are not hidden."""
    prelude = (
        "const shown = () => [...document.querySelectorAll('article:not([hidden])')].map(article => article.id);"
        "const set = (id, value) => { document.getElementById(id).value = value;"
        " document.querySelector('form').dispatchEvent(new Event('input')); };"
    )
    code = f"(async () => {{ {prelude} {script} }})().then(found => document.title = JSON.stringify(found))"
    text = (folder / "index.html").read_text().replace("</html>", f"<script>{code}</script></html>")
    (folder / "scripted.html").write_text(text)
    return title_in_browser(folder / "scripted.html", tmp_path, query)


def test_search_by_number_stage_class_and_activation(tmp_path):
    means = {10: (1.0, 2.0, 3.0), 20: (1.0, 3.0, 2.0), 25: (3.0, 1.0, 2.0), 30: (1.0, 3.0, 2.0)}
    labels = {30: [NAMES[2], "x"]}
    cards = [card(n, labels.get(n, ["x", "y"]), peak=n, means=means[n]) for n in means]
    (tmp_path / "index.html").write_text(page(*cards))
    queries = {"": [10, 20, 25, 30], "10": [10], "ring": [10, 30], "&": [20, 30], "7": [25], "CONV1 ring": [10, 30],
               "conv2": []}  # fmt: skip
    script = (
        "const count = () => document.querySelector('output').textContent;"
        "const find = (id, value) => { set(id, value); return [shown(), count()]; };"
        f"const found = {json.dumps(list(queries))}.map(words => find('words', words));"
        "set('words', ''); found.push(find('from', 25));"
        "document.querySelectorAll('article').forEach(article => article.remove()); set('from', '');"
        "return [found, document.querySelector('section').hidden];"
    )
    found, is_hidden = run(tmp_path, tmp_path, script)
    expected = [*queries.values(), [25, 30]]
    assert found == [[[f"conv1-{n}" for n in channels], f"{len(channels)} of 4 channels"] for channels in expected]
    assert not is_hidden  # a stage without living channels says so


def test_the_order(gallery, gallery_json, tmp_path):
    keys = {
        "selectivity": lambda entry: -entry["selectivity"],
        "peak": lambda entry: -entry["peak"],
        "unlike": lambda entry: entry["neighbours"][0]["correlation"],
        "": lambda entry: entry["channel"],
    }
    script = f"return {json.dumps(list(keys))}.map(order => {{ set('sort', order); return shown(); }});"
    stages = gallery_json["stages"]
    entries = {f"{stage}-{entry['channel']}": entry for stage in stages for entry in stages[stage]["channels"]}
    for shown, key in zip(run(gallery, tmp_path, script), keys.values(), strict=True):
        assert sorted(shown) == sorted(entries)
        ranks = [(STAGES.index(name.split("-")[0]), key(entries[name])) for name in shown]
        assert all(
            a[0] < b[0] or (a[0] == b[0] and a[1] <= b[1] + 1e-4) for a, b in zip(ranks, ranks[1:], strict=False)
        )


def test_the_filter_and_the_link_on_a_card_show_a_group(tmp_path):
    members = {30: [30, 31, 32], 3: [3, 8], 9: [9]}
    cards = [card(channel, ["x", "y"], representative=first) for first in members for channel in members[first]]
    (tmp_path / "index.html").write_text(page(*cards))
    script = (
        "set('group', 'conv1-30'); const filtered = shown(); set('group', '');"
        "document.querySelector('#conv1-8 a.group').click(); return [filtered, shown()];"
    )
    assert run(tmp_path, tmp_path, script) == [[f"conv1-{n}" for n in members[first]] for first in (30, 3)]


def test_the_address_holds_the_search(gallery, gallery_html, tmp_path):
    script = "return [shown(), document.getElementById('sort').value];"
    expected = [article["id"] for article in gallery_html.all("article") if article["data-channel"] == "10"]
    assert run(gallery, tmp_path, script, "?words=10&sort=peak") == [expected, "peak"]


def test_the_keys(gallery, gallery_html, tmp_path):
    """They follow the order and the search, and can be switched off."""
    ids = [article["id"] for article in gallery_html.all("article")]
    expected = {"j": ids[0], "jjj": ids[2], "jjk": ids[0], "k": ids[0], "j/": "words", "/j": "words"}
    script = (
        "const press = key => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
        "const type = keys => { document.activeElement.blur(); [...keys].forEach(press);"
        " return document.activeElement.id; };"
        f"const on = {json.dumps(list(expected))}.map(type);"
        "document.getElementById('keys').click(); const off = type('j') + type('/');"
        "document.getElementById('keys').click(); set('sort', 'peak'); return [on, off, type('j') === shown()[0]];"
    )
    assert run(gallery, tmp_path, script) == [list(expected.values()), "", True]


@pytest.mark.parametrize("query", ["", "?words=nothing"])
def test_a_link_leads_to_its_channel_even_if_the_search_hides_it(gallery, gallery_html, tmp_path, query):
    last = gallery_html.all("article")[-1]["id"]
    script = (
        "await new Promise(done => setTimeout(done, 1000));"
        f"const box = document.getElementById('{last}').getBoundingClientRect();"
        "return scrollY > 0 && 0 <= box.top && box.top < innerHeight && box.height > 0;"
    )
    assert run(gallery, tmp_path, script, f"{query}#{last}")


def test_a_phone_does_not_scroll_sideways_and_windows_show_their_part(gallery, tmp_path):
    script = (
        "return [...page.querySelector('article').querySelectorAll('.window')].map(part => {"
        " const [own, image] = [part, part.firstChild].map(element => element.getBoundingClientRect());"
        " return [own.left - image.left, own.top - image.top, own.width, own.height].map(x => x / image.width); });"
    )
    width, shown = on_a_phone(gallery / "index.html", tmp_path, script)
    windows = sheet_windows(3, 2)
    assert width <= 420
    for part, window in zip(shown, windows, strict=True):
        assert part == pytest.approx([pixels / sheet_size(windows)[0] for pixels in window], abs=3e-3)
